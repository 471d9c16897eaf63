# SPDX-License-Identifier: Apache-2.0
"""MinkUNet pre-trained on unlabeled scans of the LiDAR city, then trained with few labels, against from scratch."""

from pathlib import Path

import numpy as np
import torch
from _city_segmentation import LINEAR, ROOT, class_ious, settings, trained
from _gain_ledger import interval

PRETRAINING = ROOT / 'configs' / 'swav' / 'swav_minkunet18_w8_spconv_1xb2-5e_lidar-city.py'


def few_labels(data: Path, folder: Path, steps: int, seed: int, num_labeled: int, num_test: int):
    """The config of a training on so many of the 140 scans, drawn by the seed, and of its test on other streets."""
    config = settings(LINEAR, data, folder, steps, seed)
    chosen = np.random.default_rng(seed).permutation(140)[:num_labeled]
    config.train_dataloader.dataset.indices = sorted(chosen.tolist())
    config.test_dataloader.dataset.indices = np.linspace(0, 149, num_test).round().astype(int).tolist()
    return config


def pretrained(data: Path, folder: Path, steps: int, seed: int):
    """The config of pre-training on all scans for training, without their labels."""
    config = settings(PRETRAINING, data, folder, steps, seed)
    config.train_dataloader.dataset.indices = 140
    return config


def pair(configs: dict, steps: int, pre_steps: int) -> dict[str, dict[str, float]]:
    """Test IoUs of both trainings, from scratch and from the pre-trained backbone, with the same scans and steps."""
    trained(configs['pretraining'], pre_steps)
    start = Path(configs['pretraining'].work_dir) / f'iter_{pre_steps}.pth'
    found = {}
    for name, begin in (('scratch', None), ('pretrained', start)):
        model, loader = trained(configs[name], steps, begin)
        if begin is not None:
            check_start(model, begin)
        ious = class_ious(model, loader)
        names = configs[name].class_names
        found[name] = {each: float(value) for each, value in zip(names, ious, strict=True) if not np.isnan(value)}
        found[name]['miou'] = float(np.nanmean(ious))
    return found


def probed(data: Path, folder: Path, steps: int, seed: int):
    """The config of pre-training with scans of other streets for its probes."""
    config = pretrained(data, folder, steps, seed)
    config.test_dataloader.dataset.indices = np.linspace(0, 149, 20).round().astype(int).tolist()
    return config


def frozen(config, pre_steps: int) -> dict[str, dict[str, float]]:
    """What both probes tell of points of other streets, from the backbone as it starts and as it was pre-trained."""
    from clusterplug.cli import build_runner

    trained(config, pre_steps)
    found = {}
    for name, start in (('random', None), ('pretrained', Path(config.work_dir) / f'iter_{pre_steps}.pth')):
        config.load_from, config.visualizer.name = start and str(start), f'{config.work_dir}-{name}'
        runner = build_runner(config)
        if start is None:
            runner.model.init_weights()
        found[name] = {key: float(value) for key, value in runner.test().items()}
    return found


def frozen_lines(cells: dict[int, list[dict]]) -> list[str]:
    """One line for each city and probe."""
    names = {'linear_probe/accuracy': 'linear probe', 'knn_probe/accuracy': '20-NN'}
    lines = [
        '| city, frozen features: points right, % | seeds | random network | pre-trained by SwAV | difference '
        '| 95 % interval |',
        '|---|---|---|---|---|---|',
    ]
    for city, found in cells.items():
        for key, name in names.items():
            if not found:
                lines.append(f'| {city}, {name} | 0 | not measured | not measured | | |')
                continue
            random, ours = ([each['found'][which][key] for each in found] for which in ('random', 'pretrained'))
            lines.append(f'| {city}, {name} | {len(found)} | {compared(random, ours)} |')
    return lines


def compared(before: list[float], after: list[float]) -> str:
    """Both means, the mean of the paired differences, and its interval."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    low, high = interval(differences)
    span = f'{low:+.1f} to {high:+.1f}' if len(differences) > 1 else 'one pair'
    return f'{np.mean(before):.1f} | {np.mean(after):.1f} | {np.mean(differences):+.1f} | {span}'


def check_start(model, start: Path) -> None:
    """Raise unless every weight of the backbone is in the file, as mmengine goes on silently without it."""
    weights = torch.load(start, map_location='cpu', weights_only=False)['state_dict']
    missing = [name for name in model.backbone.state_dict() if f'backbone.{name}' not in weights]
    if missing:
        raise ValueError(f'{start} has no {missing[:3]} of the backbone')


def scan_lines(pairs: dict[tuple[int, int], list[dict]]) -> list[str]:
    """One line for each (city, number of labeled scans)."""
    lines = [
        '| city, labeled scans | pairs | mIoU from scratch | pre-trained by SwAV | difference | 95 % interval |',
        '|---|---|---|---|---|---|',
    ]
    for (city, labeled), found in pairs.items():
        if not found:
            lines.append(f'| {city}, {labeled} | 0 | not measured | not measured | | |')
            continue
        scratch, ours = ([100 * each['found'][name]['miou'] for each in found] for name in ('scratch', 'pretrained'))
        lines.append(f'| {city}, {labeled} | {len(found)} | {compared(scratch, ours)} |')
    runs: dict[tuple, list[dict]] = {}
    for (city, _), found in pairs.items():
        for each in found:
            runs.setdefault((city, each['seed']), []).append(each['found'])
    # trainings from one backbone are no independent pairs: each backbone counts once
    means = [
        [100 * float(np.mean([found[name]['miou'] for found in each])) for each in runs.values()]
        for name in ('scratch', 'pretrained')
    ]
    if runs:
        lines.append(f'| all, mean of each pre-trained backbone | {len(runs)} | {compared(*means)} |')
    return lines
