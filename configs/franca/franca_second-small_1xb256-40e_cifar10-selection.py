# Nested prototypes and an averaged teacher on 5,000 images of 32 x 32: minutes on a CPU.
_base_ = ['../_base_/datasets/cifar10-selection_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 40
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    head=dict(
        type='clusterplug.MatryoshkaHead', in_channels=128, num_prototypes=256, hidden_channels=256, bottleneck=64,
        lazy=True,
    ),
    loss=dict(type='clusterplug.NestedViewLoss', base_loss=dict(type='clusterplug.DINOLoss')),
    teacher=dict(type='ExponentialMovingAverage', momentum=0.01),
    data_preprocessor=_base_.preprocessor,
)  # fmt: skip
custom_hooks = [
    dict(
        type='clusterplug.ValueScheduleHook', target='loss_function.base_loss.teacher_temperature', start=0.04,
        end=0.07, iters=200, shape='linear',
    ),
    dict(type='clusterplug.EpochSeedHook'),
]  # fmt: skip
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3), clip_grad=dict(max_norm=3.0))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10))
