# SPDX-License-Identifier: Apache-2.0
"""Short trainings without labels on a selection of CIFAR-10, and what their frozen features tell of its classes."""

import os
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1] / 'configs'


class Method(NamedTuple):
    """A config and its passes over the 5,000 images: a minute or two of one core for each method."""

    config: str | None
    epochs: int = 0
    random_batches: bool = False  # in place of the batches that clusters are kept apart in


METHODS = {
    'pixels': Method(None),
    'random network': Method('swav/swav_second-small_1xb256-40e_cifar10-selection.py'),
    'SwAV': Method('swav/swav_second-small_1xb256-40e_cifar10-selection.py', 12),
    'DeepCluster-v2': Method('deepcluster/deepcluster-v2_second-small_1xb256-40e_cifar10-selection.py', 12),
    'SimLAP (with labels)': Method('simlap/simlap_second-small_1xb256-40e_cifar10-selection.py', 24),
    'G-SimCLR': Method('gsimclr/gsimclr_second-small_1xb64-40e_cifar10-selection.py', 24),
    'SimCLR (G-SimCLR in random batches)': Method(
        'gsimclr/gsimclr_second-small_1xb64-40e_cifar10-selection.py', 24, random_batches=True
    ),
}
# How many times the passes: five minutes of two cores for each method, and a quarter of the images with the long tail.
SETS = {'balanced': 1, 'balanced, longer': 5, 'long-tailed': 4}
COLUMNS = {'knn': '20-NN', 'linear': 'linear probe', 'kmeans': 'k-means', 'rank': 'effective rank'}


def wanted() -> list[tuple[str, str]]:
    """The (set, method) that tell something: what is not trained is the same however long the others are."""
    return [(part, name) for part in SETS for name in METHODS if METHODS[name].epochs or part != 'balanced, longer']


def configured(name: str, part: str, seed: int, folder: Path):
    """The config of a method as it is, but for its length, its seed, and the selection of the images."""
    from clusterplug.cli import load_config

    method = METHODS[name]
    config = load_config(str(ROOT / (method.config or METHODS['SwAV'].config)), None, str(folder))
    epochs = method.epochs * SETS[part]
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max(epochs, 1), val_interval=epochs + 1)
    for schedule in config.param_scheduler:
        schedule.T_max = epochs
    config.train_dataloader.num_workers = 0
    config.default_hooks.checkpoint.interval = max(epochs // 6, 1)
    config.randomness = dict(seed=seed)
    config.log_level, config.visualizer.name = 'ERROR', str(folder)
    if method.random_batches:
        config.train_dataloader.pop('batch_sampler')
        config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        config.custom_hooks = [hook for hook in config.custom_hooks if 'Refresh' not in hook.type]
    refresh = next((hook for hook in config.get('custom_hooks', []) if 'Refresh' in hook.type), None)
    if refresh is not None and 'interval' in refresh:
        refresh.interval = max(epochs // 4, 1)  # as often a training as the config does
    if part == 'long-tailed':
        subset = str(Path(os.environ.get('CLUSTERPLUG_DATA', 'data'), 'images', 'cifar10_imbalanced_index.npy'))
        config.train_dataloader.dataset.subset = subset
        config.val_dataloader.dataset.datasets[0].subset = subset
        if refresh is not None:
            refresh.dataloader.dataset.subset = subset
        if 'num_samples' in config.model.loss:
            config.model.loss.num_samples = 1242
    return config


def measured(name: str, part: str, seed: int, folder: Path) -> dict[str, float]:
    """Numbers of one method on one set; a training that was stopped goes on from its last checkpoint."""
    from clusterplug.cli import build_runner, go_on_from_newest

    config = configured(name, part, seed, folder)
    if METHODS[name].epochs:
        go_on_from_newest(config)
    runner = build_runner(config)
    if METHODS[name].epochs:
        runner.train()
    else:
        runner.model.init_weights()
    return numbers_of(*features_of(runner.model.eval(), runner.build_dataloader(config.val_dataloader), name))


@torch.no_grad()
def features_of(model, loader, name: str):
    """Features and labels of the images that are fitted, and of those that are tested."""
    rows = {'train': ([], []), 'test': ([], [])}
    for batch in loader:
        data = model.data_preprocessor(batch, False)
        samples = model.predict(data['inputs'], data['data_samples'])
        for image, sample in zip(data['inputs']['views'][0], samples, strict=True):
            rows[sample.split][0].append(image.flatten() if name == 'pixels' else sample.features[0])
            rows[sample.split][1].append(int(sample.gt_label))
    return [each for x, y in rows.values() for each in (torch.stack(x), torch.tensor(y))]


def numbers_of(x, y, test_x, test_y) -> dict[str, float]:
    """Percent right of two probes and of k-means on the test images, and the effective rank of the features."""
    from clusterplug.estimators import KMeans
    from clusterplug.evaluation import effective_rank, linear_probe, nearest_neighbor_probe
    from clusterplug.functional import clustering_accuracy

    clusters = KMeans(n_clusters=10, n_init=10, random_state=0).fit(F.normalize(test_x, dim=1).numpy()).labels_
    return {
        'knn': 100 * nearest_neighbor_probe(x, y, test_x, test_y).accuracy,
        'linear': 100 * linear_probe(x, y, test_x, test_y).accuracy,
        'kmeans': 100 * float(clustering_accuracy(test_y, torch.as_tensor(clusters))),
        'rank': effective_rank(test_x),
    }


def image_lines(cells: dict[tuple[str, str], list[dict]]) -> list[str]:
    """One table a set, from (set, method) -> numbers of each seed; what has none is called not measured."""
    lines = []
    for part, longer in SETS.items():
        head = f'{part}: percent right of 2,000 test images'
        lines += ['', f'| {head} | {" | ".join(COLUMNS.values())} | seeds |', '|---' * (len(COLUMNS) + 2) + '|']
        for name, method in METHODS.items():
            if (part, name) not in wanted():
                continue
            runs, epochs = cells.get((part, name), []), method.epochs * longer
            label = f'{name}, {epochs} epochs' if epochs else name
            shown = ' | '.join(spread([run[column] for run in runs]) for column in COLUMNS)
            lines.append(f'| {label} | {shown} | {len(runs)} |')
    return lines


def spread(values: list[float]) -> str:
    if not values:
        return 'not measured'
    deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.1f}{deviation}'
