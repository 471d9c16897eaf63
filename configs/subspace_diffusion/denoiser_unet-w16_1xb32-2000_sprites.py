# A small diffusion model of 24 x 24 frames of the moving sprites, drawn on the fly.
_base_ = '../_base_/pretraining_runtime.py'
custom_imports = dict(imports=['clusterplug.datasets.sprite_frames'], allow_failed_imports=False)

model = dict(
    type='clusterplug.DenoisingModel',
    denoiser=dict(type='clusterplug.DenoisingUNet', in_channels=3, width=16),
    loss=dict(type='clusterplug.DenoisingLoss', schedule='vp'),
)
train_dataloader = dict(
    batch_size=32, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='clusterplug.SpriteFrames', num_images=4096, size=24),
)  # fmt: skip
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2000)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=2000, by_epoch=False)]
custom_hooks = [dict(type='EMAHook', momentum=0.005)]
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(by_epoch=False, interval=500))
log_processor = dict(by_epoch=False)
