_base_ = './fec-small_8xb128-300e_in1k.py'
model = dict(backbone=dict(arch='base'), head=dict(in_channels=512))
