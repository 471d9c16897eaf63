# The generated LiDAR city: python tools/prepare_lidar_city.py --out data/lidar_city
_base_ = './semantickitti_layout.py'

data_root = 'data/lidar_city/'
# The ids of objects, for regions='instance' of the loss.
keys = ['points', 'pts_semantic_mask', 'pts_instance_mask']
instances = [dict(type='clusterplug.LoadInstances'), *_base_.train_pipeline[2:-1], dict(_base_.pack, keys=keys)]
train_pipeline = [_base_.load_points, _base_.load_labels, *instances]
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
