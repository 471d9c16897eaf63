# The published recipe at a batch of 4096: 64 GPUs x 64, no queue, prototypes frozen for 313 steps (one epoch).
_base_ = ['../_base_/datasets/in1k_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 800
projector = dict(type='clusterplug.ProjectionHead', in_channels=2048, hidden_channels=[2048], out_channels=128)
projector['norm'] = 'batch'
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet50', zero_init_residual=True),
    head=dict(
        type='clusterplug.PrototypeHead',
        in_channels=2048,
        num_prototypes=3000,
        projector=projector,
    ),
    loss=dict(type='clusterplug.SwAVLoss', temperature=0.1, epsilon=0.05, num_iters=3),
    data_preprocessor=_base_.preprocessor,
)
custom_hooks = [dict(type='clusterplug.FreezeParamsHook', iters=313), dict(type='clusterplug.CollapseCheckHook')]
sync_bn = 'torch'
optim_wrapper = dict(
    type='AmpOptimWrapper',
    # LARC without clipping, on every parameter
    optimizer=dict(type='timm.optim.Lars', lr=4.8, momentum=0.9, weight_decay=1e-6, trust_coeff=0.001),
)
warm_up = 10
param_scheduler = [
    dict(type='LinearLR', start_factor=0.0625, by_epoch=True, begin=0, end=warm_up, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs - warm_up, by_epoch=True, begin=warm_up, end=max_epochs,
        eta_min=0.0048, convert_to_iter_based=True,
    ),
]  # fmt: skip
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=50)
val_cfg = dict(type='ValLoop')
