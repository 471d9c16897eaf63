_base_ = './minkunet34v2_w32_spconv_8xb2-amp-laser-polar-mix-3x_semantickitti.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
