# The published recipe: three heads of 3,000 clusters, k-means before every epoch, prototypes never trained.
_base_ = '../swav/swav_resnet50_64xb64-amp-800e_in1k-2x224-6x96.py'

num_samples, num_clusters, num_heads = 1281167, 3000, 3
model = dict(
    head=dict(num_prototypes=[num_clusters] * num_heads),
    loss=dict(_delete_=True, type='clusterplug.DeepClusterLoss', num_samples=num_samples, num_heads=num_heads),
)
refresh = dict(
    type='clusterplug.ClusterRefreshHook',
    estimator=[dict(type='KMeans', n_clusters=num_clusters, max_iter=10)] * num_heads,
    table='loss_function.table',
    column=[f'label_{head}' for head in range(num_heads)],
    prototypes=[f'head.prototypes.{head}' for head in range(num_heads)],
    features='embed_samples',
)
custom_hooks = [refresh, dict(type='clusterplug.FreezeParamsHook', iters=10**9)]
# the authors train it without mixed precision
optim_wrapper = dict(type='OptimWrapper')
