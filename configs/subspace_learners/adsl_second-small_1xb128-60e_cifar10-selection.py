# 5,000 labeled images; learners are split where the embedding gets no clearer, and train together at last.
_base_ = ['../_base_/datasets/cifar10-selection_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 60
finetune_begin = 45
model = dict(
    type='clusterplug.SubspaceMetricModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    attention=dict(type='clusterplug.SpatialAttention', in_channels=128, hidden_channels=[32]),
    head=dict(type='clusterplug.SubspaceLearnerHead', in_channels=128, embed_dims=64),
    # A new network puts all images close together, within the cut-off of the authors' pairs: none would be left.
    loss=dict(type='clusterplug.MarginLoss', sampling='distance'),
    num_samples=5000,
    data_preprocessor=_base_.preprocessor,
)
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=[_base_.pack_views]))
val_evaluator = [
    dict(type='clusterplug.LinearProbe', field='embeddings'),
    dict(type='clusterplug.NearestNeighborProbe', field='embeddings'),
]
custom_hooks = [
    dict(type='clusterplug.LearnerSplitHook', num_clusters=10, finetune_begin=finetune_begin),
    dict(
        type='clusterplug.ClusterRefreshHook', estimator=dict(type='KMeans', n_clusters=1), table='table',
        column='learner', interval=2,
    ),
]  # fmt: skip
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-4))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10))
