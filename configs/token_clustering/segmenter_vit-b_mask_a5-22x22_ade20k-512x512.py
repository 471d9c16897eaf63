# 32 x 32 tokens become 22 x 22 after 5 of 12 blocks.
_base_ = 'mmseg::segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py'
custom_hooks = [dict(type='clusterplug.TokenClusteringHook', start=5, grid=(22, 22))]
