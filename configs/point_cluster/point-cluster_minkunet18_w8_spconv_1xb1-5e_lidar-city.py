# Fewer and faster subclasses than the defaults (40 a class, momentum 0.9999), which are meant for 40,000 steps, more
# anchors, and objects that are assigned as one. The tap is the second stage of the decoder. See docs/benchmarks.md.
_base_ = './minkunet18_w8_spconv_1xb1-5e_lidar-city.py'

loss = dict(type='clusterplug.PointClusterLoss', num_clusters=8, embed_dims=32, queue_len=16, momentum=0.99)
loss.update(regions='instance', num_anchors_per_class=128, contrast=dict(max_negatives=1024))
tap = 'backbone.decoder.1.1'
model = dict(_delete_=True, type='clusterplug.WithClustering', model=_base_.model, embedding=tap, loss=loss)
custom_hooks = [dict(type='clusterplug.ClusterStatsHook', interval=10)]
