# Slices agree, volumes agree, hidden slices are predicted, on 1,188 small volumes: minutes on a CPU.
_base_ = ['../_base_/datasets/adrenal_slices.py', '../_base_/pretraining_runtime.py']

max_epochs = 20
head = dict(type='clusterplug.PrototypeHead', in_channels=128)
model = dict(
    type='clusterplug.ImageVolumeModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    encoder=dict(type='clusterplug.InterSliceEncoder', channels=128, depth=2, heads=4, downsample=2),
    head=dict(**head, num_prototypes=32),
    volume_head=dict(**head, num_prototypes=8),
    loss=dict(type='clusterplug.IntraInterLoss'),
    mask_ratio=0.2,
    data_preprocessor=_base_.preprocessor,
)
custom_hooks = [
    dict(type='clusterplug.FreezeParamsHook', params=r'head\.prototypes', iters=30),
    dict(type='clusterplug.EpochSeedHook'),
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3), clip_grad=dict(max_norm=2.0))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=5))
