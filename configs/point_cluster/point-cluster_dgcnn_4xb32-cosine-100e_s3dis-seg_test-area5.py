_base_ = './dgcnn_4xb32-cosine-100e_s3dis-seg_test-area5.py'

model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(type='clusterplug.PointClusterLoss'),
)
