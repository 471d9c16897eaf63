_base_ = './minkunet18_w16_spconv_8xb2-amp-15e_semantickitti-multiscan.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
