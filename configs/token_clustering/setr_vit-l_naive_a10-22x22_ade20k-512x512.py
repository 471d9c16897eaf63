# 32 x 32 tokens become 22 x 22 after 10 of 24 blocks.
_base_ = 'mmseg::setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py'
custom_hooks = [dict(type='clusterplug.TokenClusteringHook', start=10, grid=(22, 22))]
