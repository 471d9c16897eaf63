_base_ = [
    '../_base_/models/clip_vit-b32.py',
    '../_base_/datasets/lsmdc.py',
    '../_base_/schedules/centerclip-5e.py',
    '../_base_/retrieval_runtime.py',
]
