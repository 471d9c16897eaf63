# SPDX-License-Identifier: Apache-2.0
"""What the point-cluster loss brings on the LiDAR city: paired trainings over seeds, with an interval.

    python benchmarks/point_cluster_gain.py --city 2 --seeds 0 1 2 --settings point cell instance    # to choose
    python benchmarks/point_cluster_gain.py --city 1 --seeds 0 1 2 3 4 5 6 7 --settings cell         # to report

Each pair of trainings shares seed, order of the scans and number of steps; only the loss differs. Every training is
kept under ``--out`` and is not repeated; an interrupted one goes on. Settings are chosen on city 2, figures of city 1
are reported. A training takes about five minutes on one core; two run at a time.

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


def agreement_of(run, plain) -> dict:
    """NMI with the hidden sub-types over 40 scans, per class, of the memory and of k-means on the same layer.

    Also the largest share of a subclass, and how many classes collapsed into one.
    """
    import numpy as np
    import torch

    from clusterplug.attach import predict_subclasses
    from clusterplug.datasets.lidar_city import load_subtypes
    from clusterplug.evaluation import SubtypeTable, subtype_agreement
    from clusterplug.hooks import subclass_stats

    noted = Path(run.work_dir) / 'subtypes.json'
    if noted.is_file():
        return json.loads(noted.read_text())
    (ours, scans), (without, _) = trained(run, run), trained(run, plain)
    table = SubtypeTable()
    for number, data in enumerate(scans):
        if number == 40:
            break
        seen = (predict_subclasses(model, data, use_labels=True)[0] for model in (ours, without))
        labels = str(data['data_samples'][0].lidar_path).replace('velodyne', 'labels').replace('.bin', '.label')
        objects = torch.from_numpy((np.fromfile(labels, '<u4') >> 16).astype(np.int64))
        table.add(*seen, torch.from_numpy(load_subtypes(labels)), objects)
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


def interval(differences) -> tuple[float, float]:
    """95 % interval of the mean of paired differences; infinite for one pair."""
    import numpy as np
    from scipy import stats

    if len(differences) < 2:
        return float('-inf'), float('inf')
    error = np.std(differences, ddof=1) / len(differences) ** 0.5
    half = stats.t.ppf(0.975, len(differences) - 1) * error
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def class_names() -> list[str]:
    from mmdet3d.datasets import SemanticKittiDataset

    return list(SemanticKittiDataset.METAINFO['classes'])


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
        '--page', help='page whose part between the marks "point_cluster_subtypes" is replaced by the NMI'
    )
    args = parser.parse_args()

    from _timing import describe_machine, publish

    from clusterplug import compat
    from clusterplug.datasets.lidar_city import generate_lidar_city
    from clusterplug.experiments import run_all

    compat.apply_all()
    sizes = dict(num_train=args.num_train, num_val=args.num_val)
    generate_lidar_city(args.out / f'city{args.city}', seed=args.city - 1, **sizes)
    runs = runs_of(args)
    results = run_all(runs, jobs=args.jobs, threads=1)

    machine, page = describe_machine(('mmdet3d', 'spconv')), []
    print(*machine, sep='\n')
    metrics = [name for name in next(iter(results.values()))['metrics'] if name not in ('acc_cls',)]
    for setting in args.settings:
        print(f'\ncity {args.city}, {setting}, seeds {args.seeds}\n')
        print('| | without | with | difference | 95 % interval |\n|---|---|---|---|---|')
        for metric in metrics:
            without, found = (
                [100 * results[f'{name}-seed{seed}']['metrics'][metric] for seed in args.seeds]
                for name in ('plain', setting)
            )
            differences = [b - a for a, b in zip(without, found)]
            low, high = interval(differences)
            mean = sum(differences) / len(differences)
            print(
                f'| {metric} | {sum(without) / len(without):.1f} | {sum(found) / len(found):.1f} | {mean:+.1f} '
                f'| {low:+.1f} to {high:+.1f} |'
            )
        agreements = [agreement_of(runs[f'{setting}-seed{seed}'], runs[f'plain-seed{seed}']) for seed in args.seeds]
        page += [
            f'City {args.city}, setting `{setting}`, seeds {", ".join(map(str, args.seeds))}: NMI with the hidden '
            f'sub-types over {agreements[0]["scans"]} scans',
            '',
            agreement_table(agreements, class_names()),
            '',
        ]
        print('', *page[-4:], sep='\n')
        for name in ('worst', 'collapsed'):
            print(f'{name}: {", ".join(f"{each[name]:.3f}" for each in agreements)}')
    if args.page:
        publish(args.page, 'point_cluster_subtypes', ['', *(f'{line}<br>' for line in machine), '', *page])
    return 0


if __name__ == '__main__':
    sys.exit(main())
