_base_ = './pointnet2_ssg_2xb16-cosine-50e_s3dis-seg.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
