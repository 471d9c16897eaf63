_base_ = './clip4clip-meanp_vit-b32_8xb16-amp-8e_activitynet.py'

model = dict(encoders=dict(clustering=dict(after_block=6, segments=15, clusters=49)))
