_base_ = './centerclip-b6-6x49_vit-b32_2xb64-amp-5e_lsmdc.py'

model = dict(encoders=dict(clustering=dict(reduction='spectral')))
