# SPDX-License-Identifier: Apache-2.0
"""Does a network gain by scans of a partition tree? MinkUNets on equally many scans drawn at random and by the tree.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/synthesis_training.py --minutes 11    # as often as needed
    ... --page docs/benchmarks.md                                                          # the table

Three arms a seed, with the same network, number of scans and steps: scenes drawn with the shares of a normal year
(year), drawn with even shares (even), and from a tree over weather and street whose other attributes have the shares of
that year (tree). All are tested on one city that covers weather and street evenly, and on its rare conditions alone.
Cities and trainings are kept under --out, so a call goes on where the last one ended. A training takes about a minute.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from _timing import describe_machine, publish
from synthesis import YEAR, markdown, spread

from clusterplug.datasets.synthesis import LidarCityGenerator, PartitionTree, write_lidar_city

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
ARMS = {'year': 'drawn, shares of a year', 'even': 'drawn, even shares', 'tree': 'by the tree'}
RARE = ('snow', 'fog')
# The attributes that the tree divides have even shares in its leaves; the others those of a year, in all arms.
DIVIDED = ('weather', 'street')


def scenes_of(arm: str, number: int, seed: int) -> list[dict]:
    """Return the training scenes of one arm."""
    even = {name: shares for name, shares in YEAR.items() if name not in DIVIDED}
    if arm != 'tree':
        generator = LidarCityGenerator(weights=YEAR if arm == 'year' else even)
        return generator.draw(number, np.random.default_rng([seed, 1]))
    generator = LidarCityGenerator(weights=YEAR)
    tree = PartitionTree(len(DIVIDED), n_pivots=24, seed=seed).grow(generator)
    return tree.generate(generator, -(-number // len(tree.leaves))).samples[:number]


def test_scenes(number_a_leaf: int) -> list[dict]:
    """Return scenes that cover weather and street evenly."""
    generator = LidarCityGenerator(weights={name: shares for name, shares in YEAR.items() if name not in DIVIDED})
    tree = PartitionTree(len(DIVIDED), n_pivots=24, seed=99).grow(generator)
    return tree.generate(generator, number_a_leaf).samples


def per_condition(run, scenes) -> dict[str, float]:
    """Mean IoU over all scenes, over the rare ones and over the others."""
    from mmengine.runner.checkpoint import load_checkpoint

    from clusterplug.cli import build_runner, load_config

    config = load_config(run.config, dict(run.options), str(Path(run.work_dir) / 'reading'))
    config.visualizer.name, config.log_level = f'reading {run.work_dir}', 'WARNING'
    runner = build_runner(config)
    last = Path((Path(run.work_dir) / 'last_checkpoint').read_text().strip()).name
    load_checkpoint(runner.model, str(Path(run.work_dir) / last), map_location='cpu', logger='silent')
    matrices = {name: np.zeros((20, 20), np.int64) for name in ('all', 'rare', 'others')}
    for scene, data in zip(scenes, runner.build_dataloader(config.test_dataloader), strict=True):
        (found,) = runner.model.eval().test_step(data)
        predicted = found.pred_pts_seg.pts_semantic_mask.cpu().numpy().clip(0, 19)
        truth = found.eval_ann_info['pts_semantic_mask'].clip(0, 19)
        matrix = np.bincount(truth * 20 + predicted, minlength=400).reshape(20, 20)
        for name in ('all', 'rare' if scene['weather'] in RARE else 'others'):
            matrices[name] += matrix
    result = {}
    for name, matrix in matrices.items():
        matrix = matrix[:19, :19]
        union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
        result[name] = 100 * float((np.diag(matrix)[union > 0] / union[union > 0]).mean())
    return result


def trained(arm: str, seed: int, test: list[dict], options) -> dict[str, float]:
    """Return the mean IoUs of one training, from its file or by training."""
    from clusterplug.experiments import Run
    from clusterplug.experiments.run import train_and_test

    out = options.out.resolve()
    file = out / f'{arm}{seed}.json'
    if file.is_file():
        return json.loads(file.read_text())
    city = dict(columns=options.columns, scans_per_scene=1, progress=False)
    write_lidar_city(test[:1], out / 'test', val_scenes=test, seed=10_000, **city)
    root = write_lidar_city(scenes_of(arm, options.scenes, seed), out / f'city-{arm}{seed}', seed=seed, **city)
    settings = {'train_dataloader.dataset.data_root': str(root), 'randomness.seed': seed}
    settings |= {f'{split}_dataloader.dataset.data_root': str(out / 'test') for split in ('val', 'test')}
    settings |= {'train_cfg': dict(max_epochs=options.epochs, val_interval=options.epochs + 1)}
    settings |= {f'param_scheduler.1.{name}': options.epochs for name in ('T_max', 'end')}
    run = Run(str(CONFIG), settings, out / f'run-{arm}{seed}')
    train_and_test(run)
    found = per_condition(run, test)
    file.write_text(json.dumps(found))
    return found


def table(results: dict, seeds: int, scenes: int, options) -> list[str]:
    from scipy.stats import ttest_rel

    arms = [arm for arm in ARMS if all(f'{arm}{seed}' in results for seed in range(seeds))]
    lines = [('test scenes', *(f'{ARMS[arm]}, mIoU' for arm in arms),
              *(f'tree - {arm}, paired' for arm in arms if arm != 'tree'))]  # fmt: skip
    for name in ('all', 'rare', 'others'):
        of = {arm: np.array([results[f'{arm}{seed}'][name] for seed in range(seeds)]) for arm in arms}
        gains = [f'{spread(of["tree"] - of[arm], 1)} (p {ttest_rel(of["tree"], of[arm]).pvalue:.3f})'
                 for arm in arms if arm != 'tree']  # fmt: skip
        lines.append((name, *(spread(values, 1) for values in of.values()), *gains))
    return [
        f'MinkUNet18-W8, {options.scenes} scans of {options.columns} columns a training, {options.epochs} epochs, '
        f'{seeds} paired seeds; {scenes} test scenes, weather and street evenly; rare: {", ".join(RARE)}.',
        '',
        *markdown(lines),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--arms', nargs='+', choices=list(ARMS), default=list(ARMS))
    parser.add_argument('--scenes', type=int, default=36, help='training scenes')
    parser.add_argument('--test-scenes', type=int, default=2, help='test scenes of each weather and street')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--columns', type=int, default=512, help='firings of a turn')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin no training that would end later')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/synthesis'), help='where cities and trainings are')
    parser.add_argument('--page', help='page whose part between the marks "synthesis_training" is replaced')
    options = parser.parse_args()
    from clusterplug import compat

    compat.apply_all()
    options.out.mkdir(parents=True, exist_ok=True)
    test, begin, longest, results = test_scenes(options.test_scenes), time.time(), 0.0, {}
    for seed in range(options.seeds):
        for arm in options.arms:
            started = time.time()
            if started - begin + longest > options.minutes * 60:
                print(f'{len(results)} trainings are there; call again for the others')
                return
            results[f'{arm}{seed}'] = trained(arm, seed, test, options)
            longest = max(longest, time.time() - started)
            print(arm, seed, results[f'{arm}{seed}'], f'{time.time() - started:.0f} s', flush=True)
    lines = [*describe_machine(('numpy', 'open3d')), '', *table(results, options.seeds, len(test), options)]
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'synthesis_training', ['', *lines, ''])


if __name__ == '__main__':
    main()
