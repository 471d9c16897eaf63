_base_ = './clip4clip-meanp_vit-b16_8xb16-amp-5e_msrvtt-9k.py'

model = dict(encoders=dict(clustering=dict(after_block=6, segments=4, clusters=160)))
