# SPDX-License-Identifier: Apache-2.0
"""Merging MinkUNets that were fine-tuned from one start on cities with other sensors: mIoU of every method.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/fusion_cities.py --page docs/benchmarks.md

The start learned streets scanned by 64 beams. One fine-tuning sees 16 beams from 2.6 m with twice the columns, one 64
beams from 1.3 m with half the columns in snow, one 32 beams in rain. mIoU is over other streets of each city. "entropy"
trains on those test scans without labels (transductive); "oracle" trains the mask with the labels of training scans.
Coefficients of the sums are the published ones. Trainings are kept under --out, and what was measured in --ledger: an
interrupted run goes on, and --only-print shows the table of what there is.
"""

import argparse
import copy
import functools
import statistics
from pathlib import Path

import numpy as np
import torch
from _city_segmentation import LINEAR, class_ious, settings, trained
from _gain_ledger import content_key_of, interval
from _seed_ledger import SeedLedger, sources, spread
from _timing import one_thread_each, publish

from clusterplug.fusion import AdaMerging, ConcreteMerging, TaskVector, task_arithmetic, ties_merging

LEDGER = Path(__file__).with_suffix('.json')
AVERAGE = 'average (1/3)'
CITIES = {
    'start': (192, {}),
    '16 beams, high': (384, dict(beams=16, sensor_height='high')),
    'snow, low': (96, dict(weather='snow', sensor_height='low')),
    '32 beams, rain': (192, dict(beams=32, weather='rain')),
}


def generate(data: dict[str, Path], num_train: int, num_val: int) -> None:
    """Draw the cities that are not there yet."""
    from clusterplug.datasets.lidar_city import generate_lidar_city

    for number, (name, (columns, scene)) in enumerate(CITIES.items()):
        options = dict(num_train=num_train, num_val=num_val, columns=columns, seed=10 + number, scans_per_street=10)
        scenes = dict(train_scenes=[scene] * (num_train // 10), val_scenes=[scene] * (num_val // 10))
        generate_lidar_city(data[name], **options, **scenes)


def run(seed: int, data: dict[str, Path], args) -> dict[str, list[float]]:
    """Method -> mIoU in per cent on each fine-tuned city."""
    names = list(CITIES)[1:]
    start = args.out / f'start-{seed}'
    model, _ = trained(settings(LINEAR, data['start'], start, args.start_steps, seed), args.start_steps)
    states, loaders, labeled = {}, [], []
    base = copy.deepcopy(model.state_dict())
    for number, name in enumerate(names):
        config = settings(LINEAR, data[name], args.out / f'tuned{number}-{seed}', args.steps, seed, lr=0.002)
        tuned, loader = trained(config, args.steps, start / f'iter_{args.start_steps}.pth')
        states[name] = tuned.state_dict()
        loaders.append(loader)
        labeled.append(training_batches(config, model))
    vectors = [TaskVector(base, state) for state in states.values()]

    def measure(state) -> list[float]:
        model.load_state_dict(state)
        return [100 * float(np.nanmean(class_ious(model.eval(), loader))) for loader in loaders]

    found = {'start': measure(base)} | {f'fine-tuned on {name}': measure(state) for name, state in states.items()}
    own = [found[f'fine-tuned on {name}'][k] for k, name in enumerate(names)]
    found['each on its own city'] = own
    found[AVERAGE] = measure(task_arithmetic(base, vectors, 1 / len(vectors)))
    found['task arithmetic 0.5'] = measure(task_arithmetic(base, vectors, 0.5))
    found['TIES, mean, 1'] = measure(ties_merging(base, vectors))
    found['TIES, sum, 0.5'] = measure(ties_merging(base, vectors, 0.5, reduction='sum'))
    test = [unlabeled_batches(loader, model) for loader in loaders]
    init = 1 / len(vectors)
    for name, merging, inputs, objective in (
        ('AdaMerging per layer, entropy', AdaMerging(base, vectors, level='layer', init=init), test, 'entropy'),
        ('Concrete TA, entropy', ConcreteMerging(base, vectors, init=init, seed=seed), test, 'entropy'),
        ('Concrete TA, oracle', ConcreteMerging(base, vectors, init=init, seed=seed), labeled, oracle),
    ):
        more = {'meta_steps': args.merge_steps} if isinstance(merging, ConcreteMerging) else {}
        merging.fit(
            model, inputs, steps=args.merge_steps, lr=1e-2, objective=objective, predict=predict, check_every=5, **more
        )
        found[name] = measure(merging.merged_state())
    return found


def predict(task, call, batch):
    return call(batch['inputs'], batch['data_samples'], mode='tensor')


def oracle(logits, batch):
    labels = torch.cat([sample.gt_pts_seg.voxel_semantic_mask for sample in batch['data_samples']])
    return torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=19)


def unlabeled_batches(loader, model) -> list:
    return [model.data_preprocessor(batch, False) for batch in loader]


def training_batches(config, model) -> list:
    """Twenty training scans with the labels of their voxels, without augmentation."""
    from mmengine.runner import Runner

    loader = config.train_dataloader.copy()
    loader.dataset = dict(loader.dataset, pipeline=config.test_pipeline, indices=20)
    loader.sampler = dict(type='DefaultSampler', shuffle=False)
    return [model.data_preprocessor(batch, True) for batch in Runner.build_dataloader(loader)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/fusion_cities'), help='where everything is kept')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--start-steps', type=int, default=300, help='of the common start, one scan a step')
    parser.add_argument('--steps', type=int, default=100, help='of each fine-tuning')
    parser.add_argument('--merge-steps', type=int, default=30, help='of each merging that is trained')
    parser.add_argument('--num-train', type=int, default=40, help='training scans of each city, a multiple of 10')
    parser.add_argument('--num-val', type=int, default=10, help='test scans of each city, a multiple of 10')
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of what was measured (default: %(default)s)')
    parser.add_argument('--only-print', action='store_true', help='train nothing; the table of what is in the ledger')
    parser.add_argument('--page', help='page whose part between the marks "fusion_cities" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    from clusterplug import compat

    compat.apply_all()
    ledger = SeedLedger(options.ledger, options.only_print, ('mmdet3d', 'spconv'))
    data = {name: options.out / f'city{number}' for number, name in enumerate(CITIES)}
    if not options.only_print:
        generate(data, options.num_train, options.num_val)
    key = {name: getattr(options, name) for name in ('start_steps', 'steps', 'merge_steps', 'num_train', 'num_val')}
    start = settings(LINEAR, data['start'], options.out, options.start_steps, 0)
    key.update(cities=repr(CITIES), content=content_key_of(start))
    results = []
    with one_thread_each():
        for seed in options.seeds:
            measure = functools.partial(run, seed, data, options)
            entry = ledger.measured(dict(key, seed=seed), measure)
            results += [] if entry is None else [entry]
    lines = lines_of(results)
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'fusion_cities', ['', *lines, ''])


def lines_of(results: list[dict]) -> list[str]:
    """The table: mIoU of each method on each city, and its mean against that of the average, in pairs by seed."""
    found, names = [entry['found'] for entry in results], list(CITIES)[1:]
    lines = [
        f'| mIoU, {len(found)} seeds: mean | {" | ".join(names)} | mean of the three (sd) | against the average |',
        f'|---|{"---|" * (len(names) + 2)}',
    ]
    for name in found[0] if found else ():
        cells = [spread((each[name][k] for each in found), 1) for k in range(len(names))]
        means, plain = ([statistics.mean(each[which]) for each in found] for which in (name, AVERAGE))
        differences = [one - other for one, other in zip(means, plain, strict=True)]
        low, high = interval(differences)
        against = f'{statistics.mean(differences):+.1f} ({low:+.1f} to {high:+.1f})' if len(found) > 1 else ''
        lines.append(f'| {name} | {" | ".join(cells)} | {spread(means, 1)} | {"" if name == AVERAGE else against} |')
    return [*lines, '', *sources(results)]


if __name__ == '__main__':
    main()
