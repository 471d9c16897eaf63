# The published crops, heads, temperatures and schedules at batch 2048 on a ViT-B/14, for the class token alone: the
# paper adds the masked-patch loss (IBOTLoss, CyclicMask) and KoLeo, which this model does not make.
_base_ = ['../_base_/datasets/in1k_views.py', '../_base_/pretraining_runtime.py']

max_iters, warm_up = 625_000, 100_000
crops = dict(_base_.crops, num_crops=(2, 8), sizes=(224, 98), scales=((0.32, 1.0), (0.05, 0.32)))
train_dataloader = dict(
    batch_size=32, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=[dict(type='LoadImageFromFile'), crops, _base_.pack_views]),
)  # fmt: skip
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(
        type='clusterplug.TimmBackbone', name='vit_base_patch14_dinov2', img_size=224, dynamic_img_size=True,
        drop_path_rate=0.1,
    ),
    head=dict(
        type='clusterplug.MatryoshkaHead', in_channels=768, num_prototypes=131072, hidden_channels=2048,
        bottleneck=384, lazy=True,
    ),
    loss=dict(type='clusterplug.NestedViewLoss', base_loss=dict(type='clusterplug.DINOLoss')),
    teacher=dict(type='ExponentialMovingAverage', momentum=0.006),
    data_preprocessor=_base_.preprocessor,
)  # fmt: skip
custom_hooks = [
    dict(
        type='clusterplug.ValueScheduleHook', target='loss_function.base_loss.teacher_temperature', start=0.04,
        end=0.07, iters=37_500, shape='linear',
    ),
    dict(type='clusterplug.ValueScheduleHook', target='teacher.momentum', start=0.006, end=1e-6, shape='cosine'),
]  # fmt: skip
optim_wrapper = dict(
    type='AmpOptimWrapper', clip_grad=dict(max_norm=3.0),
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.04),
)  # fmt: skip
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warm_up),
    dict(type='CosineAnnealingLR', T_max=max_iters - warm_up, by_epoch=False, begin=warm_up, eta_min=1e-6),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=12_500)
val_cfg = dict(type='ValLoop')
