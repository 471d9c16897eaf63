# SimCLR over whole scans in batches of eight, no two of one cluster of scans: their own embeddings, clustered before
# every epoch. One embedding a scan; regions of one scan are too much alike to be each other's negatives.
_base_ = '../swav/swav_minkunet18_w8_spconv_1xb2-5e_lidar-city.py'

model = dict(
    embed='global',
    head=dict(
        _delete_=True, type='clusterplug.ProjectionHead', in_channels=24, hidden_channels=[128], out_channels=32,
        norm='batch',
    ),
    loss=dict(_delete_=True, type='clusterplug.NTXentLoss', temperature=0.1),
)  # fmt: skip
point_views = dict(type='clusterplug.PointViews', max_points=10000)
train_dataloader = dict(
    batch_size=8,
    drop_last=False,
    batch_sampler=dict(type='clusterplug.ClusterDisjointBatchSampler', labels=None),
    dataset=dict(pipeline=[_base_.load_points, point_views, _base_.pack_views]),
)
refresh = dict(
    type='clusterplug.ClusterRefreshHook', estimator=dict(type='KMeans', n_clusters=12), sampler=True,
    features='embed_samples', dataloader=dict(batch_size=4),
)  # fmt: skip
custom_hooks = [refresh]
