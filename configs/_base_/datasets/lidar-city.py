# The generated LiDAR city: python tools/prepare_lidar_city.py --out data/lidar_city
_base_ = './semantickitti_layout.py'

data_root = 'data/lidar_city/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
