_base_ = './centerclip-b1-2x6_vit-tiny_1xb64-40e_moving-sprites.py'

model = dict(encoders=dict(clustering=dict(reduction='sparse')))
