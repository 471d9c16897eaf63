# Ten real KITTI frames in $CLUSTERPLUG_DATA/kitti: eight for training, two held out. Write the info files with
#   python tools/prepare_kitti.py $CLUSTERPLUG_DATA/kitti \
#       --train 000000-000007 --val 000008-000009 --out data/kitti-frames
# A quarter of the usual range, so that a step of two scans takes seconds on one CPU core.
data_root = 'data/kitti-frames/'
class_names = ['Pedestrian', 'Cyclist', 'Car']
point_cloud_range = [0, -17.28, -3, 34.56, 17.28, 1]
metainfo = dict(classes=class_names)
input_modality = dict(use_lidar=True, use_camera=False)

load_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4)
db_sampler = dict(
    data_root=data_root,
    info_path=data_root + 'kitti_dbinfos_train.pkl',
    rate=1.0,
    prepare=dict(filter_by_difficulty=[-1], filter_by_min_points=dict(Car=5, Pedestrian=5, Cyclist=5)),
    classes=class_names,
    sample_groups=dict(Car=6, Pedestrian=3, Cyclist=3),
    points_loader=load_points,
)
train_pipeline = [
    load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='ObjectSample', db_sampler=db_sampler),
    dict(type='RandomFlip3D', flip_ratio_bev_horizontal=0.5),
    dict(type='GlobalRotScaleTrans', rot_range=[-0.3, 0.3], scale_ratio_range=[0.95, 1.05]),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    load_points,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points']),
]
frames = dict(
    type='KittiDataset',
    data_root=data_root,
    data_prefix=dict(pts='training/velodyne_reduced'),
    modality=input_modality,
    metainfo=metainfo,
    box_type_3d='LiDAR',
)
held_out = dict(test_mode=True, ann_file='kitti_infos_val.pkl', pipeline=test_pipeline, **frames)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(test_mode=False, ann_file='kitti_infos_train.pkl', pipeline=train_pipeline, **frames),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=held_out,
)
test_dataloader = val_dataloader
val_evaluator = dict(type='KittiMetric', ann_file=data_root + 'kitti_infos_val.pkl', metric='bbox')
test_evaluator = val_evaluator
