# One embedding for every cube of 2 m that both views see: about 500 a step for 64 prototypes.
_base_ = [
    '../_base_/datasets/lidar-city_views.py',
    '../_base_/models/minkunet_small.py',
    '../_base_/schedules/adamw-5e.py',
    '../_base_/default_runtime.py',
]

projector = dict(type='clusterplug.ProjectionHead', in_channels=24, hidden_channels=[128], out_channels=32)
model = dict(
    _delete_=True,
    type='clusterplug.MultiViewModel',
    backbone=_base_.model.backbone,
    head=dict(
        type='clusterplug.PrototypeHead', in_channels=24, num_prototypes=64, projector=dict(**projector, norm='batch')
    ),
    loss=dict(type='clusterplug.SwAVLoss'),
    embed='regions',
    data_preprocessor=dict(
        type='clusterplug.MultiViewPreprocessor', points=dict(_base_.model.data_preprocessor, max_voxels=None)
    ),
)
custom_hooks = [dict(type='clusterplug.FreezeParamsHook', iters=30), dict(type='clusterplug.CollapseCheckHook')]
