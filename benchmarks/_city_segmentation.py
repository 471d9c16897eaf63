# SPDX-License-Identifier: Apache-2.0
"""Short trainings of a small MinkUNet on generated streets, kept on disk, and what is measured of them."""

from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
LINEAR = ROOT / 'configs' / 'point_cluster' / 'minkunet18_w8_spconv_1xb1-5e_lidar-city.py'


def settings(config, data: Path, folder: Path, steps: int, seed: int, *, lr: float | None = None, unseen=()):
    """The config of a short training: so many steps of one scan, one cosine, classes of ``unseen`` ignored."""
    from clusterplug.cli import load_config

    found = load_config(str(config), None, str(folder))
    mapping = dict(found.labels_map)
    for raw, name in mapping.items():
        if name < 19 and found.class_names[name] in unseen:
            mapping[raw] = 19
    for split in ('train', 'val', 'test'):
        loader = found[f'{split}_dataloader']
        loader.dataset.data_root = str(data.resolve())
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.metainfo = dict(found.metainfo, seg_label_mapping=mapping)
    found.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    shorten(found, folder, steps, seed)
    found.default_hooks.pop('visualization', None)
    if lr is not None:
        found.optim_wrapper.optimizer.lr = lr
    return found


def shorten(found, folder: Path, steps: int, seed: int) -> None:
    """Make of a config a training of so many steps, with one cosine, one checkpoint at its end and no validation."""
    found.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=steps + 1)
    found.val_dataloader = found.val_cfg = found.val_evaluator = None
    found.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=0, T_max=steps, eta_min=1e-5),
    ]
    found.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=steps, max_keep_ckpts=1)
    found.log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
    found.randomness = dict(seed=seed)
    found.visualizer.name = str(folder)


def trained(config, steps: int, start: Path | None = None):
    """The model of a config after its training, from its work folder where that holds it."""
    from mmengine.runner.checkpoint import load_checkpoint

    from clusterplug.cli import build_runner

    config.log_level = 'WARNING'
    if start is not None:
        config.load_from = str(start)
    runner = build_runner(config)
    last = Path(config.work_dir) / f'iter_{steps}.pth'
    if last.is_file():
        load_checkpoint(runner.model, str(last), map_location='cpu', logger='silent')
    else:
        runner.train()
    return runner.model.eval(), runner.build_dataloader(config.test_dataloader)


@torch.no_grad()
def class_ious(model, loader, limit: int | None = None) -> np.ndarray:
    """(19,) IoU of each class over the points of all scans; NaN where no point has the class."""
    hits = np.zeros((19, 19), np.int64)
    for number, batch in enumerate(loader):
        if number == limit:
            break
        for sample in model.test_step(batch):
            guess = sample.pred_pts_seg.pts_semantic_mask.cpu().numpy()
            true = np.asarray(sample.eval_ann_info['pts_semantic_mask'])
            known = true < 19
            hits += np.bincount(19 * true[known] + guess[known], minlength=361).reshape(19, 19)
    union = hits.sum(0) + hits.sum(1) - hits.diagonal()
    return np.where(hits.sum(1) > 0, hits.diagonal() / np.maximum(union, 1), np.nan)


@torch.no_grad()
def features_of(model, loader, classes: list[int], most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the classifier's input and labels: at most ``most`` voxels of each class."""
    rows = {name: [] for name in classes}
    for batch in loader:
        data = model.data_preprocessor(batch, True)
        x = model.extract_feat(data['inputs'])
        labels = torch.cat([sample.gt_pts_seg.voxel_semantic_mask for sample in data['data_samples']])
        for name in classes:
            rows[name].append(x[labels == name].numpy())
    rng = np.random.default_rng(seed)
    found = {name: np.concatenate(parts) for name, parts in rows.items()}
    found = {name: part[rng.permutation(len(part))[:most]] for name, part in found.items()}
    return np.concatenate(list(found.values())), np.repeat(classes, [len(part) for part in found.values()])


def stays_in_rain(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) whether a point is still measured in rain, far ones seldom: of those at 15 m 37 % are."""
    return rng.random(len(points)) < np.exp(-np.linalg.norm(points[:, :3], axis=1) / 15)


def rain(root: Path, scans: list[Path], seed: int) -> None:
    """Take points from scans of a folder as rain does."""
    rng = np.random.default_rng(seed)
    for scan in scans:
        points = np.fromfile(scan, np.float32).reshape(-1, 4)
        kept = stays_in_rain(points, rng)
        points[kept].tofile(scan)
        file = scan.parents[1] / 'labels' / f'{scan.stem}.label'
        np.fromfile(file, '<u4')[kept].tofile(file)


def scans_of(root: Path, split: str) -> list[Path]:
    """Point files of a split, in the order of its annotation file."""
    import mmengine

    entries = mmengine.load(str(root / f'semantickitti_infos_{split}.pkl'))['data_list']
    return [root / entry['lidar_points']['lidar_path'] for entry in entries]


def class_points(root: Path, split: str, mapping: dict[int, int]) -> np.ndarray:
    """(19,) number of points of each class."""
    table = np.full(2**16, 19)
    table[list(mapping)] = list(mapping.values())
    counts = np.zeros(20, np.int64)
    for scan in scans_of(root, split):
        raw = np.fromfile(scan.parents[1] / 'labels' / f'{scan.stem}.label', '<u4') & 0xFFFF
        counts += np.bincount(table[raw], minlength=20)
    return counts[:19]
