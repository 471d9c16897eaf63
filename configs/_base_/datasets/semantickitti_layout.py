# Any folder in SemanticKITTI layout, read by mmdet3d's own dataset class:
#   <data_root>/sequences/<sequence>/{velodyne/<scan>.bin, labels/<scan>.label}
#   <data_root>/semantickitti_infos_{train,val}.pkl, written by tools/prepare_semantickitti.py
# Another folder: --cfg-options train_dataloader.dataset.data_root=X val_dataloader.dataset.data_root=X
#   test_dataloader.dataset.data_root=X
dataset_type = 'SemanticKittiDataset'
data_root = 'data/semantickitti/'
class_names = [
    'car', 'bicycle', 'motorcycle', 'truck', 'bus', 'person', 'bicyclist', 'motorcyclist', 'road', 'parking',
    'sidewalk', 'other-ground', 'building', 'fence', 'vegetation', 'trunck', 'terrian', 'pole', 'traffic-sign',
]  # fmt: skip
# Raw label -> class; 19 is ignored. Moving objects (252 ...) belong to their class.
labels_map = {
    0: 19, 1: 19, 10: 0, 11: 1, 13: 4, 15: 2, 16: 4, 18: 3, 20: 4, 30: 5, 31: 6, 32: 7, 40: 8, 44: 9, 48: 10, 49: 11,
    50: 12, 51: 13, 52: 19, 60: 8, 70: 14, 71: 15, 72: 16, 80: 17, 81: 18, 99: 19, 252: 0, 253: 6, 254: 5, 255: 7,
    256: 4, 257: 4, 258: 3, 259: 4,
}  # fmt: skip
metainfo = dict(classes=class_names, seg_label_mapping=labels_map, max_label=259)
input_modality = dict(use_lidar=True, use_camera=False)

load_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4)
load_labels = dict(
    type='LoadAnnotations3D',
    with_bbox_3d=False,
    with_label_3d=False,
    with_seg_3d=True,
    seg_3d_dtype='np.int32',
    seg_offset=2**16,
    dataset_type='semantickitti',
)
pack = dict(type='Pack3DDetInputs', keys=['points', 'pts_semantic_mask'])

train_pipeline = [
    load_points,
    load_labels,
    dict(type='PointSegClassMapping'),
    dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[0.0, 6.28318531],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
    ),
    pack,
]
test_pipeline = [load_points, load_labels, dict(type='PointSegClassMapping'), pack]
# --tta: the four flips
tta_pipeline = [
    load_points,
    load_labels,
    dict(type='PointSegClassMapping'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=h, flip_ratio_bev_vertical=v)
                for h in (0.0, 1.0)
                for v in (0.0, 1.0)
            ],
            [dict(type='Pack3DDetInputs', keys=['points'])],
        ],
    ),
]
tta_model = dict(type='Seg3DTTAModel')

train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='semantickitti_infos_train.pkl',
        pipeline=train_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        ignore_index=19,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='semantickitti_infos_val.pkl',
        pipeline=test_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        ignore_index=19,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='SegMetric')
test_evaluator = val_evaluator
