_base_ = './pointnet2_ssg_2xb16-cosine-200e_scannet-seg.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
