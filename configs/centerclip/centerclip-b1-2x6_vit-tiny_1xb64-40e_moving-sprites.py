_base_ = './clip4clip-meanp_vit-tiny_1xb64-40e_moving-sprites.py'

model = dict(encoders=dict(clustering=dict(after_block=1, segments=2, clusters=6)))
