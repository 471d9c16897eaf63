# SPDX-License-Identifier: Apache-2.0
"""What the point-cluster loss brings on the LiDAR city: paired trainings over seeds, with an interval.

    python benchmarks/point_cluster_gain.py --city 2 --seeds 0 1 2 --settings point cell instance    # to choose
    python benchmarks/point_cluster_gain.py --city 1 --seeds 0 1 2 3 4 5 6 7 --settings instance     # to report

Each pair of trainings shares seed, order of the scans and number of steps; only the loss differs. Every training is
kept under ``--out`` and is not repeated; an interrupted one goes on. Every pair that is finished is noted in
``--ledger``, which goes with the code, so that hours of it can be done on several machines: the two trainings of a pair
always on one. Settings are chosen on city 2, figures of city 1 are reported. A training takes about five minutes on one
core; two run at a time.

Printed: for several settings one line each. For one: mean of both, the paired difference with its 95 % interval
(Student's t), per class as well, and how well its subclasses agree with the hidden sub-types (NMI, by class), next to
k-means by point and by object on the same layer of both networks, and the largest share of a subclass.
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
POINT = {'model.loss.regions': 'point'}
# What is varied, as values of the config of the loss; 'instance' is the config as it stands.
SETTINGS = {
    'instance': {},
    'instance-48': {'model.loss.num_anchors_per_class': 48, 'model.loss.contrast.max_negatives': 600},
    'cell': {'model.loss.regions': 'cell'},
    'cell-1.6m': {'model.loss.regions': 'cell', 'model.loss.assigner': dict(cell_size=1.6)},
    'point': POINT,
    'point-48': {**POINT, 'model.loss.num_anchors_per_class': 48, 'model.loss.contrast.max_negatives': 600},
    'point-all-negatives': {**POINT, 'model.loss.contrast.max_negatives': 5000},
    'point-position': {**POINT, 'model.loss.assigner': dict(position_period=4)},
    'point-weight-1': {**POINT, 'model.loss.loss_weight': 1.0},
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


def pairs_of(args, runs: dict, seed: int, ledger) -> dict[str, dict]:
    """Setting -> pair of a seed, as it stands in the ledger, else trained, compared and noted there."""
    from _gain_ledger import content_key
    from _timing import describe_machine

    from clusterplug.experiments import run_all
    from clusterplug.experiments.identity import versions

    plain, ours = runs[f'plain-seed{seed}'], {name: runs[f'{name}-seed{seed}'] for name in args.settings}
    keys = {
        name: dict(city=args.city, setting=name, seed=seed, content=content_key(plain, run))
        for name, run in ours.items()
    }
    pairs = {name: ledger.find(key) for name, key in keys.items()}
    missing = [] if args.only_print else [name for name, pair in pairs.items() if pair is None]
    if missing:
        trainings = {f'{name}-seed{seed}': runs[f'{name}-seed{seed}'] for name in ('plain', *missing)}
        results = {
            name: {metric: value for metric, value in result['metrics'].items() if metric != 'acc_cls'}
            for name, result in run_all(trainings, jobs=args.jobs, threads=1).items()
        }
        machine = '; '.join(describe_machine(('mmdet3d', 'spconv')))
        for name in missing:
            without, found = results[f'plain-seed{seed}'], results[f'{name}-seed{seed}']
            agreement = agreement_of(ours[name], plain)
            pairs[name] = ledger.add(keys[name], without, found, agreement, machine, versions()['clusterplug'])
    return {name: pair for name, pair in pairs.items() if pair is not None}


def summary(city: int, pairs: dict[str, list[dict]]) -> list[str]:
    """Lines of a page: several settings next to each other."""
    import numpy as np
    from _gain_ledger import interval

    columns = ('memory', 'memory by object', 'k-means without by object')
    sources = sorted({(pair['machine'], pair['code']) for found in pairs.values() for pair in found})
    lines = [
        f'City {city}, mIoU and NMI with the hidden sub-types, means over seeds:', '',
        f'| setting | seeds | without | with | difference | 95 % interval | {" | ".join(columns)} | largest share |',
        '|---' * (len(columns) + 7) + '|',
    ]  # fmt: skip
    for name, found in pairs.items():
        if not found:
            continue
        without, with_loss = (np.array([100 * pair[side]['miou'] for pair in found]) for side in ('without', 'found'))
        low, high = interval(list(with_loss - without))
        nmi = [np.nanmean([pair['agreement']['nmi'][column] for pair in found]) for column in columns]
        lines.append(
            f'| `{name}` | {" ".join(str(pair["seed"]) for pair in found)} | {without.mean():.1f} '
            f'| {with_loss.mean():.1f} | {(with_loss - without).mean():+.1f} '
            f'| {f"{low:+.1f} to {high:+.1f}" if len(found) > 1 else ""} | {" | ".join(f"{v:.3f}" for v in nmi)} '
            f'| {max(pair["agreement"]["worst"] for pair in found):.2f} |'
        )
    return [*lines, '', *(f'- {machine}; clusterplug {code}' for machine, code in sources), '']


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
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, default=['instance'], help='what is compared')
    parser.add_argument('--num-train', type=int, default=140, help='training scans')
    parser.add_argument('--num-val', type=int, default=150, help='scans of other streets for the evaluation')
    parser.add_argument('--epochs', type=int, default=5, help='passes over the training scans')
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time')
    parser.add_argument(
        '--ledger', type=Path, default=LEDGER, help='file of the finished pairs, of all machines (default: %(default)s)'
    )
    parser.add_argument('--only-print', action='store_true', help='train nothing; the tables of what is in the ledger')
    parser.add_argument(
        '--page',
        help='page in which "point_cluster_settings_CITY" is replaced, with one setting "point_cluster_gain" and '
        '"point_cluster_subtypes"',
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
        for setting, pair in pairs_of(args, runs, seed, ledger).items():
            pairs[setting].append(pair)
    tables = {
        'point_cluster_gain': [line for name in pairs for line in gains(args.city, name, pairs[name])],
        'point_cluster_subtypes': [line for name in pairs for line in subtypes(args.city, name, pairs[name])],
    }
    if len(args.settings) > 1:
        tables = {f'point_cluster_settings_{args.city}': summary(args.city, pairs)}
    for name, lines in tables.items():
        print('', *lines, sep='\n')
        if args.page:
            publish(args.page, name, ['', *lines])
    return 0


if __name__ == '__main__':
    sys.exit(main())
