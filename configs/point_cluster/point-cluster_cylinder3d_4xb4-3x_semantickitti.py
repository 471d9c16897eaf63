_base_ = './cylinder3d_4xb4-3x_semantickitti.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
