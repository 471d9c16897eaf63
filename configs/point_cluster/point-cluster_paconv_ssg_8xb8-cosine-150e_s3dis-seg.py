_base_ = './paconv_ssg_8xb8-cosine-150e_s3dis-seg.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
