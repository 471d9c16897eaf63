# SimCLR in batches without two samples of one cluster; 80 clusters of the features, recomputed every 10 epochs.
_base_ = ['../_base_/datasets/cifar10-selection_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 40
train_set = dict(type='clusterplug.ImageArrays', ann_file=_base_.images, images='X_train', labels='y_train')
crops = dict(_base_.crops, num_crops=(2,), sizes=(32,), scales=((0.3, 1.0),))
model = dict(
    type='clusterplug.MultiViewModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    head=dict(
        type='clusterplug.ProjectionHead', in_channels=128, hidden_channels=[256, 128], out_channels=50, norm='batch'
    ),
    loss=dict(type='clusterplug.NTXentLoss', temperature=0.1),
    data_preprocessor=_base_.preprocessor,
)
train_dataloader = dict(
    batch_size=64,
    drop_last=False,
    batch_sampler=dict(type='clusterplug.ClusterDisjointBatchSampler', labels=None),
    dataset=dict(pipeline=[crops, _base_.pack_views]),
)
custom_hooks = [
    dict(
        type='clusterplug.ClusterRefreshHook', estimator=dict(type='KMeans', n_clusters=80), sampler=True, interval=10,
        dataloader=dict(dataset=dict(**train_set, pipeline=[_base_.pack_views]), batch_size=250),
    ),
    dict(type='clusterplug.CollapseCheckHook'),
    dict(type='clusterplug.EpochSeedHook'),
]  # fmt: skip
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=10))
