_base_ = ['./minkunet18_w16_spconv_1xb2-400i_lidar-city.py']
# Fewer and faster subclasses than the defaults (40 a class, momentum 0.9999), which are meant for 80,000 steps.
model = dict(
    _delete_=True,
    type='clusterplug.WithClustering',
    model=_base_.model,
    loss=dict(
        type='clusterplug.PointClusterLoss', num_clusters=8, embed_dims=32, num_anchors_per_class=32, queue_len=16, momentum=0.99
    ),
)
custom_hooks = [dict(type='clusterplug.ClusterStatsHook', interval=20)]
