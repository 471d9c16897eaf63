#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write labels of scans that nobody labeled, from a segmentor that was trained on a few.

    python tools/train.py CONFIG --cfg-options train_dataloader.dataset.indices=7
    python tools/pseudo_labels.py CONFIG CHECKPOINT --out work_dirs/pseudo \
        --cfg-options train_dataloader.dataset.indices=7
    python tools/train.py CONFIG --cfg-options train_dataloader.dataset.ann_file=$PWD/work_dirs/pseudo/infos.pkl

CONFIG is of a segmentor of mmdet3d on data in the layout of SemanticKITTI. The labeled scans are those of
train_dataloader.dataset.indices; all others of its annotation file get labels, those of --ann-file if that is given.
OUT gets a label file for every scan that had none, and infos.pkl, the annotation file of all scans; points without a
label are 0 there (unlabelled), which the config ignores.

--method transport keeps the share of points that progressive transport labels first, with class sizes pulled to those
of the labeled scans, so that rare classes get their part; with --strength points next to each other agree. --method
confidence keeps what has the largest probability, or at least --threshold; class-confidence does so class by class.
With --check the label files of the scans that are there are compared: how many points got a label, how many rightly.
"""

import argparse
import copy
import os
import pickle
import sys
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.files import write_bytes, write_json
from clusterplug.core.outputs import output_folder, settings_of
from clusterplug.user_errors import run_tool

METHODS = ('transport', 'confidence', 'class-confidence')
LABEL_STEPS = ('LoadAnnotations3D', 'PointSegClassMapping')


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a segmentor: a path, or package::path')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/pseudo_labels'), help='folder (default: %(default)s)'
    )
    parser.add_argument('--ann-file', help='annotation file of the unlabeled scans (default: that of the training)')
    parser.add_argument(
        '--method', choices=METHODS, default='transport', help='how points are chosen (default: transport)'
    )
    parser.add_argument('--share', type=float, default=0.5, help='of the points that get labels (default: %(default)s)')
    parser.add_argument(
        '--threshold', type=float, help='probability, of --method confidence, instead of --share (default: none)'
    )
    parser.add_argument(
        '--prior', choices=('labeled', 'uniform'), default='labeled',
        help='expected class sizes of transport: those of the labeled scans, or all equal (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument('--penalty', type=float, default=1.0, help='pull to these sizes (default: %(default)s)')
    parser.add_argument('--epsilon', type=float, default=0.1, help='entropy of transport (default: %(default)s)')
    parser.add_argument('--strength', type=float, default=0.0, help='of agreement between neighbors (default: 0.0)')
    parser.add_argument('--fit-points', type=int, default=300_000, help='on which shares are found (default: 300000)')
    parser.add_argument(
        '--labeled-share', type=float, metavar='SHARE',
        help='of an epoch: labeled scans are listed several times, as their labels are right (default: each once)',
    )  # fmt: skip
    parser.add_argument('--check', action='store_true', help='compare with the label files that are there')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of the config (default: none)',
    )  # fmt: skip
    return parser.parse_args(arguments)


def data_sets(config, ann_file: str | None):
    """The labeled scans, with labels, and all scans to be labeled, without; and which of them are labeled."""
    from clusterplug.registry import DATASETS

    train = config.get('train_dataloader')
    if train is None or config.get('val_dataloader') is None:
        raise ValueError('the config needs a train_dataloader and a val_dataloader')
    chosen = copy.deepcopy(train.dataset)
    while 'dataset' in chosen and 'ann_file' not in chosen:  # RepeatDataset
        chosen = chosen.dataset
    pipeline = list(config.val_dataloader.dataset.pipeline)
    loads = [step for step in pipeline if step['type'] == 'LoadAnnotations3D']
    if not loads or loads[0].get('dataset_type') != 'semantickitti':
        raise ValueError(
            "the data must be in the layout of SemanticKITTI (LoadAnnotations3D with dataset_type='semantickitti'); "
            'prepare yours with tools/prepare_semantickitti.py'
        )
    labeled = DATASETS.build(dict(chosen, pipeline=pipeline, test_mode=True))
    points_only = [dict(step) for step in pipeline if step['type'] not in LABEL_STEPS]
    points_only[-1]['keys'] = ['points']
    if ann_file is None and chosen.get('indices') is None:
        raise ValueError(
            'train_dataloader.dataset.indices must say which scans are labeled, or --ann-file where the others are '
            'listed; nothing is left to label otherwise'
        )
    every = dict(chosen, pipeline=points_only, test_mode=True, indices=None)
    if ann_file is not None:
        every['ann_file'] = ann_file
    return labeled, DATASETS.build(every)


class Scans:
    """What an annotation file says of its scans, with whole paths."""

    def __init__(self, dataset):
        import mmengine

        entries = mmengine.load(dataset.ann_file)
        self.metainfo, self.dataset, points = entries.get('metainfo', {}), dataset, dataset.data_prefix.get('pts', '')
        names = (
            os.path.abspath(os.path.join(points, each['lidar_points']['lidar_path'])) for each in entries['data_list']
        )
        by_path = dict(zip(names, entries['data_list'], strict=True))
        self.points = [
            os.path.abspath(dataset.get_data_info(number)['lidar_points']['lidar_path'])
            for number in range(len(dataset))
        ]
        self.entries = [by_path[path] for path in self.points]

    def label_file(self, number: int) -> str | None:
        """The label file that the annotation file names."""
        name = self.entries[number].get('pts_semantic_mask_path')
        return name and os.path.abspath(os.path.join(self.dataset.data_prefix.get('pts_semantic_mask', ''), name))

    def entry(self, number: int, labels: str | Path) -> dict:
        """The scan for another annotation file, with these labels."""
        found = copy.deepcopy(self.entries[number])
        found['lidar_points']['lidar_path'] = self.points[number]
        return {**found, 'pts_semantic_mask_path': os.path.abspath(labels)}


class Predictions:
    """Log-probabilities of the points of a scan, and their neighbors."""

    def __init__(self, model, dataset, num_neighbors: int):
        self.model, self.dataset, self.num_neighbors = model.eval(), dataset, num_neighbors

    @torch.no_grad()
    def __call__(self, number: int):
        from mmengine.dataset import pseudo_collate

        data = self.dataset[number]
        (found,) = self.model.test_step(pseudo_collate([data]))
        logits = getattr(getattr(found, 'pts_seg_logits', None), 'pts_seg_logits', None)
        if logits is None:
            raise ValueError(f'{type(self.model).__name__} gives no scores of points; pseudo-labels need a segmentor')
        log_probs = logits.T.float().log_softmax(1).cpu()
        return log_probs, self._neighbors(np.asarray(data['inputs']['points'])[:, :3])

    def _neighbors(self, points: np.ndarray):
        if self.num_neighbors == 0:
            return None
        from scipy.spatial import cKDTree

        near = cKDTree(points).query(points, k=min(self.num_neighbors + 1, len(points)))[1].reshape(len(points), -1)
        own = near == np.arange(len(points))[:, None]
        own[~own.any(1), -1] = True  # among points in one place: the farthest leaves instead
        return torch.from_numpy(near[~own].reshape(len(points), -1).astype(np.int64))


def class_counts(labeled, num_classes: int) -> np.ndarray:
    counts = np.zeros(num_classes, np.int64)
    for number in range(len(labeled)):
        truth = labeled[number]['data_samples'].eval_ann_info['pts_semantic_mask']
        counts += np.bincount(truth[truth < num_classes], minlength=num_classes)[:num_classes]
    return counts


def rule_of(args, counts: np.ndarray):
    from clusterplug.analysis import ConfidentLabels, TransportLabels

    if args.method != 'transport':
        return ConfidentLabels(args.threshold, args.share, per_class=args.method == 'class-confidence')
    if args.threshold is not None:
        raise ValueError('--threshold is of --method confidence; transport takes --share')
    prior = None
    if args.prior == 'labeled':
        if counts.sum() == 0:
            raise ValueError('the labeled scans have no labels, so that no class sizes follow; use --prior uniform')
        prior = torch.from_numpy((counts + 1) / (counts + 1).sum())  # a class that they lack is rare, not absent
    return TransportLabels(args.share, epsilon=args.epsilon, penalty=args.penalty, prior=prior, strength=args.strength)


def fit(rule, predict, scans: list[int], args) -> None:
    """Find thresholds or scalings on scans that are evenly spread over the unlabeled ones."""
    found, total = [], 0
    # by the fractional part of the golden ratio: any number of the first ones is spread evenly
    for place in sorted(range(len(scans)), key=lambda place: place * 0.6180339887498949 % 1):
        found.append(predict(scans[place]))
        total += len(found[-1][0])
        if total >= args.fit_points:
            break
    print(f'{total} points of {len(found)} scans to fit', file=sys.stderr, flush=True)
    rule.fit([each[0] for each in found], [each[1] for each in found] if rule.num_neighbors else None)


def repeats_of(share: float | None, labeled: int, new: int) -> int:
    """How often a labeled scan is listed for labeled ones to be about this share of all."""
    if share is None:
        return 1
    if not 0 < share < 1:
        raise ValueError(f'--labeled-share must be between 0 and 1, got {share}')
    return max(1, round(share / (1 - share) * new / max(1, labeled)))


class Check:
    """Points by true class and label, as far as there are label files."""

    def __init__(self, names: list[str], mapping):
        self.names, self.mapping = names, mapping
        self.hits = np.zeros((len(names), len(names) + 1), np.int64)

    def add(self, path: str | None, labels: np.ndarray) -> None:
        if path is None or not os.path.isfile(path):
            return
        table = np.full(2**16, len(self.names))
        items = self.mapping.items() if isinstance(self.mapping, dict) else enumerate(np.asarray(self.mapping))
        for raw, name in items:
            table[raw] = name
        truth = table[np.fromfile(path, '<u4') & 0xFFFF]
        known = truth < len(self.names)
        np.add.at(self.hits, (truth[known], labels[known]), 1)

    def report(self) -> dict:
        """Share of the points of each class that got a label, and of the labels of each class that are right."""
        given, right = self.hits[:, :-1], np.diagonal(self.hits)
        found = dict(share=float(given.sum() / max(1, self.hits.sum())), right=float(right.sum() / max(1, given.sum())))
        classes = {}
        for k, name in enumerate(self.names):
            if self.hits[k].sum() or given[:, k].sum():
                precision = float(right[k] / given[:, k].sum()) if given[:, k].sum() else None
                recall = float(right[k] / self.hits[k].sum()) if self.hits[k].sum() else None
                classes[name] = dict(precision=precision, recall=recall, labels=int(given[:, k].sum()))
        return {**found, 'classes': classes}


def run(args) -> str:
    from clusterplug.cli import data_folders, load_config

    if not Path(args.checkpoint).is_file():
        raise ValueError(f'CHECKPOINT must be a file, got {args.checkpoint}, which does not exist')
    config = load_config(args.config, args.cfg_options, str(args.out / 'log'))
    sources = [args.checkpoint, *data_folders(config)]
    files = ('sequences/*/labels/*.label', 'pseudo_labels.json', 'infos.pkl')
    with output_folder(args.out, 'pseudo_labels', files=files, sources=sources, settings=settings_of(args)):
        return write_labels(args, config)


def write_labels(args, config) -> str:
    """Fit the rule, label every scan that is not labeled, list all scans."""
    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import build_runner

    runner = build_runner(config)  # first: it also makes the data sets of mmdet3d known
    sets = data_sets(config, args.ann_file)
    load_checkpoint_into(runner.model, args.checkpoint)
    labeled, every = (Scans(each) for each in sets)
    names = list(every.dataset.metainfo['classes'])
    known = set(labeled.points)
    new = [number for number, points in enumerate(every.points) if points not in known]
    if not new:
        raise ValueError(f'all {len(every.points)} scans are labeled; nothing is left to label')
    repeats = repeats_of(args.labeled_share, len(labeled.points), len(new))
    counts = class_counts(labeled.dataset, len(names))
    rule = rule_of(args, counts)
    predict = Predictions(runner.model, every.dataset, rule.num_neighbors)
    fit(rule, predict, new, args)
    entries = [labeled.entry(number, labeled.label_file(number)) for number in range(len(labeled.points))]
    entries *= repeats
    check = Check(names, every.dataset.metainfo['seg_label_mapping'])
    given, total = np.zeros(len(names), np.int64), 0
    for place, number in enumerate(new):
        found = rule(*predict(number)).labels.numpy()
        entries.append(every.entry(number, write_scan(args.out, every.points[number], found, check)))
        given += np.bincount(found[found >= 0], minlength=len(names))
        total += len(found)
        if args.check:
            check.add(every.label_file(number), np.where(found >= 0, found, len(names)))
        if place % 20 == 19 or place + 1 == len(new):
            print(f'{place + 1} of {len(new)} scans', file=sys.stderr, flush=True)
    summary = dict(
        labeled=len(labeled.points), repeats=repeats, scans=len(new), share=float(given.sum() / max(1, total)),
        points={name: int(count) for name, count in zip(names, given)},
        labeled_points={name: int(count) for name, count in zip(names, counts)},
    )  # fmt: skip
    lines = [
        f'{len(new)} scans: {summary["share"]:.1%} of {total} points got a label; {len(labeled.points)} are labeled'
    ]
    if args.check:
        summary['check'] = check.report()
        lines.append(f'of the labels {summary["check"]["right"]:.1%} are right')
    write_json(args.out / 'pseudo_labels.json', summary)
    write_bytes(args.out / 'infos.pkl', pickle.dumps(dict(metainfo=every.metainfo, data_list=entries)))
    lines.append(f'train on all: train_dataloader.dataset.ann_file={(args.out / "infos.pkl").resolve()}')
    return '\n'.join(lines)


def write_scan(out: Path, points: str, labels: np.ndarray, check: 'Check') -> Path:
    """Write the label file of a scan, 0 where a point has no label."""
    from clusterplug.datasets.semantickitti_submission import UNLABELLED, raw_labels

    inverse = raw_labels(check.mapping, len(check.names))
    raw = np.where(labels >= 0, inverse[np.maximum(labels, 0)], UNLABELLED).astype('<u4')
    if len(raw) * 16 != os.path.getsize(points):
        raise ValueError(f'{points} has other points than the {len(raw)} predicted; the pipeline must keep them all')
    target = out / 'sequences' / Path(points).parts[-3] / 'labels' / f'{Path(points).stem}.label'
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, raw.tobytes())
    return target


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    try:
        print(run(args))
    except (ValueError, TypeError, OSError, ImportError, UnpicklingError) as error:
        print(f'pseudo_labels: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'pseudo_labels'))
