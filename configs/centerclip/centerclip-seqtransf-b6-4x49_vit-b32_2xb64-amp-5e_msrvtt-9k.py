_base_ = './centerclip-b6-4x49_vit-b32_2xb64-amp-5e_msrvtt-9k.py'

model = dict(head=dict(_delete_=True, type='clusterplug.SequenceTransformer'))
# Its blocks start as CLIP's: 1e-4, at which CLIP4Clip trains them, and not the 5e-3 of new weights.
optim_wrapper = dict(paramwise_cfg=dict(head_lr_mult=20))
