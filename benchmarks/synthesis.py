# SPDX-License-Identifier: Apache-2.0
"""Partition trees against random draws: how much of a space is covered, what it costs, and does training gain by it?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/synthesis.py --page docs/benchmarks.md    # coverage and speed
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/synthesis.py --only training --seeds 5 --scenes 72 --epochs 5

coverage: as many samples by a tree and drawn at random, from the same generator with the same bias. speed: routing,
growing, going on. training: a MinkUNet on equally many scans of the LiDAR city, whose scenes are drawn with the shares
of a normal year or come from a tree with the same shares; tested on a city that covers weather and streets evenly.
A training is kept under --out and not repeated; each takes minutes on a core, and the scans of a seed as well.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from _timing import describe_machine, publish

from clusterplug.datasets.synthesis import (
    AttributeGenerator,
    LidarCityGenerator,
    PartitionTree,
    coverage,
    mean_cosine,
    write_lidar_city,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
# Shares of a normal year, in the order of SCENE_ATTRIBUTES; guesses, and the same for both sides.
YEAR = {
    'weather': [0.84, 0.12, 0.02, 0.02],
    'street': [0.5, 0.3, 0.2],
    'sensor_height': [0.1, 0.8, 0.1],
    'objects': [0.85, 0.1, 0.05],
    'traffic': [0.1, 0.3, 0.5, 0.1],
    'people': [0.1, 0.3, 0.5, 0.1],
    'parked': [0.1, 0.3, 0.4, 0.2],
    'greenery': [0.2, 0.3, 0.5],
    'beams': [0.8, 0.15, 0.05],
}
RARE = ('snow', 'fog')


def markdown(lines):
    head, *rest = ['| ' + ' | '.join(line) + ' |' for line in lines]
    return [head, '|' + '---|' * len(lines[0]), *rest]


def spread(values, digits=3):
    values = np.asarray(values, dtype=float)
    return f'{values.mean():.{digits}f} +- {values.std(ddof=1) if len(values) > 1 else 0:.{digits}f}'


def one_hot(samples, attributes):
    return np.array([[sample[name] == value for name, all_of in attributes.items() for value in all_of]
                     for sample in samples], dtype=float)  # fmt: skip


def covered(name, generator, depth, per_leaf, seeds):
    """Rows of the table for one space."""
    results = {'random': [], 'tree': []}
    names = list(generator.attributes)[:depth]
    divided = {each: generator.attributes[each] for each in names}
    for seed in range(seeds):
        tree = PartitionTree(depth, n_pivots=24, seed=seed).grow(generator)
        made = tree.generate(generator, per_leaf)
        calls = tree.cost.calls  # before samples are routed
        drawn = generator.draw(len(made.samples), np.random.default_rng(seed))
        for kind, samples, leaf in (
            ('random', drawn, tree.route(drawn).leaf),
            ('tree', made.samples, made.leaf),
        ):
            found = coverage(leaf, len(tree.leaves))
            cosine = mean_cosine(one_hot(samples, divided))
            results[kind].append([len(samples), found.covered, found.entropy, found.evenness, cosine, calls])
    rows = []
    for kind, values in results.items():
        values = np.array(values)
        rows.append((
            f'{name}, {kind}', f'{values[0, 0]:.0f}', spread(100 * values[:, 1], 1), spread(values[:, 2], 2),
            spread(values[:, 3]), spread(values[:, 4]), f'{values[:, 5].mean():.0f}' if kind == 'tree' else '-',
        ))  # fmt: skip
    return rows


def coverage_table(seeds):
    grid = {'color': list('abc'), 'shape': list('abc'), 'size': list('abc')}
    biased = AttributeGenerator(grid, {name: [0.965, 0.025, 0.01] for name in grid})
    lines = [('space, samples by', 'samples', 'leaves covered, %', 'entropy', 'evenness', 'mean cosine', 'calls')]
    lines += covered('3 x 3 x 3, one of 27 at 90 %', biased, 3, 10, seeds)
    lines += covered('LiDAR city, even shares', LidarCityGenerator(), 4, 1, seeds)
    lines += covered('LiDAR city, shares of a year', LidarCityGenerator(weights=YEAR), 4, 1, seeds)
    return [
        f'{seeds} seeds, mean and spread. Mean cosine is over the values of the criteria as one-hot vectors, lower is '
        'more diverse; calls count growing and filling, none was refused.',
        '',
        *markdown(lines),
    ]


def timed(function):
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def speed_table():
    generator = LidarCityGenerator()
    tree = PartitionTree(4, n_pivots=24)
    with tempfile.TemporaryDirectory() as folder:
        grow, _ = timed(lambda: tree.grow(generator, folder=folder))
        again, _ = timed(lambda: tree.grow(generator, folder=folder))
        calls = tree.cost.calls
    rows = generator.draw(100_000, np.random.default_rng(0))
    by_key, _ = timed(lambda: tree.route(rows))
    own, _ = timed(lambda: tree.route(rows, lambda sample, criterion, values: sample[criterion]))
    lines = [
        ('what', 'seconds'),
        (f'grow 108 leaves, {calls} calls, every answer in the journal', f'{grow:.2f}'),
        ('the same again: all answers from the journal', f'{again:.2f}'),
        ('route 100,000 rows through 4 levels, batches of the generator', f'{by_key:.2f}'),
        ('the same, a function called for each row and level', f'{own:.2f}'),
    ]
    return markdown(lines)


def scenes_of(kind, number, seed):
    generator = LidarCityGenerator(weights=YEAR)
    if kind == 'random':
        return generator.draw(number, np.random.default_rng([seed, 1]))
    tree = PartitionTree(2, n_pivots=24, seed=seed).grow(generator)  # 4 weathers x 3 streets
    return tree.generate(generator, -(-number // len(tree.leaves))).samples[:number]


def per_condition(run, scenes):
    """Mean IoU over all scenes, over the rare ones and over the others."""
    from mmengine.runner.checkpoint import load_checkpoint

    from clusterplug.cli import build_runner, load_config

    config = load_config(run.config, dict(run.options), str(Path(run.work_dir) / 'reading'))
    config.visualizer.name, config.log_level = f'reading {run.work_dir}', 'WARNING'
    runner = build_runner(config)
    last = Path((Path(run.work_dir) / 'last_checkpoint').read_text().strip()).name
    load_checkpoint(runner.model, str(Path(run.work_dir) / last), map_location='cpu', logger='silent')
    matrices = {name: np.zeros((20, 20), np.int64) for name in ('all', 'rare', 'others')}
    for scene, data in zip(scenes, runner.build_dataloader(config.test_dataloader)):
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


def training_table(seeds, scenes, epochs, columns, out):
    from clusterplug import compat
    from clusterplug.experiments import Run, run_all

    compat.apply_all()
    even = LidarCityGenerator(
        {'weather': ['clear', 'rain', 'snow', 'fog'], 'street': ['residential', 'downtown', 'suburb']}
    )
    tree = PartitionTree(2, n_pivots=24, seed=99).grow(even)
    test = tree.generate(even, max(1, scenes // 24)).samples
    city = dict(columns=columns, scans_per_scene=1, progress=False)
    write_lidar_city(test[:1], out / 'test', val_scenes=test, seed=10_000, **city)
    runs = {}
    for seed in range(seeds):
        for kind in ('random', 'tree'):
            root = write_lidar_city(scenes_of(kind, scenes, seed), out / f'{kind}{seed}', seed=seed, **city)
            options = {'train_dataloader.dataset.data_root': str(root), 'randomness.seed': seed}
            options |= {f'{split}_dataloader.dataset.data_root': str(out / 'test') for split in ('val', 'test')}
            options['train_cfg'] = dict(max_epochs=epochs, val_interval=epochs + 1)
            options['param_scheduler.1.T_max'] = options['param_scheduler.1.end'] = epochs
            runs[f'{kind}{seed}'] = Run(str(CONFIG), options, (out / f'run-{kind}{seed}').resolve())
    run_all(runs, jobs=1, threads=1)
    results = {name: per_condition(run, test) for name, run in runs.items()}
    (out / 'results.json').write_text(json.dumps(results))
    lines = [('test scenes', 'random, mIoU', 'tree, mIoU', 'paired gain')]
    for name in ('all', 'rare', 'others'):
        one, two = (np.array([results[f'{kind}{seed}'][name] for seed in range(seeds)]) for kind in ('random', 'tree'))
        lines.append((name, spread(one, 1), spread(two, 1), spread(two - one, 1)))
    return [
        f'MinkUNet18 of half width, {scenes} scans of {columns} columns a training, {epochs} epochs, {seeds} seeds; '
        f'{len(test)} test scenes, weather and street evenly; rare: {", ".join(RARE)}.',
        '',
        *markdown(lines),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=('coverage', 'speed', 'training'), nargs='+', default=['coverage', 'speed'])
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--scenes', type=int, default=72, help='training scenes')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--columns', type=int, default=1024, help='firings of a turn')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/synthesis'), help='where cities and trainings are')
    parser.add_argument('--page', help='page whose part between the marks "synthesis" is replaced')
    options = parser.parse_args()
    lines = describe_machine(('numpy', 'open3d'))
    if 'coverage' in options.only:
        lines += ['', *coverage_table(options.seeds)]
    if 'speed' in options.only:
        lines += ['', *speed_table()]
    if 'training' in options.only:
        out = options.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        lines += ['', *training_table(options.seeds, options.scenes, options.epochs, options.columns, out)]
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'synthesis', ['', *lines, ''])


if __name__ == '__main__':
    main()
