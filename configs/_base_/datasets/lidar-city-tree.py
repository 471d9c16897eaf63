# The LiDAR city of a partition tree:
# python tools/synthesize.py configs/synthesis/lidar-city_weather-tree.py --out data/lidar_city_tree
_base_ = './semantickitti_layout.py'

data_root = 'data/lidar_city_tree/city/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
