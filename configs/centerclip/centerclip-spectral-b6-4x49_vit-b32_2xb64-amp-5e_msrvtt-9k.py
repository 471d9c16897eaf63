_base_ = './centerclip-b6-4x49_vit-b32_2xb64-amp-5e_msrvtt-9k.py'

model = dict(encoders=dict(clustering=dict(reduction='spectral')))
