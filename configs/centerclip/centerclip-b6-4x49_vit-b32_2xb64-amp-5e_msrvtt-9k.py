_base_ = './clip4clip-meanp_vit-b32_2xb64-amp-5e_msrvtt-9k.py'

model = dict(encoders=dict(clustering=dict(start=6, num_segments=4, num_clusters=49)))
