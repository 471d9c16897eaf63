_base_ = './clip4clip-meanp_vit-tiny_1xb64-40e_moving-sprites.py'

model = dict(encoders=dict(clustering=dict(start=1, num_segments=2, num_clusters=6)))
