# Labels first, of any features of the 5,000 images in their order (one .npy file in the folder features):
#   python tools/cluster_labels.py features --out work_dirs/cluster_labels --num-clusters 200 --num-labels 2
_base_ = ['../_base_/datasets/cifar10-selection_views.py', '../_base_/pretraining_runtime.py']

max_epochs = 40
model = dict(
    type='clusterplug.ClusterDiscriminationModel',
    backbone=dict(
        type='mmdet3d.SECOND', in_channels=3, out_channels=[32, 64, 128], layer_nums=[0, 0, 0], layer_strides=[2, 2, 2]
    ),
    classifier=dict(
        type='clusterplug.MultiLabelClusterHead', num_classes=200, embed_dims=128, scale=32.0, margin=0.3,
        sample_rate=0.5,
    ),
    labels='work_dirs/cluster_labels/labels.npy',
    data_preprocessor=_base_.preprocessor,
)  # fmt: skip
custom_hooks = [dict(type='clusterplug.EpochSeedHook')]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10))
