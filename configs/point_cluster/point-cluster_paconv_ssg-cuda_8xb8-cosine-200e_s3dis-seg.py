_base_ = './paconv_ssg-cuda_8xb8-cosine-200e_s3dis-seg.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
