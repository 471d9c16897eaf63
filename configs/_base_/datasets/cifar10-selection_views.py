# 5,000 training images of CIFAR-10 without labels; the probes fit them and test 2,000 others.

images = '{{$CLUSTERPLUG_DATA:data}}/images/cifar10_small.npz'
crops = dict(
    type='clusterplug.MultiCrop', num_crops=(2, 2), sizes=(32, 20), scales=((0.3, 1.0), (0.1, 0.3)),
    color_jitter=(0.4, 0.4, 0.4, 0.1), blur_prob=0.0, channel_order='rgb',
)  # fmt: skip
pack_views = dict(type='clusterplug.PackViews', channel_order='rgb')
preprocessor = dict(type='clusterplug.MultiViewPreprocessor', mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7])

train_set = dict(type='clusterplug.ImageArrays', ann_file=images, images='X_train', labels='y_train')
test_set = dict(type='clusterplug.ImageArrays', ann_file=images, images='X_test', labels='y_test', split='test')
train_dataloader = dict(
    batch_size=256, num_workers=1, persistent_workers=False, drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True), dataset=dict(**train_set, pipeline=[crops, pack_views]),
)  # fmt: skip
val_dataloader = dict(
    batch_size=250, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ConcatDataset', datasets=[
        dict(**train_set, split='train', pipeline=[pack_views]), dict(**test_set, pipeline=[pack_views]),
    ]),
)  # fmt: skip
val_evaluator = [dict(type='clusterplug.LinearProbe'), dict(type='clusterplug.NearestNeighborProbe')]
