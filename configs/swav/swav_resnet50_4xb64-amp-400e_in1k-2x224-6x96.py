# The published recipe at a batch of 256: 4 GPUs x 64, a queue of 3840 from epoch 15, prototypes frozen for one epoch.
_base_ = './swav_resnet50_64xb64-amp-800e_in1k-2x224-6x96.py'

max_epochs = 400
model = dict(queue=dict(type='clusterplug.FeatureQueue', length=3840, embed_dims=128))
custom_hooks = [
    dict(type='clusterplug.FreezeParamsHook', iters=5005), dict(type='clusterplug.QueueStartHook', begin=15),
    dict(type='clusterplug.CollapseCheckHook'),
]  # fmt: skip
optim_wrapper = dict(optimizer=dict(lr=0.6))
param_scheduler = [
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, begin=0, end=max_epochs, eta_min=0.0006,
        convert_to_iter_based=True,
    ),
]  # fmt: skip
train_cfg = dict(max_epochs=max_epochs)
