_base_ = './centerclip-b6-15x49_vit-b32_8xb16-amp-8e_activitynet.py'

model = dict(encoders=dict(clustering=dict(reduction='spectral')))
