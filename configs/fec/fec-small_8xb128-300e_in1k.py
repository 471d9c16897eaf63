# ImageNet-1k as the authors train: 300 epochs, batch 1024, AdamW 1e-3, mixup and cutmix, label smoothing.
_base_ = 'mmpretrain::poolformer/poolformer-s12_32xb128_in1k.py'
model = dict(
    backbone=dict(_delete_=True, type='clusterplug.FEC', arch='small', out_indices=(3,), drop_path_rate=0.1),
    head=dict(in_channels=320, loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
auto_scale_lr = dict(base_batch_size=1024)
