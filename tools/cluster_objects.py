#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Cluster the objects or superpoints of a data set by the features of a segmentor, with any estimator.

    python tools/cluster_objects.py CONFIG CHECKPOINT --estimator KMeans --n-clusters 8 --out work_dirs/objects
    python tools/cluster_objects.py CONFIG CHECKPOINT --estimator HDBSCAN --option min_cluster_size=5 --classes car
    python tools/cluster_objects.py CONFIG CHECKPOINT --estimator KMeans --units superpoints --cell-size 2

Units of the validation scans of CONFIG: objects = points of a thing class of the prediction, grouped from above
(--group components, hdbscan or perceptual); instances = objects of the label files, by
their true class; superpoints = cells of one
predicted class. The feature of a unit is the mean of the features of its points before the classifier. OUT gets

    objects.npz              feature, label, class, scan, center, size and number of points of each unit
    points/SCAN.npz          unit and label of each point, -1 = none
    summary.json             units of each cluster and class, agreement of clusters with classes, panoptic quality of
                             the units where the label files have objects
    birds_eye_SCAN.png       scans from above, colored by cluster (--pictures of them)
    contact_sheet.png        units of each cluster from above, those nearest to its mean first

Estimators: those of clusterplug.estimators with fit_predict, and HDBSCAN, DBSCAN, GaussianMixture of scikit-learn.
"""

import argparse
import inspect
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _object_pictures import draw

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.files import save_arrays, write_json
from clusterplug.core.outputs import output_folder, refuse_source_targets, settings_of
from clusterplug.user_errors import run_tool

THINGS = ('car', 'bicycle', 'motorcycle', 'truck', 'bus', 'person', 'bicyclist', 'motorcyclist')
FILES = ('objects.npz', 'summary.json', 'contact_sheet.png', 'birds_eye_*.png', 'points/*.npz')
SKLEARN = {'HDBSCAN': 'cluster', 'DBSCAN': 'cluster', 'GaussianMixture': 'mixture'}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a segmentor of mmdet3d: a path, or package::path')
    parser.add_argument('checkpoint', help="checkpoint file, or 'none' for the weights at the start")
    parser.add_argument('--estimator', required=True, help='name, such as KMeans, HDBSCAN or DEPICT')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/objects'), help='folder (default: %(default)s)')
    parser.add_argument('--n-clusters', type=int, help='of estimators that take a number (default: their own)')
    parser.add_argument(
        '--option', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='further arguments of the estimator (default: none)',
    )  # fmt: skip
    parser.add_argument(
        '--units',
        choices=('objects', 'instances', 'superpoints'),
        default='objects',
        help='what is clustered (default: objects)',
    )
    parser.add_argument(
        '--group', choices=('components', 'hdbscan', 'perceptual'), default='components',
        help='how points become objects (default: components)',
    )  # fmt: skip
    parser.add_argument('--radius', type=float, default=0.6, help='of components in meters (default: 0.6)')
    parser.add_argument('--cell-size', type=float, default=1.0, help='edge of superpoints in meters (default: 1.0)')
    parser.add_argument('--min-points', type=int, default=10, help='of a unit (default: 10)')
    parser.add_argument(
        '--classes', nargs='+', help='names of the classes (default: all things; of superpoints: all classes)'
    )
    parser.add_argument('--layer', help="layer whose features are taken, as 'name' or 'name:input' (default: found)")
    parser.add_argument('--max-scans', type=int, help='the first so many scans (default: all)')
    parser.add_argument('--pictures', type=int, default=1, help='scans drawn from above (default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='random_state of the estimator (default: 0)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of the config (default: none)',
    )  # fmt: skip
    return parser.parse_args(arguments)


def make_estimator(name, n_clusters, options, seed):
    """Return the estimator of a name with its options, or raise with the names there are."""
    import clusterplug.estimators as estimators

    names = [each for each in estimators.__all__ if hasattr(getattr(estimators, each), 'fit_predict')]
    if name in names:
        kind = getattr(estimators, name)
    elif name in SKLEARN:
        import importlib

        kind = getattr(importlib.import_module(f'sklearn.{SKLEARN[name]}'), name)
    else:
        raise ValueError(f'--estimator must be one of {", ".join(sorted([*names, *SKLEARN]))}, got {name!r}')
    known = inspect.signature(kind.__init__).parameters
    options = dict(options)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f'--option: {name} has no argument {unknown[0]!r}; it has {", ".join(list(known)[1:])}')
    if n_clusters is not None:
        key = next((each for each in ('n_clusters', 'n_components') if each in known), None)
        if key is None:
            raise ValueError(f'--n-clusters: {name} takes no number of clusters; leave it out')
        options[key] = n_clusters
    if 'random_state' in known:
        options.setdefault('random_state', seed)
    return kind(**options)


class Segmentor:
    """The model of a runner: features, predicted classes and positions of the points of a scan."""

    def __init__(self, model, layer):
        from clusterplug.attach.hosts import default_tap
        from clusterplug.attach.taps import Tap

        self.model = model.eval()
        self.tap = Tap(model, layer or default_tap(model))

    @torch.no_grad()
    def __call__(self, sample):
        """Return points (N, 3), features (N, C), predicted classes (N,) and the data sample of one scan."""
        from mmengine.dataset import pseudo_collate

        data = self.model.data_preprocessor(pseudo_collate([sample]), False)
        self.tap.open = True
        try:
            (result,) = self.model(**data, mode='predict')
            features = self.tap.take().features.float()
        finally:
            self.tap.open = False
        points = data['inputs']['points'][0]
        voxels = data['inputs'].get('voxels')
        if isinstance(voxels, dict):
            count = len(voxels.get('voxel_coors', voxels['coors']))
            if len(features) == count and getattr(result, 'point2voxel_map', None) is not None:
                features = features[result.point2voxel_map.long()]
        if len(features) != len(points):
            raise ValueError(
                f'--layer {self.tap.path} has {len(features)} rows for {len(points)} points; name a layer with one row '
                f'for each point or voxel'
            )
        classes = result.pred_pts_seg.pts_semantic_mask
        arrays = [each.cpu().numpy() for each in (points[:, :3].float(), features, classes)]
        return *arrays, result


def instances_of(sample):
    """(N,) ids of the label file, or None; the mask of the pipeline where it has one."""
    mask = getattr(getattr(sample, 'gt_pts_seg', None), 'pts_instance_mask', None)
    if mask is None:
        mask = (getattr(sample, 'eval_ann_info', None) or {}).get('pts_instance_mask')
    return None if mask is None else np.asarray(torch.as_tensor(mask).cpu())


def add_instances(split):
    """Let the pipeline of a split in SemanticKITTI's layout read the ids of objects, too."""
    pipeline = split.dataset.get('pipeline') or []
    kinds = [each['type'] for each in pipeline]
    if 'LoadAnnotations3D' not in kinds or any('LoadInstances' in kind for kind in kinds):
        return
    if pipeline[kinds.index('LoadAnnotations3D')].get('dataset_type') != 'semantickitti':
        return
    pipeline.insert(kinds.index('LoadAnnotations3D') + 1, dict(type='clusterplug.LoadInstances'))
    for each in pipeline:
        if each['type'] == 'Pack3DDetInputs' and 'pts_instance_mask' not in each['keys']:
            each['keys'] = [*each['keys'], 'pts_instance_mask']


def find_units(args, points, predicted, instances, truth, chosen):
    """(N,) number of the unit of each point from 0 on, -1 = none, and the class of each unit."""
    from clusterplug.evaluation import group_instances

    if args.units == 'superpoints':
        cells = np.floor(points / args.cell_size).astype(np.int64)
        keys = np.concatenate([predicted[:, None], cells], 1)
        found = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1) + 1
        found[~np.isin(predicted, chosen)] = 0
    elif args.units == 'instances':
        if instances is None:
            raise ValueError('--units instances needs objects in the label files, and this data set has none')
        predicted = truth if truth is not None else predicted
        found = np.where(np.isin(predicted, chosen), instances, 0)
    else:
        found = group_instances(points, predicted, chosen, args.group, radius=args.radius, min_points=args.min_points)
    ids, index, sizes = np.unique(found, return_inverse=True, return_counts=True)
    keep = (ids > 0) & (sizes >= args.min_points)
    unit = np.where(keep, np.cumsum(keep) - 1, -1)[index.reshape(-1)]
    votes = np.zeros((int(keep.sum()), int(max(predicted.max(initial=0), max(chosen))) + 1), np.int64)
    np.add.at(votes, (unit[unit >= 0], predicted[unit >= 0]), 1)
    return unit, votes.argmax(1)


def describe_units(points, features, unit, count):
    """Mean feature, center and size of each unit; features that are not finite are left out of the mean."""
    fine = (unit >= 0) & np.isfinite(features).all(1)
    total = np.zeros((count, features.shape[1]))
    np.add.at(total, unit[fine], features[fine])
    number = np.bincount(unit[fine], minlength=count)
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    np.minimum.at(low, unit[unit >= 0], points[unit >= 0])
    np.maximum.at(high, unit[unit >= 0], points[unit >= 0])
    return total / np.maximum(number, 1)[:, None], (low + high) / 2, high - low, number


def collect(args, runner, dataset, names):
    """Run the model over the scans; return one dict of arrays a scan."""
    chosen_names = args.classes or (
        names if args.units == 'superpoints' else [each for each in names if each in THINGS]
    )
    missing = sorted(set(chosen_names) - set(names))
    if missing or not chosen_names:
        raise ValueError(f'--classes must be of {", ".join(names)}, got {", ".join(missing) or "none"}')
    chosen = [names.index(each) for each in chosen_names]
    segmentor, scans = Segmentor(runner.model, args.layer), []
    total = len(dataset) if args.max_scans is None else min(args.max_scans, len(dataset))
    for number in range(total):
        points, features, predicted, sample = segmentor(dataset[number])
        instances = instances_of(sample)
        truth = true_classes_of(sample)
        unit, classes = find_units(args, points, predicted, instances, truth, chosen)
        mean, center, size, count = describe_units(points, features, unit, len(classes))
        scan = dict(
            points=points, predicted=predicted, unit=unit, classes=classes, feature=mean, center=center, size=size,
            count=count, name=scan_name(dataset, number), instances=instances, truth=truth,
        )  # fmt: skip
        scans.append(scan)
        print(f'{number + 1} of {total} scans, {len(classes)} units', file=sys.stderr, flush=True)
    return scans, chosen


def scan_name(dataset, number):
    path = Path(dataset.get_data_info(number)['lidar_points']['lidar_path'])
    return f'{path.parent.parent.name}_{path.stem}'


def true_classes_of(sample):
    from clusterplug.attach import true_classes

    mask = true_classes(sample)
    return None if mask is None else mask.cpu().numpy()


def quality_of(scans, chosen, min_points):
    """Mean panoptic quality of the units as objects, where there are objects to compare with."""
    from clusterplug.evaluation import panoptic_quality

    if any(scan['instances'] is None or scan['truth'] is None for scan in scans):
        return None
    parts, offset = [], 1
    for scan in scans:
        shifted = np.where(scan['instances'] > 0, scan['instances'] + offset, 0)
        parts.append((scan['predicted'], np.where(scan['unit'] >= 0, scan['unit'] + offset, 0), scan['truth'], shifted))
        offset += int(max(scan['instances'].max(initial=0), scan['unit'].max(initial=0))) + 1
    joined = [np.concatenate(each) for each in zip(*parts)]
    found = panoptic_quality(*joined, chosen, min_points=min_points)
    return None if np.isnan(found.mean) else round(found.mean, 4)


def write(args, scans, labels, chosen, names):
    header = dict(
        config=args.config, checkpoint=args.checkpoint, estimator=args.estimator, units=args.units, group=args.group,
        classes=[names[each] for each in chosen], scans=[scan['name'] for scan in scans],
    )  # fmt: skip
    joined = {name: np.concatenate([scan[name] for scan in scans]) for name in ('feature', 'center', 'size', 'count')}
    classes = np.concatenate([scan['classes'] for scan in scans])
    joined |= {'class': classes, 'label': labels}
    joined['scan'] = np.repeat(np.arange(len(scans)), [len(scan['classes']) for scan in scans])
    (args.out / 'points').mkdir(exist_ok=True)
    save_arrays(args.out / 'objects.npz', joined, header)
    first = 0
    for scan in scans:
        own = np.append(labels[first : first + len(scan['classes'])], -1)
        first += len(scan['classes'])
        of_points = np.where(scan['unit'] >= 0, own[scan['unit']], -1)
        save_arrays(
            args.out / 'points' / f'{scan["name"]}.npz',
            dict(unit=scan['unit'].astype(np.int32), label=of_points.astype(np.int32)), header,
        )  # fmt: skip
    table = {
        str(label): {names[c]: int(n) for c, n in zip(*np.unique(classes[labels == label], return_counts=True))}
        for label in np.unique(labels)
    }
    from clusterplug.functional import adjusted_rand_index, normalized_mutual_info

    pair = torch.from_numpy(classes).long(), torch.from_numpy(labels).long()
    summary = dict(
        header, units_of_clusters=table, nmi_with_classes=round(normalized_mutual_info(*pair), 4),
        ari_with_classes=round(adjusted_rand_index(*pair), 4),
        panoptic_quality=None if args.units == 'superpoints' else quality_of(scans, chosen, args.min_points),
    )  # fmt: skip
    write_json(args.out / 'summary.json', summary)
    return summary


def run(args):
    from clusterplug.cli import data_folders, load_config
    from clusterplug.core.checks import check_count, check_number

    check_count(args.min_points, '--min-points', 1)
    check_number(args.cell_size, '--cell-size', above=0)
    if args.max_scans is not None:
        check_count(args.max_scans, '--max-scans', 1)
    estimator = make_estimator(args.estimator, args.n_clusters, args.option, args.seed)
    if args.checkpoint != 'none' and not Path(args.checkpoint).is_file():
        raise ValueError(f'CHECKPOINT must be a file, got {args.checkpoint}, which does not exist')
    config = load_config(args.config, args.cfg_options, str(args.out / 'log'))
    if config.get('val_dataloader') is None:
        raise ValueError(f'{args.config} has no val_dataloader, whose scans are taken')
    sources = [*data_folders(config), *([args.checkpoint] if args.checkpoint != 'none' else [])]
    with output_folder(args.out, 'cluster_objects', files=FILES, sources=sources, settings=settings_of(args)):
        return cluster_units(args, config, estimator)


def cluster_units(args, config, estimator):
    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import build_runner

    add_instances(config.val_dataloader)
    runner = build_runner(config)
    if args.checkpoint == 'none':
        runner._init_model_weights()
        print('the weights are random: pass a checkpoint', file=sys.stderr)
    else:
        load_checkpoint_into(runner.model, args.checkpoint)
    dataset = runner.build_dataloader(config.val_dataloader).dataset
    refuse_source_targets({Path(dataset.get_data_info(0)['lidar_points']['lidar_path']).parent}, [args.out])
    names = list(dataset.metainfo.get('classes', ()))
    scans, chosen = collect(args, runner, dataset, names)
    features = np.concatenate([scan['feature'] for scan in scans])
    if len(features) < 2:
        raise ValueError(
            f'{len(features)} units of {args.min_points} points and more in {len(scans)} scans: nothing to cluster; '
            f'lower --min-points, take other --classes or --units superpoints'
        )
    labels = np.asarray(estimator.fit_predict(features)).astype(np.int64)
    summary = write(args, scans, labels, chosen, names)
    draw(args, scans, labels)
    quality = '' if summary['panoptic_quality'] is None else f', panoptic quality {summary["panoptic_quality"]:.3f}'
    return (
        f'{len(labels)} units of {len(scans)} scans in {len(set(labels[labels >= 0].tolist()))} clusters, NMI with '
        f'classes {summary["nmi_with_classes"]:.3f}{quality}; {args.out}'
    )


def main(arguments=None):
    args = parse_arguments(arguments)
    try:
        print(run(args))
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'cluster_objects'))
