# 48 x 48 tokens become 32 x 32 after 12 of 24 blocks.
_base_ = 'mmseg::setr/setr_vit-l_naive_8xb1-80k_cityscapes-768x768.py'
custom_hooks = [dict(type='clusterplug.TokenClusteringHook', start=12, grid=(32, 32))]
