# SPDX-License-Identifier: Apache-2.0
"""Train a MinkUNet on generated LiDAR streets with and without within-class clustering, and compare.

Everything is mmdet3d's own: data set, pipelines, model, Runner, SegMetric. Both trainings run at the same time. What is
done is skipped when the demo is started again; an interrupted training goes on from its last checkpoint.
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    'baseline': 'minkunet18_w8_spconv_1xb1-5e_lidar-city.py',
    'clustering': 'point-cluster_minkunet18_w8_spconv_1xb1-5e_lidar-city.py',
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/demo'), help='folder for the results (default: %(default)s)'
    )
    parser.add_argument(
        '--data',
        type=Path,
        default=Path('data/lidar_city'),
        help='folder for the generated scans (default: %(default)s)',
    )
    parser.add_argument('--num-train', type=int, default=140, help='number of training scans (default: %(default)s)')
    parser.add_argument(
        '--num-val',
        type=int,
        default=40,
        help='number of scans of other streets for the evaluation (default: %(default)s)',
    )
    parser.add_argument('--epochs', type=int, default=5, help='epochs of each training (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of both trainings (default: %(default)s)')
    return parser.parse_args()


def say(text: str) -> None:
    print(f'[demo] {text}', flush=True)


def runs_of(args) -> dict:
    """Both trainings, with the folders, the length and the seed of this demo."""
    from clusterplug.experiments import Run

    data = str(args.data.resolve())
    options = {f'{split}_dataloader.dataset.data_root': data for split in ('train', 'val', 'test')}
    for split, number in (('train', args.num_train), ('val', args.num_val), ('test', args.num_val)):
        options[f'{split}_dataloader.dataset.indices'] = number
    options['randomness.seed'] = args.seed
    # no validation while training: the test that follows reads the same scans
    options['train_cfg'] = dict(max_epochs=args.epochs, val_interval=args.epochs + 1)
    options['param_scheduler.1.T_max'] = options['param_scheduler.1.end'] = args.epochs
    options['default_hooks.logger.interval'] = options['log_processor.window_size'] = 10
    folder = ROOT / 'configs' if (ROOT / 'configs').is_dir() else Path(__file__).resolve().parents[1] / 'configs'
    return {
        name: Run(str(folder / 'point_cluster' / file), options, (args.out / name).resolve())
        for name, file in RUNS.items()
    }


def load_trained(name: str, args, weights: str | None = None):
    """The trained model and its validation loader; ``weights``: of which training, by default its own."""
    from clusterplug.checkpoints import load_checkpoint_into, newest_readable
    from clusterplug.cli import build_runner, load_config

    run = runs_of(args)[name]
    config = load_config(run.config, run.options, str(args.out / name / 'reading'))
    # mmengine keeps one visualizer of a name in a process, and prints long lists
    config.visualizer.name, config.log_level = (
        f'reading {name} {time.monotonic_ns()}',
        'ERROR',
    )  # a console without mmengine's long lists
    runner = build_runner(config)
    checkpoint, _ = newest_readable(args.out / (weights or name))
    with warnings.catch_warnings():
        if weights:  # of a model without the loss: only the loss is missing, which predictions do not use
            warnings.filterwarnings('ignore', message='.*does not fit the model.*missing in the file: clustering')
        load_checkpoint_into(runner.model, checkpoint, partial=weights is not None)
    return runner.model.eval(), runner.build_dataloader(config.val_dataloader), runner


def discovered(args) -> tuple[dict, list]:
    """Agreement of the discovered subclasses with the hidden sub-types, and the pictures' scans.

    Compared with k-means, with as many clusters for each class, on the feature of the same layer in both networks,
    point by point and object by object.
    """
    import torch

    from clusterplug.attach import predict_subclasses
    from clusterplug.datasets.lidar_city import load_subtypes
    from clusterplug.evaluation import SubtypeTable, subtype_agreement

    clustered, loader, _ = load_trained('clustering', args)
    # the same taps around the weights of the other training
    plain, _, _ = load_trained('clustering', args, weights='baseline')
    found, scenes = SubtypeTable(), []
    for data in loader:
        (scan,) = predict_subclasses(clustered, data, use_labels=True)
        (without,) = predict_subclasses(plain, data, use_labels=True)
        labels = label_file(data['data_samples'][0])
        objects = torch.from_numpy((np.fromfile(labels, '<u4') >> 16).astype(np.int64))
        found.add(scan, without, torch.from_numpy(load_subtypes(labels)), objects)
        if len(scenes) < 3:
            scenes.append(
                dict(
                    points=scan.points.numpy(), truth=scan.classes.numpy(), clustering=scan.predictions.numpy(),
                    baseline=without.predictions.numpy(), subclasses=scan.subclasses.numpy(),
                )
            )  # fmt: skip
    return subtype_agreement(found, clustered.clustering.loss), scenes


def label_file(sample) -> str:
    """The label file of a scan: in the SemanticKITTI layout beside the folder of its points."""
    return str(sample.lidar_path).replace('velodyne', 'labels').replace('.bin', '.label')


def draw(scenes: list, num_clusters: int, out: Path) -> list[Path]:
    """Bird's-eye PNGs: truth, both predictions, subclasses."""
    from clusterplug.visualization import SEMANTICKITTI, class_colors, save_panels, subclass_colors

    names = class_names()
    files = []
    for number, scene in enumerate(scenes):
        present = sorted(set(np.unique(scene['truth'])) & set(range(len(names))))
        files.append(out / f'scan_{number}.png')
        found = subclass_colors(scene['truth'], scene['subclasses'], num_clusters)
        panels = [
            ('truth', class_colors(scene['truth'])),
            ('subclasses found within each class', found),
            ('prediction without clustering loss', class_colors(scene['baseline'])),
            ('prediction with clustering loss', class_colors(scene['clustering'])),
        ]
        save_panels(files[-1], scene['points'], panels, legend=[(names[c], SEMANTICKITTI[c]) for c in present])
    return files


def class_names() -> tuple:
    from mmdet3d.datasets import SemanticKittiDataset

    return SemanticKittiDataset.METAINFO['classes']


def table(results: dict, agreement: dict, cost) -> str:
    """The comparison as Markdown."""
    from clusterplug.visualization import class_name

    base, ours = (results[name]['metrics'] for name in ('baseline', 'clustering'))
    lines = ['| | without | with | difference |', '|---|---|---|---|']
    per_class = [name for name in class_names() if not np.isnan(base.get(name, np.nan))]
    for name in ('miou', 'acc', *per_class):
        label = {'miou': '**mIoU**', 'acc': 'accuracy'}.get(name, f'IoU {class_name(name)}')
        without, found = 100 * base[name], 100 * ours[name]
        lines.append(f'| {label} | {without:.1f} | {found:.1f} | {found - without:+.1f} |')
    for suffix, what in (('', 'points'), (' by object', 'objects')):
        memory, without, within = (
            agreement[name + suffix].mean for name in ('memory', 'k-means without', 'k-means with the loss')
        )
        lines.append(
            f'| NMI of subclasses of {what} with hidden sub-types (without: k-means on the same layer; k-means in the '
            f'network with the loss: {within:.3f}) | {without:.3f} | {memory:.3f} | {memory - without:+.3f} |'
        )
    lines += [
        f'| seconds per step in training, side by side | {results["baseline"]["seconds_per_step"]:.3f} | '
        f'{results["clustering"]["seconds_per_step"]:.3f} | |',
        f'| seconds per step, in turn on one batch | {cost.plain:.3f} | {cost.clustered:.3f} | '
        f'loss {100 * cost.share:.1f} % of the step |',
    ]
    return '\n'.join(lines)


# Of other packages, about things that a user of the demo can do nothing about.
FOREIGN_LOGGERS = {
    'torch.fx._symbolic_trace': 'said once when code asks torch whether it is traced; nothing is traced here'
}
FOREIGN_WARNINGS = {'invalid value encountered in .*divide': 'mmdet3d: classes of which no scan has a point are NaN'}


def quiet_hosts() -> None:
    """Leave these messages off the console of this process; the logs of the trainings have them."""
    for name in FOREIGN_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in FOREIGN_WARNINGS:
        warnings.filterwarnings('ignore', message=message, category=RuntimeWarning)


def main() -> int:
    args = parse_arguments()
    quiet_hosts()
    begin = time.time()
    from clusterplug.cli import check_folder
    from clusterplug.core.outputs import locked_folder

    check_folder(args.out, '--out')
    with locked_folder(args.out):
        return demo(args, begin)


def demo(args, begin: float) -> int:
    """Generate, train both, read what they have learned, draw and compare."""
    from clusterplug import compat
    from clusterplug.core.files import write_bytes
    from clusterplug.datasets.lidar_city import generate_lidar_city
    from clusterplug.experiments import RunFailed, run_all

    compat.apply_all()
    say(f'generating {args.num_train} + {args.num_val} scans in {args.data} (about half a minute)')
    generate_lidar_city(args.data, num_train=args.num_train, num_val=args.num_val)
    try:
        results = run_all(runs_of(args), jobs=len(RUNS), say=say)
    except (RunFailed, FileExistsError) as error:
        sys.exit(f'[demo] {error}')
    say('measuring the loss and reading the subclasses')
    from clusterplug.attach.step_cost import measure_step_cost

    model, _, runner = load_trained('clustering', args)
    cost = measure_step_cost(model, next(iter(runner.build_dataloader(runner.cfg.train_dataloader))))
    agreement, scenes = discovered(args)
    files = draw(scenes, model.clustering.loss.memory.num_clusters, args.out)
    text = table(results, agreement, cost)
    write_bytes(args.out / 'table.md', (text + '\n').encode())
    print('\n' + text + '\n')
    say(f'one run of each, seed {args.seed}: differences of about 1.5 mIoU between seeds are usual')
    say(f'pictures: {", ".join(str(file) for file in files)}')
    say(f'done in {(time.time() - begin) / 60:.1f} minutes')
    return 0


if __name__ == '__main__':
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from clusterplug.cli import run_tool

    sys.exit(run_tool(main, 'demo'))
