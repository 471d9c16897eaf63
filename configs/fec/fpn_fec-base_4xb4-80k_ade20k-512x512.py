_base_ = './fpn_fec-small_4xb4-80k_ade20k-512x512.py'
model = dict(backbone=dict(arch='base'), neck=dict(in_channels=[64, 128, 320, 512]))
