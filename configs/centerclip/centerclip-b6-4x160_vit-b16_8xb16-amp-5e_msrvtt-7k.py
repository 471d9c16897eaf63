_base_ = './clip4clip-meanp_vit-b16_8xb16-amp-5e_msrvtt-7k.py'

model = dict(encoders=dict(clustering=dict(start=6, num_segments=4, num_clusters=160)))
