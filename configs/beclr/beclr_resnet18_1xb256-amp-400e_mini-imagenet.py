# The published setting on miniImageNet (ResNet-18, memory of 8192, 200 clusters, 5 neighbors from epoch 60 on), as
# folders data/mini-imagenet/train/<class>/*.jpg. Two augmentations of the paper are missing: RandAugment, block masks.
_base_ = ['../_base_/datasets/in1k_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 400
crops = dict(_base_.crops, num_crops=(2,), sizes=(84,), scales=((0.2, 1.0),), color_jitter=(0.4, 0.4, 0.2, 0.1))
train_dataloader = dict(
    batch_size=256,
    dataset=dict(
        data_root='data/mini-imagenet/train', pipeline=[dict(type='LoadImageFromFile'), crops, _base_.pack_views]
    ),
)
val_dataloader = None
val_evaluator = None
val_cfg = None
norm = dict(norm='batch')
model = dict(
    type='clusterplug.BatchEnhancedModel',
    backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet18'),
    head=dict(type='clusterplug.ProjectionHead', in_channels=512, hidden_channels=[512, 512], out_channels=512, **norm),
    predictor=dict(type='clusterplug.ProjectionHead', in_channels=512, hidden_channels=[128], out_channels=512, **norm),
    memory=dict(type='clusterplug.ClusteredMemory', length=8192, embed_dims=512, num_clusters=200),
    num_neighbors=5,
    data_preprocessor=_base_.preprocessor,
)
custom_hooks = [dict(type='clusterplug.QueueStartHook', begin=60)]
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs)
