# Neighbors of a memory as further positives on 5,000 images of 32 x 32: minutes on a CPU.
_base_ = ['../_base_/datasets/cifar10-selection_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 40
crops = dict(_base_.crops, num_crops=(2,), sizes=(32,), scales=((0.2, 1.0),))
train_dataloader = dict(dataset=dict(pipeline=[crops, _base_.pack_views]))
layer = dict(type='clusterplug.ProjectionHead', in_channels=128, hidden_channels=[128], out_channels=128, norm='batch')
model = dict(
    type='clusterplug.BatchEnhancedModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    head=layer,
    predictor=dict(**layer),
    memory=dict(type='clusterplug.ClusteredMemory', length=2048, embed_dims=128, num_clusters=32),
    num_neighbors=5,
    data_preprocessor=_base_.preprocessor,
)
custom_hooks = [dict(type='clusterplug.EpochSeedHook')]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10))
