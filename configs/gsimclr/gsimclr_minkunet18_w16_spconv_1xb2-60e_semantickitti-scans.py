# As gsimclr_minkunet18_w8_spconv_1xb8-5e_lidar-city.py on the four training scans, in pairs from two clusters.
_base_ = '../swav/swav_minkunet18_w16_spconv_1xb2-60e_semantickitti-scans.py'

model = dict(
    embed='global',
    head=dict(
        _delete_=True, type='clusterplug.ProjectionHead', in_channels=48, hidden_channels=[128], out_channels=32,
        norm='batch',
    ),
    loss=dict(_delete_=True, type='clusterplug.NTXentLoss', temperature=0.1),
)  # fmt: skip
train_dataloader = dict(
    batch_size=2, drop_last=False, batch_sampler=dict(type='clusterplug.ClusterDisjointBatchSampler', labels=None)
)
refresh = dict(
    type='clusterplug.ClusterRefreshHook', estimator=dict(type='KMeans', n_clusters=2), sampler=True, interval=5,
    features='embed_samples', dataloader=dict(batch_size=2),
)  # fmt: skip
custom_hooks = [refresh]
