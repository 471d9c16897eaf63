# Semantic FPN as the authors': AdamW, 80,000 iterations, poly 0.9.
_base_ = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
model = dict(
    pretrained=None,
    # init_cfg=dict(type='Pretrained', checkpoint=...) takes a file of tools/model_converters/fec.py
    backbone=dict(_delete_=True, type='clusterplug.FEC', arch='small', task='segmentation', init_cfg=None),
    neck=dict(in_channels=[32, 64, 196, 320]),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(max_iters=80000, val_interval=8000)
