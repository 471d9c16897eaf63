# SPDX-License-Identifier: Apache-2.0
"""Grassmann, linear and cosine heads on a MinkUNet in the LiDAR city: mIoU, and transfer to classes not trained on.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/grassmann_city.py --city 2 --seeds 0 --dims 2 4 8
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/grassmann_city.py --page docs/benchmarks.md

The network learns 13 classes; the points of the other six are ignored. mIoU is that of the 13 on other streets.
"transfer" is the balanced accuracy of a logistic regression that tells the six apart, on frozen features: fitted on
voxels of the training streets, tested on other streets. The dimension is chosen on city 2, figures are of city 1.
Trainings are kept under --out, and what was measured in --ledger: an interrupted run goes on, and --only-print shows
the tables of what there is, in pairs by seed.
"""

import argparse
import functools
import statistics
import warnings
from pathlib import Path

import numpy as np
import torch
from _city_segmentation import LINEAR, ROOT, class_ious, features_of, settings, trained
from _gain_ledger import content_key_of, interval
from _seed_ledger import SeedLedger, sources, spread
from _timing import one_thread_each, publish

from clusterplug.registry import MODELS

GRASSMANN = ROOT / 'configs' / 'grassmann' / 'grassmann_minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
LEDGER = Path(__file__).with_suffix('.json')
UNSEEN = ('truck', 'bus', 'person', 'fence', 'pole', 'traffic-sign')


@MODELS.register_module(name='BenchmarkCosineHead')
class CosineHead(torch.nn.Linear):
    """Softmax over cosines, 25 times."""

    def __init__(self, in_channels, num_classes):
        super().__init__(in_channels, num_classes, bias=False)

    def forward(self, x):
        unit = torch.nn.functional.normalize
        return 25 * torch.nn.functional.linear(unit(x), unit(self.weight))


def config_of(head: str, seed: int, data: Path, folder: Path, steps: int):
    """The training with a head: 'linear', 'cosine' or 'Grassmann, n = 4'."""
    options = dict(unseen=UNSEEN, lr=None)
    if head.startswith('Grassmann'):
        config = settings(GRASSMANN, data, folder, steps, seed, **options)
        config.model.head.subspace_dim = int(head.rsplit(' ', 1)[1])
        return config
    config = settings(LINEAR, data, folder, steps, seed, **options)
    if head == 'cosine':
        config.model = dict(
            type='clusterplug.SwapClassifier', model=config.model, head=dict(type='clusterplug.BenchmarkCosineHead')
        )
    return config


def measure(config, steps: int) -> dict[str, float]:
    """mIoU of the classes seen, and transfer to the others, in per cent."""
    names = list(config.class_names)
    model, test = trained(config, steps)
    ious = class_ious(model, test)
    seen = [k for k, name in enumerate(names) if name not in UNSEEN]
    transfer = probe(model, config, [names.index(name) for name in UNSEEN])
    return dict(miou=100 * float(np.nanmean(ious[seen])), transfer=100 * transfer)


def probe(model, config, classes: list[int]) -> float:
    """Balanced accuracy of a logistic regression for classes that the model has not seen."""
    from mmengine.runner import Runner
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = []
    for split in ('train', 'test'):
        loader = config[f'{split}_dataloader'].copy()
        loader.dataset = dict(loader.dataset, pipeline=config.test_pipeline, test_mode=False)
        loader.dataset['metainfo'] = dict(config.metainfo)
        loader.sampler = dict(type='DefaultSampler', shuffle=False)
        parts.append(features_of(model, Runner.build_dataloader(loader), classes, 2000, 0))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(*parts[0])
    return float(balanced_accuracy_score(parts[1][1], found.predict(parts[1][0])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/grassmann_city'), help='where everything is kept')
    parser.add_argument('--city', type=int, choices=(1, 2), default=1, help='2 to choose the dimension, 1 to report')
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(3)))
    parser.add_argument('--dims', type=int, nargs='+', default=[4], help='of the subspaces')
    parser.add_argument('--steps', type=int, default=200, help='of each training, one scan a step')
    parser.add_argument('--columns', type=int, default=128, help='firings in a turn of the scanner')
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of what was measured (default: %(default)s)')
    parser.add_argument('--only-print', action='store_true', help='train nothing; the table of what is in the ledger')
    parser.add_argument('--page', help='page whose part between the marks "grassmann_city" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    from clusterplug import compat
    from clusterplug.datasets.lidar_city import generate_lidar_city

    compat.apply_all()
    data = options.out / f'city{options.city}'
    ledger = SeedLedger(options.ledger, options.only_print, ('mmdet3d', 'spconv', 'scikit-learn'))
    if not options.only_print:
        generate_lidar_city(data, num_train=100, num_val=30, seed=options.city - 1, columns=options.columns)
    heads = ['linear', 'cosine', *(f'Grassmann, n = {dim}' for dim in options.dims)]
    results: dict[str, dict[int, dict]] = {head: {} for head in heads}
    with one_thread_each():
        for seed in options.seeds:
            for head in heads:
                folder = options.out / f'city{options.city}-{options.steps}-{head.replace(", n = ", "-")}-{seed}'
                config = config_of(head, seed, data, folder, options.steps)
                key = dict(
                    city=options.city, columns=options.columns, steps=options.steps, head=head, seed=seed,
                    content=content_key_of(config),
                )  # fmt: skip
                entry = ledger.measured(key, functools.partial(measure, config, options.steps))
                if entry is not None:
                    results[head][seed] = entry
    lines = lines_of(results, f'{options.steps} steps, city {options.city}')
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'grassmann_city', ['', *lines, ''])


def lines_of(results: dict[str, dict[int, dict]], title: str) -> list[str]:
    """The table: each head, and its difference to the linear one over the seeds that both have."""
    lines = [
        f'| Head of MinkUNet18-W8, {title} | seeds | mIoU of 13 classes (sd) | against linear '
        '| transfer to 6 classes (sd) | against linear |',
        '|---|---|---|---|---|---|',
    ]
    for head, found in results.items():
        cells = []
        for name in ('miou', 'transfer'):
            shared = sorted(set(found) & set(results['linear']))
            differences = [found[seed]['found'][name] - results['linear'][seed]['found'][name] for seed in shared]
            low, high = interval(differences)
            cells.append(spread((entry['found'][name] for entry in found.values()), 1))
            cells.append(
                f'{statistics.mean(differences):+.1f} ({low:+.1f} to {high:+.1f})'
                if head != 'linear' and len(shared) > 1
                else ''
            )
        lines.append(f'| {head} | {len(found)} | {" | ".join(cells)} |')
    return [*lines, '', *sources(entry for found in results.values() for entry in found.values())]


if __name__ == '__main__':
    main()
