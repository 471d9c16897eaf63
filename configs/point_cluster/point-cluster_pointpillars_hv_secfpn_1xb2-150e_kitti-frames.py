# Fewer and faster subclasses than the defaults (40 a class, momentum 0.9999), which are meant for 40,000 steps.
_base_ = './pointpillars_hv_secfpn_1xb2-150e_kitti-frames.py'

loss = dict(type='clusterplug.PointClusterLoss', num_clusters=5, embed_dims=32, queue_len=16, momentum=0.99)
model = dict(_delete_=True, type='clusterplug.WithClustering', model=_base_.model, loss=loss)
custom_hooks = [dict(type='clusterplug.ClusterStatsHook', interval=10)]
