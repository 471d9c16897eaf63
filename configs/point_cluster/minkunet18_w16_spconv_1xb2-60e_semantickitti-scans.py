_base_ = [
    '../_base_/datasets/semantickitti-scans.py',
    '../_base_/models/minkunet_small.py',
    '../_base_/schedules/adamw-5e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(max_voxels=20000),
    backbone=dict(
        in_channels=3, base_channels=16, encoder_channels=[16, 32, 64, 128], decoder_channels=[128, 64, 48, 48]
    ),
    decode_head=dict(channels=48),
)

# Two steps an epoch: 120 steps.
max_epochs = 60
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', begin=0, T_max=max_epochs, by_epoch=True, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
default_hooks = dict(logger=dict(interval=2), checkpoint=dict(interval=20))
