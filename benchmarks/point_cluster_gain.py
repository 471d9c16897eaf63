# SPDX-License-Identifier: Apache-2.0
"""What the point-cluster loss brings on the LiDAR city: paired trainings over seeds, with an interval.

    python benchmarks/point_cluster_gain.py --city 2 --seeds 0 1 2 --settings point cell instance    # to choose
    python benchmarks/point_cluster_gain.py --city 1 --seeds 0 1 2 3 4 5 6 7 --settings cell         # to report

Each pair of trainings shares seed, order of the scans and number of steps; only the loss differs. Every training is
kept under ``--out`` and is not repeated; an interrupted one goes on. Every pair that is finished is noted in
``--ledger``, which goes with the code, so that hours of it can be done on several machines: the two trainings of a pair
always on one. Settings are chosen on city 2, figures of city 1 are reported. A training takes about five minutes on one
core; two run at a time.

Printed: mean and spread of both, the paired difference with its 95 % interval (Student's t), per class as well, and for
each setting how well its subclasses agree with the hidden sub-types (NMI, by class), next to k-means by point and by
object on the same layer of both networks, and the largest share of a subclass.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'point_cluster'
PLAIN = CONFIGS / 'minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
OURS = CONFIGS / 'point-cluster_minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
LEDGER = Path(__file__).with_name('point_cluster_gain.json')
WITH_INSTANCES = [
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
    dict(
        type='LoadAnnotations3D', with_bbox_3d=False, with_label_3d=False, with_seg_3d=True, seg_3d_dtype='np.int32',
        seg_offset=2**16, dataset_type='semantickitti',
    ),
    dict(type='clusterplug.LoadInstances'),
    dict(type='PointSegClassMapping'),
    dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(
        type='GlobalRotScaleTrans', rot_range=[0.0, 6.28318531], scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
    ),
    dict(type='Pack3DDetInputs', keys=['points', 'pts_semantic_mask', 'pts_instance_mask']),
]  # fmt: skip
# What is varied, as values of the config of the loss; 'point' is the config as it stands.
SETTINGS = {
    'point': {},
    'cell': {'model.loss.regions': 'cell'},
    'cell-1.6m': {'model.loss.regions': 'cell', 'model.loss.assigner': dict(cell_size=1.6)},
    'position': {'model.loss.assigner': dict(position_period=4)},
    'cell-position': {'model.loss.regions': 'cell', 'model.loss.assigner': dict(position_period=4)},
    'instance': {'model.loss.regions': 'instance', 'train_dataloader.dataset.pipeline': WITH_INSTANCES},
    'classifier': {'model.embedding': 'auto'},
    'clusters-4': {'model.loss.num_clusters': 4},
    'clusters-16': {'model.loss.num_clusters': 16},
    'weight-1': {'model.loss.loss_weight': 1.0},
    'weight-0.25': {'model.loss.loss_weight': 0.25},
    'momentum-0.999': {'model.loss.momentum': 0.999},
}


def runs_of(args) -> dict:
    """Name -> training, the plain ones and each setting, for every seed."""
    from clusterplug.experiments import Run

    data = str((args.out / f'city{args.city}').resolve())
    shared = {f'{split}_dataloader.dataset.data_root': data for split in ('train', 'val', 'test')}
    shared['train_dataloader.dataset.indices'] = args.num_train
    shared['test_dataloader.dataset.indices'] = shared['val_dataloader.dataset.indices'] = args.num_val
    shared['train_cfg'] = dict(max_epochs=args.epochs, val_interval=args.epochs + 1)
    shared['param_scheduler.1.T_max'] = shared['param_scheduler.1.end'] = args.epochs
    runs = {}
    for seed in args.seeds:
        for name, changes in {'plain': None, **{name: SETTINGS[name] for name in args.settings}}.items():
            options = {**shared, 'randomness.seed': seed, **(changes or {})}
            config = PLAIN if changes is None else OURS
            folder = args.out / f'runs-city{args.city}' / f'{name}-seed{seed}'
            runs[f'{name}-seed{seed}'] = Run(str(config), options, folder.resolve())
    return runs


def trained(run, weights):
    """The model of a run with the weights of another (the plain network has no loss: the taps are put around it)."""
    from clusterplug.checkpoints import load_checkpoint_into, newest_readable
    from clusterplug.cli import build_runner, load_config

    config = load_config(run.config, dict(run.options), str(Path(run.work_dir) / 'reading'))
    config.visualizer.name, config.log_level = f'reading {run.work_dir} {weights.work_dir}', 'ERROR'
    runner = build_runner(config)
    checkpoint, _ = newest_readable(Path(weights.work_dir))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*does not fit the model.*missing in the file: clustering')
        load_checkpoint_into(runner.model, checkpoint, partial=run is not weights)
    return runner.model.eval(), runner.build_dataloader(config.test_dataloader)


def table_of(run, ours, plain, num_scans: int):
    """What the networks of two trainings make of the test scans, built as ``run`` says; and the first of them."""
    import numpy as np
    import torch

    from clusterplug.attach import predict_subclasses
    from clusterplug.datasets.lidar_city import load_subtypes
    from clusterplug.evaluation import SubtypeTable

    (ours, scans), (without, _) = trained(run, ours), trained(run, plain)
    table = SubtypeTable()
    for number, data in enumerate(scans):
        if number == num_scans:
            break
        seen = (predict_subclasses(model, data, use_labels=True)[0] for model in (ours, without))
        labels = str(data['data_samples'][0].lidar_path).replace('velodyne', 'labels').replace('.bin', '.label')
        objects = torch.from_numpy((np.fromfile(labels, '<u4') >> 16).astype(np.int64))
        table.add(*seen, torch.from_numpy(load_subtypes(labels)), objects)
    return table, ours


def agreement_of(run, plain) -> dict:
    """NMI with the hidden sub-types over 40 scans, per class, of the memory and of k-means on the same layer.

    Also the largest share of a subclass, and how many classes collapsed into one.
    """
    from clusterplug.evaluation import subtype_agreement
    from clusterplug.hooks import subclass_stats

    noted = Path(run.work_dir) / 'subtypes.json'
    if noted.is_file():
        return json.loads(noted.read_text())
    table, ours = table_of(run, run, plain, 40)
    found = subtype_agreement(table, ours.clustering.loss)
    stats = subclass_stats(ours.clustering.loss.memory)
    result = dict(
        nmi={name: each.per_class.tolist() for name, each in found.items()},
        worst=stats['worst'], collapsed=stats['collapsed'], scans=table.num_scans,
    )  # fmt: skip
    noted.write_text(json.dumps(result))
    return result


def agreement_table(results: list[dict], classes: list[str]) -> str:
    """Mean over seeds as Markdown, by class; the mean of all is over classes for which every grouping has a value."""
    import numpy as np

    names = list(results[0]['nmi'])
    # (groupings, classes), NaN where a class has a single sub-type or fewer objects than clusters
    values = np.array([[result['nmi'][name] for name in names] for result in results], dtype=float).mean(0)
    shared = ~np.isnan(values).any(0)
    lines = [f'| class | {" | ".join(names)} |', '|---' * (len(names) + 1) + '|']
    lines += [f'| mean of {shared.sum()} classes | ' + ' | '.join(f'{v:.3f}' for v in values[:, shared].mean(1)) + ' |']
    for c, name in enumerate(classes):
        if not np.isnan(values[:, c]).all():
            shown = ' | '.join('' if np.isnan(v) else f'{v:.3f}' for v in values[:, c])
            lines.append(f'| {name} | {shown} |')
    return '\n'.join(lines)


def class_names() -> list[str]:
    from mmdet3d.datasets import SemanticKittiDataset

    return list(SemanticKittiDataset.METAINFO['classes'])


def pair_of(args, runs: dict, setting: str, seed: int, ledger) -> dict | None:
    """One pair: as it stands in the ledger, else trained, compared and noted there; None where nothing is trained."""
    from _gain_ledger import content_key
    from _timing import describe_machine

    from clusterplug.experiments import run_all
    from clusterplug.experiments.identity import versions

    plain, ours = runs[f'plain-seed{seed}'], runs[f'{setting}-seed{seed}']
    key = dict(city=args.city, setting=setting, seed=seed, content=content_key(plain, ours))
    pair = ledger.find(key)
    if pair is not None or args.only_print:
        return pair
    results = run_all({f'plain-seed{seed}': plain, f'{setting}-seed{seed}': ours}, jobs=args.jobs, threads=1)
    without, found = (
        {name: value for name, value in results[f'{name}-seed{seed}']['metrics'].items() if name != 'acc_cls'}
        for name in ('plain', setting)
    )
    machine = '; '.join(describe_machine(('mmdet3d', 'spconv')))
    return ledger.add(key, without, found, agreement_of(ours, plain), machine, versions()['clusterplug'])


def gains(city: int, setting: str, pairs: list[dict]) -> list[str]:
    """Lines of a page: what a setting brings, and where its pairs come from."""
    from _gain_ledger import gain_table

    title = f'City {city}, setting `{setting}`'
    if not pairs:
        return [f'{title}: no pair yet.', '']
    sources = sorted({(pair['machine'], pair['code']) for pair in pairs})
    return [
        f'{title}, {len(pairs)} pairs (seeds {", ".join(str(pair["seed"]) for pair in pairs)}):', '',
        *gain_table(pairs), '', *(f'- {machine}; clusterplug {code}' for machine, code in sources), '',
    ]  # fmt: skip


def subtypes(city: int, setting: str, pairs: list[dict]) -> list[str]:
    """Lines of a page: how well the subclasses of a setting agree with the hidden sub-types."""
    if not pairs:
        return []
    found = [pair['agreement'] for pair in pairs]
    shares = ', '.join(f'{each["worst"]:.3f}' for each in found)
    return [
        f'City {city}, setting `{setting}`, seeds {", ".join(str(pair["seed"]) for pair in pairs)}: NMI with the '
        f'hidden sub-types over {found[0]["scans"]} scans', '', agreement_table(found, class_names()), '',
        f'Largest share of a subclass: {shares}; collapsed classes: {sum(each["collapsed"] for each in found)}.', '',
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/point_cluster_gain'), help='where everything is kept'
    )
    parser.add_argument('--city', type=int, choices=(1, 2), default=2, help='2 to choose settings, 1 to report')
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(8)), help='one pair of trainings for each')
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, default=['point'], help='what is compared')
    parser.add_argument('--num-train', type=int, default=140, help='training scans')
    parser.add_argument('--num-val', type=int, default=150, help='scans of other streets for the evaluation')
    parser.add_argument('--epochs', type=int, default=5, help='passes over the training scans')
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time')
    parser.add_argument(
        '--ledger', type=Path, default=LEDGER, help='file of the finished pairs, of all machines (default: %(default)s)'
    )
    parser.add_argument('--only-print', action='store_true', help='train nothing; the tables of what is in the ledger')
    parser.add_argument(
        '--page', help='page whose parts "point_cluster_gain" and "point_cluster_subtypes" are replaced'
    )
    args = parser.parse_args()

    from _gain_ledger import Ledger
    from _timing import publish

    from clusterplug import compat
    from clusterplug.datasets.lidar_city import generate_lidar_city

    compat.apply_all()
    ledger = Ledger(args.ledger)
    if not args.only_print:
        sizes = dict(num_train=args.num_train, num_val=args.num_val)
        generate_lidar_city(args.out / f'city{args.city}', seed=args.city - 1, **sizes)
    runs = runs_of(args)
    pairs = {setting: [] for setting in args.settings}
    for seed in args.seeds:
        for setting in args.settings:
            pair = pair_of(args, runs, setting, seed, ledger)
            pairs[setting] += [] if pair is None else [pair]
    tables = {
        'point_cluster_gain': [line for name in pairs for line in gains(args.city, name, pairs[name])],
        'point_cluster_subtypes': [line for name in pairs for line in subtypes(args.city, name, pairs[name])],
    }
    for name, lines in tables.items():
        print('', *lines, sep='\n')
        if args.page:
            publish(args.page, name, ['', *lines])
    return 0


if __name__ == '__main__':
    sys.exit(main())
