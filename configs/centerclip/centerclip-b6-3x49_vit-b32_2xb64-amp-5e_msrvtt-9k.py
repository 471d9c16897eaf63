_base_ = './clip4clip-meanp_vit-b32_2xb64-amp-5e_msrvtt-9k.py'

model = dict(encoders=dict(clustering=dict(after_block=6, segments=3, clusters=49)))
