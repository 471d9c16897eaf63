# The published setting on a subset of ImageNet, data/imagenet-subset/{train,val}/<class>/*.JPEG: SimCLR in batches of
# 64 without two samples of one of 64 clusters. labels.npy holds the clusters that
# clusterplug.estimators.DenoisingAutoencoder(n_clusters=64) finds, in the order of the data set. Crops and color are
# drawn for each image; theirs are drawn once a batch, and they do not crop.
_base_ = ['../_base_/datasets/in1k_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 200
root = 'data/imagenet-subset/'
crops = dict(
    _base_.crops, num_crops=(2,), sizes=(224,), scales=((0.2, 1.0),), color_jitter=(0.8, 0.8, 0.8, 0.2), blur_prob=0.0
)
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet50'),
    head=dict(
        type='clusterplug.ProjectionHead', in_channels=2048, hidden_channels=[256, 128], out_channels=50, norm='batch'
    ),
    loss=dict(type='clusterplug.NTXentLoss', temperature=0.1),
    data_preprocessor=_base_.preprocessor,
)
train_dataloader = dict(
    batch_size=64,
    drop_last=False,
    batch_sampler=dict(type='clusterplug.ClusterDisjointBatchSampler', labels=root + 'labels.npy'),
    dataset=dict(data_root=root + 'train', pipeline=[dict(type='LoadImageFromFile'), crops, _base_.pack_views]),
)
val_dataloader = dict(dataset=dict(data_root=root + 'val'))
custom_hooks = [dict(type='clusterplug.CollapseCheckHook')]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=20)
val_cfg = dict(type='ValLoop')
