# 30 x 30 tokens become 20 x 20 after 14 of 24 blocks.
_base_ = [
    'mmseg::_base_/models/segmenter_vit-b16_mask.py',
    'mmseg::_base_/datasets/pascal_context.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
]
crop_size = (480, 480)
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(img_size=crop_size, embed_dims=1024, num_layers=24, num_heads=16),
    decode_head=dict(in_channels=1024, channels=1024, embed_dims=1024, num_heads=16, num_classes=60),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(320, 320)),
)
custom_hooks = [dict(type='clusterplug.TokenClusteringHook', start=14, grid=(20, 20))]
