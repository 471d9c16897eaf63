# Four real scans in two clusters: it shows that files and hooks fit, no more; use it with a folder of many scans.
_base_ = '../swav/swav_minkunet18_w16_spconv_1xb2-60e_semantickitti-scans.py'

num_samples, num_clusters = 4, 2
model = dict(
    embed='global',
    head=dict(num_prototypes=[num_clusters]),
    loss=dict(_delete_=True, type='clusterplug.DeepClusterLoss', num_samples=num_samples),
)
refresh = dict(
    type='clusterplug.ClusterRefreshHook',
    estimator=dict(type='KMeans', n_clusters=num_clusters, max_iter=10),
    table='loss_function.table',
    column='label_0',
    prototypes='head.prototypes.0',
    features='embed_samples',
    dataloader=dict(batch_size=2),
    interval=10,
)
custom_hooks = [refresh, dict(type='clusterplug.FreezeParamsHook', iters=10**9)]
