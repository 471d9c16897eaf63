# SPDX-License-Identifier: Apache-2.0
"""mmdet3d's KITTI detectors from their own configs, on tiny files and small enough for a test on one CPU core."""

from pathlib import Path

# 19.2 m square: 120 pillars of 0.16 m, 384 voxels of 0.05 m
RANGE = [0, -9.6, -3, 19.2, 9.6, 1]


def tiny_detector_config(config, data_root: str | Path, num_points: int = 1024):
    """Shrink a config of PointPillars, SECOND, PV-RCNN or PointRCNN in range, proposals and length; not in layers.

    Args:
        config (mmengine.config.Config): as ``clusterplug.cli.load_config`` gives it, with or without clustering;
            changed in place.
        data_root: what :func:`~clusterplug.datasets.kitti_convert.prepare_kitti` wrote.
        num_points: points of a scan for PointRCNN.

    Returns:
        mmengine.config.Config: trains two iterations, then validates.
    """
    wrapped = config.model.type == 'clusterplug.WithClustering'
    model = config.model.model if wrapped else config.model
    _SHRINK[model.type.split('.')[-1]](model)
    if wrapped:
        config.model.loss.update(num_clusters=4, embed_dims=16, queue_len=8)
    steps = [
        dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        dict(type='PointsRangeFilter', point_cloud_range=RANGE),
        dict(type='ObjectRangeFilter', point_cloud_range=RANGE),
        dict(type='PointSample', num_points=num_points),
        dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
    ]
    if model.type.split('.')[-1] != 'PointRCNN':
        del steps[4]
    frames = dict(
        type='KittiDataset', data_root=str(data_root), data_prefix=dict(pts='training/velodyne_reduced'),
        modality=dict(use_lidar=True, use_camera=False), metainfo=dict(classes=['Pedestrian', 'Cyclist', 'Car']),
        box_type_3d='LiDAR', _scope_='mmdet3d',
    )  # fmt: skip
    loader = dict(num_workers=0, persistent_workers=False)
    held_out = dict(test_mode=True, ann_file='kitti_infos_val.pkl', pipeline=[*steps[:1], *steps[2:3], *steps[4:]])
    config.train_dataloader = dict(
        batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), **loader,
        dataset=dict(test_mode=False, ann_file='kitti_infos_train.pkl', pipeline=steps, **frames),
    )  # fmt: skip
    config.val_dataloader = config.test_dataloader = dict(
        batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False), **loader, dataset={**held_out, **frames}
    )
    ann_file = str(Path(data_root) / 'kitti_infos_val.pkl')
    config.val_evaluator = config.test_evaluator = dict(type='KittiMetric', ann_file=ann_file, metric='bbox')
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    config.val_cfg, config.test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
    config.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3))
    config.param_scheduler = None
    config.log_processor = dict(by_epoch=False, window_size=1)
    config.default_hooks = dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None)
    config.custom_hooks = []
    return config


def _heads(head) -> None:
    for limits in head.anchor_generator.ranges:
        limits[0], limits[1], limits[3], limits[4] = RANGE[0], RANGE[1], RANGE[3], RANGE[4]


def _second(model) -> None:
    model.data_preprocessor.voxel_layer.update(point_cloud_range=RANGE, max_voxels=(3000, 3000))
    if model.middle_encoder.type == 'PointPillarsScatter':
        model.voxel_encoder.point_cloud_range = RANGE
        model.middle_encoder.output_shape = [120, 120]
    else:
        model.middle_encoder.sparse_shape = [41, 384, 384]
    _heads(model.get('bbox_head') or model.rpn_head)


def _pv_rcnn(model) -> None:
    _second(model)
    model.points_encoder.update(point_cloud_range=RANGE, num_keypoints=128)
    model.train_cfg.rpn_proposal.update(nms_pre=200, nms_post=40, max_num=40)
    model.train_cfg.rcnn.sampler.num = 16
    model.test_cfg.rpn.update(nms_pre=100, nms_post=20, max_num=20)


def _point_rcnn(model) -> None:
    model.backbone.num_points = (256, 64, 32, 16)
    model.train_cfg.rpn.rpn_proposal.update(nms_pre=200, nms_post=40)
    model.train_cfg.rcnn.sampler.num = 16
    model.test_cfg.rpn.nms_cfg.update(nms_pre=100, nms_post=20)
    model.roi_head.bbox_roi_extractor.roi_layer.num_sampled_points = 128


_SHRINK = {'VoxelNet': _second, 'PointVoxelRCNN': _pv_rcnn, 'PointRCNN': _point_rcnn}
