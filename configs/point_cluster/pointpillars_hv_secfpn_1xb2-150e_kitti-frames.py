# mmdet3d's PointPillars on a quarter of its range, with 16 points a pillar and two layers a stage, so that a step takes
# about two seconds on one CPU core; 600 steps on the ten real frames.
_base_ = [
    '../_base_/datasets/kitti-frames.py',
    'mmdet3d::_base_/models/pointpillars_hv_secfpn_kitti.py',
    '../_base_/default_runtime.py',
]

point_cloud_range = [0, -17.28, -3, 34.56, 17.28, 1]
ground = [[0, -17.28, z, 34.56, 17.28, z] for z in (-0.6, -0.6, -1.78)]
voxels = dict(point_cloud_range=point_cloud_range, max_num_points=16, max_voxels=(12000, 12000))
norm = dict(eps=1e-3, momentum=0.1)  # mmdet3d's 0.01 needs more steps
model = dict(
    data_preprocessor=dict(voxel_layer=voxels),
    voxel_encoder=dict(point_cloud_range=point_cloud_range, norm_cfg=dict(type='BN1d', **norm)),
    middle_encoder=dict(output_shape=[216, 216]),
    backbone=dict(layer_nums=[1, 1, 1], norm_cfg=dict(type='BN2d', **norm)),
    neck=dict(norm_cfg=dict(type='BN2d', **norm)),
    bbox_head=dict(anchor_generator=dict(ranges=ground)),
)

max_epochs = 150
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.003, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', begin=0, T_max=max_epochs, by_epoch=True, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval=25))
