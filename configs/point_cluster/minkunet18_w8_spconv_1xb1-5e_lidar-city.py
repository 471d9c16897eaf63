_base_ = [
    '../_base_/datasets/lidar-city.py',
    '../_base_/models/minkunet_small.py',
    '../_base_/schedules/adamw-5e.py',
    '../_base_/default_runtime.py',
]

# Each class by the root of its rarity in the training streets (0.2 % of the points are traffic signs, 33 % road): in
# 800 steps the rare ones are not learned otherwise.
class_weight = [
    0.94, 4.9, 2.94, 1.71, 1.95, 3.55, 2.79, 4.65, 0.49, 1.4, 0.76, 3.11, 0.92, 1.7, 0.93, 2.34, 1.05, 3.21, 5.87
]  # fmt: skip
model = dict(decode_head=dict(loss_decode=dict(class_weight=class_weight)))
# One scan a step: twice the steps in the same time.
train_dataloader = dict(batch_size=1)
