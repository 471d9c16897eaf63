# CenterCLIP's recipe: 5e-6 for CLIP and 5e-3 for what is new, decay 0.2 (not on gains, biases and the scale), a tenth
# of the training to warm up, cosine, gradients of norm 1 at most. Total batch 128.
max_epochs = 5
optim_wrapper = dict(
    type='AmpOptimWrapper',
    constructor='clusterplug.RetrievalOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=5e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2),
    paramwise_cfg=dict(head_lr_mult=1000),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=0.1 * max_epochs, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=0.1 * max_epochs,
        end=max_epochs,
        by_epoch=True,
        eta_min=0,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=128)
