_base_ = './clip4clip-meanp_vit-b32_8xb16-amp-5e_didemo.py'

model = dict(encoders=dict(clustering=dict(start=6, num_segments=15, num_clusters=49)))
