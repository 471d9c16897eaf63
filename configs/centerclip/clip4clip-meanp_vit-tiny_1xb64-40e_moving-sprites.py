_base_ = [
    '../_base_/models/clip_vit-tiny.py',
    '../_base_/datasets/moving-sprites.py',
    '../_base_/schedules/centerclip-5e.py',
    '../_base_/retrieval_runtime.py',
]

# From nothing: a larger rate for everything, and no half precision on a CPU.
max_epochs = 40
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=3e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=40, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=2, end=max_epochs, by_epoch=True, eta_min=0, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
