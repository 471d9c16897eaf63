# One embedding a scan (labels belong to samples of the data set); num_samples is the number of scans for training of
# tools/prepare_lidar_city.py with its defaults.
_base_ = '../swav/swav_minkunet18_w8_spconv_1xb2-5e_lidar-city.py'

num_heads = 3
model = dict(
    embed='global',
    head=dict(num_prototypes=[16] * num_heads),
    loss=dict(_delete_=True, type='clusterplug.DeepClusterLoss', num_samples=160, num_heads=num_heads),
)
refresh = dict(
    type='clusterplug.ClusterRefreshHook',
    estimator=[dict(type='KMeans', n_clusters=16, max_iter=10)] * num_heads,
    table='loss_function.table',
    column=[f'label_{head}' for head in range(num_heads)],
    prototypes=[f'head.prototypes.{head}' for head in range(num_heads)],
    features='embed_samples',
    dataloader=dict(batch_size=4),
)
custom_hooks = [refresh, dict(type='clusterplug.FreezeParamsHook', iters=10**9)]
