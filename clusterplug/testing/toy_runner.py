# SPDX-License-Identifier: Apache-2.0
"""A real mmengine Runner with a real mmdet3d MinkUNet (spconv), small enough for a test on one CPU core."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

_RUNS = itertools.count()


def tiny_config(
    work_dir: str | Path,
    data_root: str | Path,
    *,
    wrap: Callable[[dict], dict] | None = None,
    max_epochs: int = 2,
    max_iters: int | None = None,
    hooks: Sequence[dict] = (),
    seed: int = 0,
    **options,
):
    """The config of ``build_tiny_runner``, for tests that change it or write it to a file.

    Args:
        work_dir: Where logs and checkpoints go.
        data_root: What ``write_tiny_semantickitti`` returned.
        wrap: Takes the model config of the plain segmentor, returns the one to be trained.
        max_epochs: Epochs of an ``EpochBasedTrainLoop``.
        max_iters: When given, iterations of an ``IterBasedTrainLoop`` instead.
        hooks: Configs of custom hooks.
        seed: Seed of the weights and of the order of the scans.
        **options: Keys of the config to replace, in dotted form with ``__`` for the dot
            (``train_dataloader__batch_size=1``).

    Returns:
        mmengine.config.Config: Complete; no random augmentation, so that a resumed run repeats the numbers.
    """
    from mmengine.config import Config

    by_epoch = max_iters is None
    name = f'tiny_{next(_RUNS)}'  # mmengine shares loggers and message hubs between Runners of one name
    loop = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
    if not by_epoch:
        loop = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
    model = tiny_model()
    config = Config(dict(
        default_scope='mmdet3d', work_dir=str(work_dir), experiment_name=name, log_level='WARNING',
        model=wrap(model) if wrap else model,
        train_dataloader=_dataloader(data_root, 'train', seed), train_cfg=loop,
        val_dataloader=_dataloader(data_root, 'val', seed), val_cfg=dict(type='ValLoop'),
        test_dataloader=_dataloader(data_root, 'val', seed), test_cfg=dict(type='TestLoop'),
        val_evaluator=dict(type='SegMetric'), test_evaluator=dict(type='SegMetric'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)],
        default_hooks=dict(
            timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=1),
            param_scheduler=dict(type='ParamSchedulerHook'), sampler_seed=dict(type='DistSamplerSeedHook'),
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=by_epoch),
        ),
        custom_hooks=list(hooks), log_processor=dict(type='LogProcessor', window_size=1, by_epoch=by_epoch),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')], name=name),
        randomness=dict(seed=seed), launcher='none',
        env_cfg=dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo')),
    ))  # fmt: skip
    config.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return config


def build_tiny_runner(work_dir: str | Path, data_root: str | Path, **options):
    """Build (do not start) the Runner of ``tiny_config``, which takes the same options.

    Four scans in batches of two: two iterations an epoch, about 0.1 s each. ``runner.train()`` trains and validates,
    ``runner.test()`` tests.

    Args:
        work_dir: Where logs and checkpoints go.
        data_root: What ``write_tiny_semantickitti`` returned.
        **options: See ``tiny_config``.

    Returns:
        mmengine.runner.Runner: With ``clusterplug.compat`` applied.
    """
    from mmengine.runner import Runner

    from clusterplug import compat

    compat.apply_all()
    return Runner.from_cfg(tiny_config(work_dir, data_root, **options))


def tiny_model(num_classes: int = 19) -> dict:
    """Config of a MinkUNet with 8 channels and 0.5 m voxels."""
    return dict(
        type='MinkUNet',
        data_preprocessor=dict(
            type='Det3DDataPreprocessor', voxel=True, voxel_type='minkunet', batch_first=True, max_voxels=None,
            voxel_layer=dict(
                max_num_points=-1, point_cloud_range=[-100, -100, -20, 100, 100, 20], voxel_size=[0.5, 0.5, 0.5],
                max_voxels=(-1, -1),
            ),
        ),
        backbone=dict(
            type='MinkUNetBackbone', in_channels=4, num_stages=2, base_channels=8, encoder_channels=[8, 16],
            encoder_blocks=[1, 1], decoder_channels=[16, 8], decoder_blocks=[1, 1], block_type='basic',
            sparseconv_backend='spconv',
        ),
        decode_head=dict(
            type='MinkUNetHead', channels=8, num_classes=num_classes, dropout_ratio=0, ignore_index=num_classes,
            loss_decode=dict(type='mmdet.CrossEntropyLoss', avg_non_ignore=True),
        ),
        train_cfg=dict(), test_cfg=dict(),
    )  # fmt: skip


def _dataloader(data_root: str | Path, split: str, seed: int) -> dict:
    from mmdet3d.datasets import SemanticKittiDataset

    pipeline = [
        dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
        dict(
            type='LoadAnnotations3D', with_bbox_3d=False, with_label_3d=False, with_seg_3d=True,
            seg_3d_dtype='np.int32', seg_offset=2**16, dataset_type='semantickitti',
        ),
        dict(type='PointSegClassMapping'),
        dict(type='Pack3DDetInputs', keys=['points', 'pts_semantic_mask']),
    ]  # fmt: skip
    classes = SemanticKittiDataset.METAINFO['classes']
    return dict(
        batch_size=2 if split == 'train' else 1, num_workers=0, persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train', seed=seed),
        dataset=dict(
            type='SemanticKittiDataset', data_root=str(data_root), ann_file=f'semantickitti_infos_{split}.pkl',
            pipeline=pipeline, modality=dict(use_lidar=True, use_camera=False), ignore_index=19,
            test_mode=split != 'train',
            metainfo=dict(classes=classes, seg_label_mapping=LABEL_MAPPING, max_label=259),
        ),
    )  # fmt: skip


# SemanticKITTI's raw label -> one of its 19 training classes; 19 is "ignore".
LABEL_MAPPING = {
    0: 19, 1: 19, 10: 0, 11: 1, 13: 4, 15: 2, 16: 4, 18: 3, 20: 4, 30: 5, 31: 6, 32: 7, 40: 8, 44: 9, 48: 10, 49: 11,
    50: 12, 51: 13, 52: 19, 60: 8, 70: 14, 71: 15, 72: 16, 80: 17, 81: 18, 99: 19, 252: 0, 253: 6, 254: 5, 255: 7,
    256: 4, 257: 4, 258: 3, 259: 4,
}  # fmt: skip
