# mmdet3d's MinkUNet18 W16 and its 15-epoch schedule, on three scans at once and 25 classes.
_base_ = [
    '../_base_/datasets/semantickitti_multiscan.py',
    'mmdet3d::_base_/models/minkunet.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(batch_first=True, max_voxels=160000),
    backbone=dict(
        in_channels=5,
        base_channels=16,
        encoder_channels=[16, 32, 64, 128],
        decoder_channels=[128, 64, 48, 48],
        sparseconv_backend='spconv',
    ),
    decode_head=dict(channels=48, num_classes=25, ignore_index=25),
)

max_epochs = 15
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=0.008, weight_decay=0.01),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.008, by_epoch=False, begin=0, end=125),
    dict(type='CosineAnnealingLR', begin=0, T_max=max_epochs, by_epoch=True, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
