_base_ = [
    '../_base_/datasets/lidar-city.py',
    '../_base_/models/minkunet_small.py',
    '../_base_/schedules/adamw-4e.py',
    '../_base_/default_runtime.py',
]
