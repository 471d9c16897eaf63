# Any two of the ten classes may be a positive pair, inside the channels that their gate opens.
_base_ = ['../_base_/datasets/cifar10-selection_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 40
crops = dict(_base_.crops, num_crops=(2,), sizes=(32,), scales=((0.5, 1.0),))
gate = dict(type='clusterplug.ClassPairGate', num_classes=10, channels=64, embed_dims=64, hidden_dims=128)
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    head=dict(type='clusterplug.ProjectionHead', in_channels=128, hidden_channels=[256], out_channels=64, norm='batch'),
    loss=dict(type='clusterplug.SimLAPLoss', gate=gate, temperature=0.1),
    data_preprocessor=_base_.preprocessor,
)
train_dataloader = dict(dataset=dict(pipeline=[crops, _base_.pack_views]))
custom_hooks = [dict(type='clusterplug.CollapseCheckHook'), dict(type='clusterplug.EpochSeedHook')]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10))
