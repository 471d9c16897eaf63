# Mask R-CNN, FPN and schedule as the authors': AdamW, 12 epochs, steps after 8, 9 and 11.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    # init_cfg=dict(type='Pretrained', checkpoint=...) takes a file of tools/model_converters/fec.py
    backbone=dict(_delete_=True, type='clusterplug.FEC', arch='small', task='detection', init_cfg=None),
    neck=dict(in_channels=[32, 64, 196, 320]),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 9, 11], gamma=0.2),
]
auto_scale_lr = dict(base_batch_size=16)
