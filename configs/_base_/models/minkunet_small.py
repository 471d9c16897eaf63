# mmdet3d's MinkUNet18 with spconv and half the width of its smallest standard form (W16: 16-128, 128-48).
model = dict(
    type='MinkUNet',
    data_preprocessor=dict(
        type='Det3DDataPreprocessor',
        voxel=True,
        voxel_type='minkunet',
        batch_first=True,
        max_voxels=80000,
        voxel_layer=dict(
            max_num_points=-1,
            point_cloud_range=[-100, -100, -20, 100, 100, 20],
            voxel_size=[0.2, 0.2, 0.2],
            max_voxels=(-1, -1),
        ),
    ),
    backbone=dict(
        type='MinkUNetBackbone',
        in_channels=4,
        num_stages=4,
        base_channels=8,
        encoder_channels=[8, 16, 32, 64],
        encoder_blocks=[2, 2, 2, 2],
        decoder_channels=[64, 32, 24, 24],
        decoder_blocks=[2, 2, 2, 2],
        block_type='basic',
        sparseconv_backend='spconv',
    ),
    decode_head=dict(
        type='MinkUNetHead',
        channels=24,
        num_classes=19,
        dropout_ratio=0,
        loss_decode=dict(type='mmdet.CrossEntropyLoss', avg_non_ignore=True),
        ignore_index=19,
    ),
    train_cfg=dict(),
    test_cfg=dict(),
)
