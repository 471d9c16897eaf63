_base_ = [
    '../_base_/datasets/lidar-city.py',
    '../_base_/models/minkunet_small.py',
    '../_base_/schedules/adamw-4e.py',
    '../_base_/default_runtime.py',
]

# Half the width of mmdet3d's smallest, and at most 20,000 voxels of a scan: about a second a step on 2 CPU cores.
model = dict(data_preprocessor=dict(max_voxels=20000))
