# 40 x 40 tokens become 28 x 28 after 10 of 24 blocks. mmsegmentation's config has 512 in its name and crops of 640.
_base_ = 'mmseg::segmenter/segmenter_vit-l_mask_8xb1-160k_ade20k-512x512.py'
custom_hooks = [dict(type='clusterplug.TokenClusteringHook', start=10, grid=(28, 28))]
