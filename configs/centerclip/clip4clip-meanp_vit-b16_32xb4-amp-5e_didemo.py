_base_ = [
    '../_base_/models/clip_vit-b16.py',
    '../_base_/datasets/didemo.py',
    '../_base_/schedules/centerclip-5e.py',
    '../_base_/retrieval_runtime.py',
]

train_dataloader = dict(batch_size=4)
