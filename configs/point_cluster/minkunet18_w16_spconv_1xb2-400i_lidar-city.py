# The small run of `make demo`: mmdet3d's MinkUNet18, 16 channels wide, on generated streets in voxels of 0.15 m; about
# 0.5 s a step on 2 CPU cores. Clustering is added by point-cluster_minkunet18_w16_spconv_1xb2-400i_lidar-city.py.
_base_ = [
    'mmdet3d::_base_/datasets/semantickitti.py',
    'mmdet3d::_base_/models/minkunet.py',
    'mmdet3d::_base_/default_runtime.py',
]
data_root = 'data/lidar_city/'
voxel_size = [0.15, 0.15, 0.15]
max_iters = 400

model = dict(
    data_preprocessor=dict(batch_first=True, max_voxels=28000, voxel_layer=dict(voxel_size=voxel_size)),
    backbone=dict(
        sparseconv_backend='spconv',
        base_channels=16,
        encoder_channels=[16, 32, 64, 128],
        decoder_channels=[128, 64, 48, 48],
    ),
    decode_head=dict(channels=48),
)

train_pipeline = [
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
    dict(
        type='LoadAnnotations3D',
        with_bbox_3d=False,
        with_label_3d=False,
        with_seg_3d=True,
        seg_3d_dtype='np.int32',
        seg_offset=2**16,
        dataset_type='semantickitti',
    ),
    dict(type='PointSegClassMapping'),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[0.0, 6.28318531],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
    ),
    dict(type='Pack3DDetInputs', keys=['points', 'pts_semantic_mask']),
]
train_dataloader = dict(
    num_workers=1,
    sampler=dict(type='InfiniteSampler', shuffle=True, _delete_=True),
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root, ann_file='semantickitti_infos_test.pkl'))

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.008, weight_decay=0.01),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = dict(type='OneCycleLR', eta_max=0.008, total_steps=max_iters, pct_start=0.2, by_epoch=False)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(type='CheckpointHook', interval=100, by_epoch=False, max_keep_ckpts=1)
)
log_processor = dict(window_size=20, by_epoch=False)
randomness = dict(seed=0)
