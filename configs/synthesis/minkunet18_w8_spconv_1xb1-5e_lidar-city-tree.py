_base_ = [
    '../_base_/datasets/lidar-city-tree.py',
    '../_base_/models/minkunet_small.py',
    '../_base_/schedules/adamw-5e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=1)
