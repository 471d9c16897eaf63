# Five thousand images of 32 x 32 and a network of three stages: minutes on a CPU.
_base_ = ['../_base_/datasets/cifar10-selection_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 40
projector = dict(type='clusterplug.ProjectionHead', in_channels=128, hidden_channels=[256], out_channels=64)
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    head=dict(
        type='clusterplug.PrototypeHead', in_channels=128, num_prototypes=60, projector=dict(**projector, norm='batch')
    ),
    loss=dict(type='clusterplug.SwAVLoss'),
    data_preprocessor=_base_.preprocessor,
)
custom_hooks = [
    dict(type='clusterplug.FreezeParamsHook', iters=30), dict(type='clusterplug.CollapseCheckHook'),
    dict(type='clusterplug.EpochSeedHook'),
]  # fmt: skip
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=2e-3))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10))
