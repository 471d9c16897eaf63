# The published setting on ImageNet-1k with its labels: gates of 1,000 classes, any two of them as a pair, cosines
# before the gate. How many GPUs the authors used is not published: the learning rate is 5e-4 a batch of 256, the
# warm-up that of their MoCo variant. Missing: the LayerNorm at the end of their projector, and the classifier that they
# train next to it (use the probes).
_base_ = ['../_base_/datasets/in1k_views.py', '../_base_/pretraining_runtime.py']

max_epochs, warm_up = 1000, 40
crops = dict(_base_.crops, num_crops=(2,), sizes=(224,), scales=((0.2, 1.0),))
gate = dict(type='clusterplug.ClassPairGate', num_classes=1000, channels=256, embed_dims=512, hidden_dims=1024)
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet50'),
    head=dict(
        type='clusterplug.ProjectionHead', in_channels=2048, hidden_channels=[2048], out_channels=256, norm='batch'
    ),
    loss=dict(type='clusterplug.SimLAPLoss', gate=gate, temperature=0.1, normalize_in_subspace=False),
    data_preprocessor=_base_.preprocessor,
)
train_dataloader = dict(
    batch_size=512,
    dataset=dict(labels=True, pipeline=[dict(type='LoadImageFromFile'), crops, _base_.pack_views]),
)
custom_hooks = [dict(type='clusterplug.CollapseCheckHook')]
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=8e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=warm_up, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs - warm_up, by_epoch=True, begin=warm_up, end=max_epochs,
        convert_to_iter_based=True,
    ),
]  # fmt: skip
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=50)
val_cfg = dict(type='ValLoop')
