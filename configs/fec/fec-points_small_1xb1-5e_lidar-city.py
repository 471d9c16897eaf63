# Clustering layers in the place of sparse convolutions; everything else as the MinkUNet on the same streets.
_base_ = '../point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
model = dict(
    backbone=dict(_delete_=True, type='clusterplug.FECPoints', in_channels=4),
    decode_head=dict(channels=32),
)
optim_wrapper = dict(optimizer=dict(lr=0.003))
