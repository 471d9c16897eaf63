_base_ = './clip4clip-meanp_vit-b16_32xb4-amp-5e_didemo.py'

model = dict(encoders=dict(clustering=dict(after_block=6, segments=15, clusters=160)))
