# SPDX-License-Identifier: Apache-2.0
"""Any segmentation config of mmdet3d on tiny data: its files, its workers, its length and its widths, nothing else."""

from pathlib import Path

from clusterplug.testing.toy_data import write_tiny_semantickitti
from clusterplug.testing.toy_indoor import write_tiny_s3dis, write_tiny_scannet

_NUM_POINTS = 256  # of a patch of a room

# What makes a step of each backbone take seconds, in small; its head must follow.
_SMALL_BACKBONES = {
    'SPVCNNBackbone': dict(base_channels=8, encoder_channels=[8, 16, 24, 32], decoder_channels=[32, 24, 16, 16]),
    'MinkUNetBackboneV2': dict(
        base_channels=8, encoder_channels=[8, 16, 24, 32], encoder_blocks=[1] * 4,
        decoder_channels=[32, 24, 16, 16], decoder_blocks=[1] * 4,
    ),
    'Asymm3DSpconv': dict(base_channels=4),
    'PointNet2SASSG': dict(num_points=(64, 32, 16, 8)),
    'PointNet2SAMSG': dict(num_points=(64, 32, 16, 8)),
}  # fmt: skip
_CHANNELS = {'SPVCNNBackbone': 16, 'MinkUNetBackboneV2': 32 + 24 + 16, 'Asymm3DSpconv': 16}


def write_tiny_layouts(root: str | Path) -> Path:
    """Write a tiny data set in each layout that the hosts read: ``root``/semantickitti, /s3dis and /scannet.

    Args:
        root: Folder to write into.

    Returns:
        Path: ``root``.

    Example:
        >>> import tempfile
        >>> sorted(path.name for path in write_tiny_layouts(tempfile.mkdtemp()).iterdir())
        ['s3dis', 'scannet', 'semantickitti']
    """
    root = Path(root)
    write_tiny_semantickitti(root / 'semantickitti', num_points=1500)
    write_tiny_s3dis(root / 's3dis', num_rooms=4, num_points=1200)
    write_tiny_scannet(root / 'scannet', num_rooms=4, num_points=1200)
    return root


def tiny_host_config(config, root: str | Path, *, max_iters: int = 2, small: bool = True):
    """Put a config on the data of :func:`write_tiny_layouts`; two scenes a batch, iterations instead of epochs.

    Args:
        config (mmengine.config.Config): A whole config as mmdet3d ships them, with or without clustering; changed.
        root: What ``write_tiny_layouts`` returned.
        max_iters: Iterations of training.
        small: Cut the widths of backbones with which a step takes many seconds.

    Returns:
        mmengine.config.Config: ``config``. It has a test loop and no validation.
    """
    root = Path(root)
    for split in ('train', 'test'):
        loader = config[f'{split}_dataloader']
        loader.num_workers, loader.persistent_workers = 0, False
        loader.batch_size = 2 if split == 'train' else 1
        _LAYOUTS[loader.dataset.type](loader.dataset, root, split == 'train')
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
    config.test_cfg = dict(type='TestLoop')
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'param_scheduler'):
        config[key] = None
    config.log_processor = dict(by_epoch=False, window_size=1)
    config.default_hooks.checkpoint = None
    config.default_hooks.logger.interval = 1
    config.default_hooks.pop('visualization', None)
    model = config.model.get('model', config.model)  # of WithClustering, SwapClassifier
    if 'num_points' in (model.test_cfg or {}):
        model.test_cfg.update(num_points=_NUM_POINTS, batch_size=8)
    if small:
        model.backbone.update(_SMALL_BACKBONES.get(model.backbone.type, {}))
        model.decode_head.channels = _CHANNELS.get(model.backbone.type, model.decode_head.channels)
    return config


def _semantickitti(dataset, root: Path, training: bool) -> None:
    dataset.data_root = str(root / 'semantickitti')
    dataset.ann_file = f'semantickitti_infos_{"train" if training else "val"}.pkl'
    dataset.pop('data_prefix', None)


def _s3dis(dataset, root: Path, training: bool) -> None:
    dataset.data_root = str(root / 's3dis')
    if training:
        dataset.ann_files = ['s3dis_infos_Area_1.pkl']
        dataset.scene_idxs = ['seg_info/Area_1_resampled_scene_idxs.npy']
        _patches(dataset)


def _scannet(dataset, root: Path, training: bool) -> None:
    dataset.data_root = str(root / 'scannet')
    if training:
        dataset.scene_idxs = 'seg_info/train_resampled_scene_idxs.npy'
        _patches(dataset)


def _patches(dataset) -> None:
    for transform in dataset.pipeline:
        if transform.type == 'IndoorPatchPointSample':
            transform.update(num_points=_NUM_POINTS, min_unique_num=32)


_LAYOUTS = {'SemanticKittiDataset': _semantickitti, 'S3DISSegDataset': _s3dis, 'ScanNetSegDataset': _scannet}
