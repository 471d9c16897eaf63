_base_ = './clip4clip-meanp_vit-b32_2xb64-amp-5e_lsmdc.py'

model = dict(encoders=dict(clustering=dict(start=6, num_segments=6, num_clusters=49)))
