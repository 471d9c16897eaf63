# The backbone of ../point_cluster/minkunet18_w16_spconv_1xb2-60e_semantickitti-scans.py on its four training scans.
_base_ = [
    '../_base_/datasets/semantickitti-scans_views.py',
    '../_base_/models/minkunet_small.py',
    '../_base_/schedules/adamw-5e.py',
    '../_base_/default_runtime.py',
]

max_epochs = 60
channels = dict(encoder_channels=[16, 32, 64, 128], decoder_channels=[128, 64, 48, 48])
backbone = dict(_base_.model.backbone, in_channels=3, base_channels=16, **channels)
projector = dict(type='clusterplug.ProjectionHead', in_channels=48, hidden_channels=[128], out_channels=32)
model = dict(
    _delete_=True,
    type='clusterplug.MultiViewModel',
    backbone=backbone,
    head=dict(
        type='clusterplug.PrototypeHead', in_channels=48, num_prototypes=64, projector=dict(**projector, norm='batch')
    ),
    loss=dict(type='clusterplug.SwAVLoss'),
    embed='regions',
    data_preprocessor=dict(
        type='clusterplug.MultiViewPreprocessor', points=dict(_base_.model.data_preprocessor, max_voxels=None)
    ),
)
custom_hooks = [dict(type='clusterplug.FreezeParamsHook', iters=10), dict(type='clusterplug.CollapseCheckHook')]
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', begin=0, T_max=max_epochs, by_epoch=True, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
default_hooks = dict(logger=dict(interval=2), checkpoint=dict(interval=20))
