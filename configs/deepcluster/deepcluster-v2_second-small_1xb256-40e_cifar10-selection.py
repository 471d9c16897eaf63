# Three clusterings of five thousand images before every epoch: minutes on a CPU.
_base_ = '../swav/swav_second-small_1xb256-40e_cifar10-selection.py'

num_heads = 3
model = dict(
    head=dict(num_prototypes=[60] * num_heads),
    loss=dict(_delete_=True, type='clusterplug.DeepClusterLoss', num_samples=5000, num_heads=num_heads),
)
still = dict(**_base_.train_set, pipeline=[_base_.pack_views])
refresh = dict(
    type='clusterplug.ClusterRefreshHook',
    estimator=[dict(type='KMeans', n_clusters=60, max_iter=10, n_init=1)] * num_heads,
    table='loss_function.table',
    column=[f'label_{head}' for head in range(num_heads)],
    prototypes=[f'head.prototypes.{head}' for head in range(num_heads)],
    features='embed_samples',
    dataloader=dict(dataset=still, batch_size=250),
)
custom_hooks = [
    dict(type='clusterplug.EpochSeedHook'), refresh, dict(type='clusterplug.FreezeParamsHook', iters=10**9),
]  # fmt: skip
