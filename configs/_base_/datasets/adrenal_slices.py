# AdrenalMNIST3D, 1,188 volumes of 64 x 64 x 64 for training without labels: 16 slices of each, in 32 x 32 pixels. The
# probes fit them and test 298 others.
volumes = '{{$CLUSTERPLUG_DATA:data}}/volumes/adrenalmnist3d_64.npz'
slices = dict(size=32, num_slices=16)
pack_views = dict(type='clusterplug.PackViews')
preprocessor = dict(type='clusterplug.MultiViewPreprocessor', mean=[20.0] * 3, std=[60.0] * 3)

train_set = dict(type='clusterplug.ImageArrays', ann_file=volumes, images='train_images', labels='train_labels')
test_set = dict(type='clusterplug.ImageArrays', ann_file=volumes, images='test_images', labels='test_labels')
train_dataloader = dict(
    batch_size=32, num_workers=1, persistent_workers=False, drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**train_set, pipeline=[dict(type='clusterplug.SliceViews', **slices), pack_views]),
)  # fmt: skip
still = [dict(type='clusterplug.SliceViews', num_views=1, augment=False, **slices), pack_views]
val_dataloader = dict(
    batch_size=32, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ConcatDataset', datasets=[
        dict(**train_set, split='train', pipeline=still), dict(**test_set, split='test', pipeline=still),
    ]),
)  # fmt: skip
val_evaluator = [dict(type='clusterplug.LinearProbe'), dict(type='clusterplug.NearestNeighborProbe')]
