_base_ = './pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
