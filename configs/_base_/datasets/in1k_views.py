# ImageNet-1k as folders of files, data/imagenet/{train,val}/<class>/*.JPEG: 2 x 224 + 6 x 96 without labels. The probes
# fit one half of the validation images and test the other.

crops = dict(type='clusterplug.MultiCrop', num_crops=(2, 6), sizes=(224, 96), scales=((0.14, 1.0), (0.05, 0.14)))
pack_views = dict(type='clusterplug.PackViews')
# SwAV's std, which is not ImageNet's 58.395, 57.12, 57.375
preprocessor = dict(
    type='clusterplug.MultiViewPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.14, 57.12, 57.375]
)

train_dataloader = dict(
    batch_size=64, num_workers=10, persistent_workers=True, drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='clusterplug.ImageFolder', data_root='data/imagenet/train', pipeline=[
        dict(type='LoadImageFromFile'), crops, pack_views,
    ]),
)  # fmt: skip
val_dataloader = dict(
    batch_size=64, num_workers=4, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='clusterplug.ImageFolder', data_root='data/imagenet/val', labels=True, pipeline=[
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(100000, 256), keep_ratio=True),
        dict(type='CenterCrop', crop_size=224), pack_views,
    ]),
)  # fmt: skip
val_evaluator = [dict(type='clusterplug.LinearProbe'), dict(type='clusterplug.NearestNeighborProbe')]
