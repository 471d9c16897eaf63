_base_ = './pv_rcnn_8xb2-80e_kitti-3d-3class.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
