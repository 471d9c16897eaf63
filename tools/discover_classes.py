#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find classes among the objects that nobody labeled, and show them from above.

    python tools/discover_classes.py CONFIG CHECKPOINT --out work_dirs/discover
    python tools/discover_classes.py CONFIG CHECKPOINT --n-clusters 4 --method projection
    python tools/discover_classes.py CONFIG CHECKPOINT --hidden bicycle motorcycle

CONFIG is of a segmentor of mmdet3d. Points whose label the data set ignores (and those of --hidden classes, to see how
well it works) are split into objects, by their instance ids or by the gaps between them. Each object has the mean of
the features that the model has of its points; objects of the known classes guide the clustering. OUT gets objects.json
and one sheet a cluster, the most typical objects first, each from above and from the side.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.files import whole_file
from clusterplug.core.outputs import output_folder, refuse_source_targets, settings_of
from clusterplug.user_errors import run_tool

METHODS = dict(kmeans='NovelClassKMeans', spectral='NovelClassSpectral', projection='ProjectionBasedNCD')


def _clusters(text: str) -> int | str:
    return text if text == 'auto' else int(text)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a segmentor: a path, or package::path')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/discover'), help='folder (default: %(default)s)')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='val', help='scans of (default: val)')
    parser.add_argument('--scans', type=int, help='look at so many scans (default: all)')
    parser.add_argument(
        '--hidden', nargs='+', default=[], metavar='CLASS', help='treat as unlabelled, and score (default: none)'
    )
    parser.add_argument('--n-clusters', type=_clusters, default='auto', help='number of new classes (default: auto)')
    parser.add_argument(
        '--method', choices=sorted(METHODS), default='kmeans', help='how they are found (default: kmeans)'
    )
    parser.add_argument('--layer', default='auto', help='layer that is tapped (default: auto, before the classifier)')
    parser.add_argument('--min-points', type=int, default=20, help='of an object (default: 20)')
    parser.add_argument(
        '--max-size', type=float, default=12.0, help='largest side of an object, metres (default: 12.0)'
    )
    parser.add_argument('--radius', type=float, default=0.6, help='widest gap inside an object, metres (default: 0.6)')
    parser.add_argument('--shown', type=int, default=12, help='objects on a sheet (default: 12)')
    parser.add_argument('--seed', type=int, default=0, help='of the clustering (default: 0)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of the config (default: none)',
    )  # fmt: skip
    return parser.parse_args(arguments)


def labelled_set(config, split: str):
    """The split without augmentation; with instance ids where the label files have them."""
    from clusterplug.registry import DATASETS

    loaders = {name: config.get(f'{name}_dataloader') for name in ('train', 'val', 'test')}
    if loaders[split] is None or loaders['val'] is None:
        raise ValueError(f'the config needs a {split}_dataloader and a val_dataloader')
    chosen, plain = (copy.deepcopy(loaders[name].dataset) for name in (split, 'val'))
    while 'dataset' in chosen and 'ann_file' not in chosen:  # RepeatDataset
        chosen = chosen.dataset
    pipeline = list(plain.pipeline)
    for position, step in enumerate(pipeline):
        if step['type'] == 'LoadAnnotations3D' and step.get('dataset_type') == 'semantickitti':
            pipeline.insert(position + 1, dict(type='clusterplug.LoadInstances', seg_offset=step['seg_offset']))
            pipeline[-1]['keys'] = [*pipeline[-1]['keys'], 'pts_instance_mask']
            break
    chosen.update(pipeline=pipeline, test_mode=True)
    return DATASETS.build(chosen)


def labels_of(truth: np.ndarray, num_classes: int, hidden: list[int]) -> np.ndarray:
    """Known classes as they are, -1 for what is ignored or hidden."""
    known = (truth >= 0) & (truth < num_classes) & ~np.isin(truth, hidden)
    return np.where(known, truth, -1)


def collect(model, dataset, number: int, hidden: list[int], args) -> tuple[list[dict], np.ndarray]:
    """Objects of all scans, and their features (N, C)."""
    from mmengine.dataset import pseudo_collate

    from clusterplug.analysis import scan_objects
    from clusterplug.attach import PointFeatures, true_classes

    read, num_classes = PointFeatures(model, args.layer), len(dataset.metainfo['classes'])
    found, features = [], []
    for scan in range(number):
        (seen,) = read(pseudo_collate([dataset[scan]]))
        truth = true_classes(seen.sample)
        if truth is None:
            raise ValueError(f'scan {scan} has no labels; the pipeline of the val_dataloader must load them')
        truth, points = truth.cpu().numpy(), seen.points[:, :3].cpu().numpy()
        ids = getattr(getattr(seen.sample, 'gt_pts_seg', None), 'pts_instance_mask', None)
        ids = None if ids is None else np.asarray(torch.as_tensor(ids).cpu())
        for each in scan_objects(
            points, labels_of(truth, num_classes, hidden), ids, min_points=args.min_points, max_size=args.max_size,
            radius=args.radius,
        ):  # fmt: skip
            rows = seen.features[torch.from_numpy(each.rows)]
            rows = rows[rows.isfinite().all(1)]
            if not len(rows):
                continue
            values, counts = np.unique(truth[each.rows], return_counts=True)
            about = dict(scan=scan, label=each.label, truth=int(values[counts.argmax()]), points=len(each.rows))
            box = dict(center=each.center.round(2).tolist(), size=each.size.round(2).tolist())
            found.append({**about, **box, 'rows': each.rows})
            features.append(rows.mean(0).cpu().numpy())
        print(f'{scan + 1} of {number} scans, {len(found)} objects', file=sys.stderr, flush=True)
    return found, np.array(features, dtype=np.float64)


def cluster(features: np.ndarray, labels: np.ndarray, args) -> np.ndarray:
    """Number of the new class of each unlabeled object, -1 for the others."""
    from clusterplug import estimators

    new = labels < 0
    if new.sum() < 3 or (args.n_clusters != 'auto' and new.sum() < args.n_clusters):
        raise ValueError(
            f'found {new.sum()} unlabelled objects, too few for {args.n_clusters} clusters; lower --min-points, raise '
            '--max-size, look at more scans, or name --hidden classes'
        )
    spread = features.std(0)
    x = (features - features.mean(0)) / np.where(spread > 0, spread, 1.0)
    model = getattr(estimators, METHODS[args.method])(args.n_clusters, random_state=args.seed)
    found = np.asarray(model.fit(x, labels).labels_)
    numbers = np.full(len(labels), -1)
    numbers[new] = np.unique(found[new], return_inverse=True)[1]
    return numbers


def draw(dataset, objects: list[dict], features: np.ndarray, numbers: np.ndarray, names, args) -> list[Path]:
    from clusterplug.visualization.likelihood_figures import save_contact_sheet
    from clusterplug.visualization.object_crops import object_views

    files = []
    for number in range(numbers.max() + 1):
        members = np.flatnonzero(numbers == number)
        far = np.linalg.norm(features[members] - features[members].mean(0), axis=1)
        pictures, titles = [], []
        for index in members[np.argsort(far, kind='stable')][: args.shown]:
            found = objects[index]
            views = object_views(np.asarray(dataset[found['scan']]['inputs']['points']), found['rows'])
            name = names[found['truth']] if found['truth'] < len(names) else 'unlabeled'
            size = ' x '.join(f'{each:.1f}' for each in found['size'])
            pictures.append(views.picture)
            titles.append(
                f'{name}, scan {found["scan"]}, {np.hypot(*found["center"][:2]):.0f} m away, {found["points"]} points\n'
                f'{size} m, the bar is {views.bar:g} m'
            )
        files.append(args.out / f'cluster_{number}.png')
        shown = [lambda picture=picture: picture for picture in pictures]
        save_contact_sheet(files[-1], shown, titles, columns=3, cell=(5.0, 2.9))
    return files


def score(objects: list[dict], numbers: np.ndarray, hidden: list[int]) -> str:
    from clusterplug.functional import clustering_accuracy, normalized_mutual_info

    truth = np.array([found['truth'] for found in objects])
    rows = (numbers >= 0) & np.isin(truth, hidden)
    if len(np.unique(truth[rows])) < 2:
        return f'{rows.sum()} objects of the hidden classes, all of one class or none: no score'
    pair = [torch.from_numpy(each[rows].astype(np.int64)) for each in (truth, numbers)]
    return (
        f'{rows.sum()} objects of the hidden classes: accuracy {float(clustering_accuracy(*pair)):.3f}, NMI '
        f'{float(normalized_mutual_info(*pair)):.3f}'
    )


def run(args) -> str:
    from clusterplug.cli import data_folders, load_config

    if not Path(args.checkpoint).is_file():
        raise ValueError(f'CHECKPOINT must be a file, got {args.checkpoint}, which does not exist')
    config = load_config(args.config, args.cfg_options, str(args.out / 'log'))
    sources = [args.checkpoint, *data_folders(config)]
    names = ('objects.json', 'cluster_*.png')
    with output_folder(args.out, 'discover_classes', files=names, sources=sources, settings=settings_of(args)):
        return discover(args, config)


def discover(args, config) -> str:
    """Find the objects, cluster them and write what was found."""
    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import build_runner

    runner = build_runner(config)
    load_checkpoint_into(runner.model, args.checkpoint)
    dataset = labelled_set(runner.cfg, args.split)
    names = list(dataset.metainfo['classes'])
    unknown = [name for name in args.hidden if name not in names]
    if unknown:
        raise ValueError(f'--hidden must name classes of the data set ({", ".join(names)}), got {", ".join(unknown)}')
    number = len(dataset) if args.scans is None else args.scans
    if not 1 <= number <= len(dataset):
        raise ValueError(f'--scans must be from 1 to {len(dataset)}, got {number}')
    sources = {Path(dataset.get_data_info(n)['lidar_points']['lidar_path']).parent for n in range(number)}
    refuse_source_targets(sources, [args.out])
    hidden = [names.index(name) for name in args.hidden]
    objects, features = collect(runner.model, dataset, number, hidden, args)
    labels = np.array([found['label'] for found in objects], dtype=np.int64)
    numbers = cluster(features, labels, args)
    kept = [
        {**{key: value for key, value in found.items() if key != 'rows'}, 'cluster': int(n)}
        for found, n in zip(objects, numbers)
        if n >= 0
    ]
    with whole_file(args.out / 'objects.json') as file:
        json.dump(dict(config=args.config, classes=names, hidden=args.hidden, objects=kept), file, indent=1)
    files = draw(dataset, objects, features, numbers, names, args)
    sizes = ', '.join(str(count) for count in np.bincount(numbers[numbers >= 0]))
    lines = [f'{len(kept)} unlabelled and {(labels >= 0).sum()} known objects; clusters of {sizes}']
    lines += [score(objects, numbers, hidden)] if hidden else []
    return '\n'.join([*lines, str(args.out / 'objects.json'), *map(str, files)])


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    try:
        print(run(args))
    except (ValueError, TypeError, OSError, ImportError, UnpicklingError) as error:
        print(f'discover_classes: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'discover_classes'))
