# The slices are four scans of a drive from above: python tools/prepare_lidar_city.py --out data/lidar_city.
# No labels of whole drives, so no probes: tools/analysis_tools/probe.py takes a config with a validation of its own.
_base_ = ['../_base_/datasets/lidar-city.py', '../_base_/default_runtime.py']

max_epochs = 10
head = dict(type='clusterplug.PrototypeHead', in_channels=128)
model = dict(
    type='clusterplug.ImageVolumeModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    encoder=dict(type='clusterplug.InterSliceEncoder', channels=128, depth=2, heads=4, downsample=2),
    head=dict(**head, num_prototypes=16),
    volume_head=dict(**head, num_prototypes=4),
    loss=dict(type='clusterplug.IntraInterLoss'),
    mask_ratio=0.25,
    data_preprocessor=dict(type='clusterplug.MultiViewPreprocessor', mean=[30, 30, 30], std=[60, 60, 60]),
)
pipeline = [
    _base_.load_points,
    dict(type='clusterplug.AddPreviousScans', num_scans=4),
    dict(type='clusterplug.SweepSlices', radius=24.0, size=48),
    dict(type='clusterplug.SliceViews', size=48, brightness=0.1, contrast=0.1),
    dict(type='clusterplug.PackViews'),
]
train_dataloader = dict(batch_size=8, drop_last=True, dataset=dict(pipeline=pipeline))
val_dataloader = None
val_evaluator = None
test_dataloader = None
test_evaluator = None
custom_hooks = [
    dict(type='clusterplug.FreezeParamsHook', params=r'head\.prototypes', iters=30),
    dict(type='clusterplug.EpochSeedHook'),
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3), clip_grad=dict(max_norm=2.0))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=5))
