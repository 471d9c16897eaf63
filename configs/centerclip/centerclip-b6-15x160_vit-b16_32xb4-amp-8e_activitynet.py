_base_ = './clip4clip-meanp_vit-b16_32xb4-amp-8e_activitynet.py'

model = dict(encoders=dict(clustering=dict(after_block=6, segments=15, clusters=160)))
