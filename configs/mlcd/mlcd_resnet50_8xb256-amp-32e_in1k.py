# The published margin, number of labels, sample rate and AdamW, on ImageNet-1k with labels of CLIP features, 320,000
# clusters (the paper's best for ResNet-50): python tools/cluster_labels.py features --out work_dirs/cluster_labels
# --num-clusters 320000 --num-labels 8 --engine faiss. Rows of the features are in the order of the data set.
_base_ = ['../_base_/datasets/in1k_views.py', '../_base_/pretraining_runtime.py']

max_epochs, warm_up = 32, 2000
crops = dict(_base_.crops, num_crops=(1,), sizes=(224,), scales=((0.2, 1.0),))
train_dataloader = dict(
    batch_size=256, dataset=dict(pipeline=[dict(type='LoadImageFromFile'), crops, _base_.pack_views])
)
model = dict(
    type='clusterplug.ClusterDiscriminationModel',
    backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet50'),
    head=dict(type='clusterplug.ProjectionHead', in_channels=2048, hidden_channels=[], out_channels=512),
    classifier=dict(
        type='clusterplug.MultiLabelClusterHead', num_classes=320_000, embed_dims=512, scale=32.0, margin=0.3,
        sample_rate=0.1,
    ),
    labels='work_dirs/cluster_labels/labels.npy',
    data_preprocessor=_base_.preprocessor,
)  # fmt: skip
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warm_up),
    dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=4)
val_cfg = dict(type='ValLoop')
