# Two views of each scan of the generated LiDAR city, without labels; the probes see labeled points of validation scans.
_base_ = './lidar-city.py'

point_views = dict(type='clusterplug.PointViews', regions='cells', region_size=2.0, num_regions=256, max_points=30000)
pack_views = dict(type='clusterplug.PackViews')
still = dict(num_views=1, crop=(1, 1), drop=(0, 0), rot_range=(0, 0), scale_range=(1, 1), flip=0, jitter=0)
train_dataloader = dict(dataset=dict(pipeline=[_base_.load_points, point_views, pack_views]))
val_pipeline = [
    *_base_.test_pipeline[:-1], dict(type='clusterplug.PointViews', num_matches=2000, **still), pack_views,
]  # fmt: skip
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='clusterplug.LinearProbe', ignore_index=19),
    dict(type='clusterplug.NearestNeighborProbe', ignore_index=19),
]  # fmt: skip
test_evaluator = val_evaluator
