# SPDX-License-Identifier: Apache-2.0
"""Ten real KITTI frames, one frame of each training in rain: a small PointPillars with and without sample weights."""

import os
import shutil
import statistics
from pathlib import Path

import numpy as np
import torch
from _city_segmentation import ROOT, shorten, stays_in_rain, trained
from _gain_ledger import content_key_of, interval
from _seed_ledger import SeedLedger, sources, spread

CONFIG = ROOT / 'configs' / 'point_cluster' / 'pointpillars_hv_secfpn_1xb2-150e_kitti-frames.py'
METHODS = ('no weights', 'likelihoods by 3rd neighbor', 'condition known')
FRAMES, FOLDS, OVERLAP, LEAST_POINTS = 10, 3, 0.5, 5
NEAR_CARS = (2, 3, 6, 7, 8, 9)  # frames with a car within 40 m, one of which is in rain
RANGE, PILLAR = [0.0, -20.48, -3.0, 61.44, 20.48, 1.0], 0.32
WEATHER = {'dry': 'velodyne_reduced', 'rain': 'velodyne_rain'}


def average_precision(scores, hits, number: int) -> float:
    """Area under precision and recall, without interpolation: the mean over all objects of the precision at each."""
    hits = np.asarray(hits, float)[np.argsort(-np.asarray(scores, float), kind='stable')]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / number)


def matches(boxes, scores, truth, least: float = OVERLAP) -> np.ndarray:
    """(n,) whether a detection is the best one of an object that it overlaps from above by at least ``least``."""
    from clusterplug.compat.rotated_overlap import rotated_iou

    found, free = np.zeros(len(scores), bool), np.ones(len(truth), bool)
    if not len(scores) or not len(truth):
        return found
    overlaps = rotated_iou(boxes, truth).numpy()
    for row in np.argsort(-np.asarray(scores, float), kind='stable'):
        best = int(np.where(free, overlaps[row], -1.0).argmax())
        if free[best] and overlaps[row, best] >= least:
            found[row], free[best] = True, False
    return found


def prepare(root: Path) -> None:
    """The frames in mmdet3d's layout, and a copy of each in rain."""
    from clusterplug.datasets.kitti_convert import prepare_kitti

    rainy = root / 'training' / WEATHER['rain']
    if rainy.is_dir():
        return
    prepare_kitti(
        Path(os.environ['CLUSTERPLUG_DATA'], 'kitti'), root, dict(train=[f'{frame:06}' for frame in range(FRAMES)])
    )
    part = rainy.with_name(rainy.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for scan in sorted((root / 'training' / WEATHER['dry']).glob('*.bin')):
        points = np.fromfile(scan, np.float32).reshape(-1, 4)
        points[stays_in_rain(points, np.random.default_rng(int(scan.stem)))].tofile(part / scan.name)
    part.rename(rainy)


def small_detector(steps: int, seed: int, folder: Path):
    """PointPillars of the project's KITTI config for cars alone: pillars of 0.32 m, half of the channels."""
    from clusterplug.cli import load_config

    found = load_config(str(CONFIG), None, str(folder))
    size, rows, columns = [PILLAR, PILLAR, 4], *(round((RANGE[k + 3] - RANGE[k]) / PILLAR) for k in (1, 0))
    model = found.model
    model.data_preprocessor.voxel_layer.update(
        point_cloud_range=RANGE, voxel_size=size, max_num_points=16, max_voxels=(16000, 16000)
    )
    model.voxel_encoder.update(voxel_size=size, point_cloud_range=RANGE, feat_channels=[32])
    model.middle_encoder.update(in_channels=32, output_shape=[rows, columns])
    model.backbone.update(in_channels=32, out_channels=[32, 64, 128])
    model.neck.update(in_channels=[32, 64, 128], out_channels=[32, 32, 32])
    ground = [*RANGE[:2], -1.78, *RANGE[3:5], -1.78]
    model.bbox_head.update(num_classes=1, in_channels=96, feat_channels=96)
    model.bbox_head.anchor_generator.update(ranges=[ground], sizes=[[3.9, 1.6, 1.56]])
    model.train_cfg.assigner = [model.train_cfg.assigner[-1]]
    model.test_cfg.score_thr = 0.02
    shorten(found, folder, steps, seed)
    return found


class Fold:
    """One training: some frames held out, one of the others in rain."""

    def __init__(self, options, repeat: int, fold: int, find_likelihoods):
        self.steps, self.find_likelihoods = options.steps, find_likelihoods
        self.root = options.out / 'kitti'
        order = np.random.default_rng(repeat).permutation(FRAMES)
        self.held_out = sorted(order[fold::FOLDS].tolist())
        self.frames = sorted(set(range(FRAMES)) - set(self.held_out))
        self.seed = FOLDS * repeat + fold
        self.wet = int(np.random.default_rng(self.seed).choice([each for each in self.frames if each in NEAR_CARS]))
        self.folder = options.out / f'kitti-{options.steps}-repeat{repeat}-fold{fold}'

    def scans(self) -> str:
        """The folder with the scans of the training, as links."""
        folder = self.root / 'training' / f'velodyne_rain{self.wet}'
        folder.mkdir(exist_ok=True)
        for frame in range(FRAMES):
            link, weather = folder / f'{frame:06}.bin', WEATHER['rain' if frame == self.wet else 'dry']
            if not link.is_symlink():
                link.symlink_to(f'../{weather}/{link.name}')
        return f'training/{folder.name}'

    def config(self, method: str):
        found = small_detector(self.steps, self.seed, self.folder / method.replace(' ', '_'))
        load, annotations, *_ = found.train_pipeline
        bounds = [dict(type=f'{kind}RangeFilter', point_cloud_range=RANGE) for kind in ('Points', 'Object')]
        moves = [each for each in found.train_pipeline if each['type'] in ('RandomFlip3D', 'GlobalRotScaleTrans')]
        pack = dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d'])
        common = dict(
            data_root=str(self.root.resolve()), ann_file='kitti_infos_train.pkl', metainfo=dict(classes=['Car']),
            test_mode=False, filter_empty_gt=False,
        )  # fmt: skip
        found.train_dataloader.update(sampler=dict(type='InfiniteSampler', shuffle=True))
        found.train_dataloader.dataset.update(
            common, indices=self.frames, data_prefix=dict(pts=f'training/velodyne_rain{self.wet}'),
            pipeline=[load, annotations, *moves, *bounds, dict(type='PointShuffle'), pack],
        )  # fmt: skip
        found.test_dataloader.update(batch_size=FRAMES)
        found.test_dataloader.dataset.update(
            common, indices=self.held_out, pipeline=[load, annotations, *bounds, pack]
        )  # fmt: skip
        if method != METHODS[0]:
            found.model = dict(
                type='clusterplug.WithSampleWeights', model=found.model, normalize='mean',
                likelihood=str(self.likelihoods(method)),
            )  # fmt: skip
        return found

    def likelihoods(self, method: str) -> Path:
        return self.folder / method.replace(' ', '_') / 'likelihood.json'

    def write_likelihoods(self, method: str) -> dict:
        """Write the table of a method: how well it finds the frame in rain, and its weight over that of the others."""
        from sklearn.metrics import roc_auc_score

        from clusterplug.estimators import SampleLikelihood

        ids = [f'{self.scans()}/{frame:06}.bin' for frame in self.frames]
        rare = np.array(self.frames) == self.wet
        file = self.likelihoods(method)
        file.parent.mkdir(parents=True, exist_ok=True)
        if method == METHODS[2]:
            SampleLikelihood.from_labels(rare.astype(int), ids=ids).save(file, key='lidar_path')
        else:
            plain = self.config(METHODS[0])
            trained(plain, self.steps)  # its features are those of the network without weights
            config, out = self.folder / 'plain.py', self.folder / 'tool'
            load, _, points, *_ = plain.test_dataloader.dataset.pipeline
            plain.test_dataloader.dataset.pipeline = [load, points, dict(type='Pack3DDetInputs', keys=['points'])]
            plain.dump(str(config))
            checkpoint = str(Path(plain.work_dir) / f'iter_{self.steps}.pth')
            arguments = [str(config), '--checkpoint', checkpoint, '--out', str(out), '--standardize', '--no-pictures']
            if self.find_likelihoods([*arguments, '--cluster', 'knn', '--n-neighbors', '3']):
                raise RuntimeError('tools/dataset_equity.py failed')
            shutil.copyfile(out / 'likelihood.json', file)
        found = SampleLikelihood.load(file).to_dict()
        p = np.array([found[each] for each in ids])
        weights = (0.5 + (1 - p) ** 5) / 1.5
        return dict(
            auc=float(roc_auc_score(rare, -p)), ratio=float(weights[rare].mean() / weights[~rare].mean())
        )  # fmt: skip

    @torch.no_grad()
    def measure(self, method: str) -> dict:
        """Loss on the held-out frames and what is found in them, dry and in rain."""
        from mmengine.runner import Runner

        self.scans()
        found = {} if method == METHODS[0] else self.write_likelihoods(method)
        config = self.config(method)
        with torch.enable_grad():
            model, _ = trained(config, self.steps)
        # the weights are of the training alone: losses are those of the model without them
        plain = Runner.from_cfg(self.config(METHODS[0])).model.eval()
        plain.load_state_dict(model.state_dict())
        for weather, folder in WEATHER.items():
            loader = config.test_dataloader.copy()
            loader.dataset = dict(loader.dataset, data_prefix=dict(pts=f'training/{folder}'))
            (batch,) = Runner.build_dataloader(loader)
            # for each anew: mmdet3d's pillar encoder writes into the voxels that it gets
            losses = plain(**plain.data_preprocessor(batch, False), mode='loss')
            guesses = plain(**plain.data_preprocessor(batch, False), mode='predict')
            loss = sum(float(sum(each) if isinstance(each, list) else each) for each in losses.values())
            cars, scores, hits = 0, [], []
            dry = batch if weather == 'dry' else dry  # noqa: F821 (the first of the two)
            for sample, scan in zip(guesses, dry['inputs']['points'], strict=True):
                boxes, points = sample.gt_instances_3d.bboxes_3d, scan[:, :3]
                owner = boxes.points_in_boxes_part(points) if len(boxes) else torch.full((len(points),), -1)
                truth = boxes.bev[torch.bincount(owner[owner >= 0].long(), minlength=len(boxes)) >= LEAST_POINTS]
                guess = sample.pred_instances_3d
                scores += guess.scores_3d.tolist()
                hits += matches(guess.bboxes_3d.bev, guess.scores_3d.numpy(), truth).tolist()
                cars += len(truth)
            found[weather] = dict(loss=loss, cars=cars, scores=scores, hits=hits)
        return found


def joined(folds: list[dict]) -> dict:
    """What the ledger notes of a repeat: a value of each fold, for its own network and held-out frames."""
    found = {}
    for weather in WEATHER:
        parts = [fold[weather] for fold in folds]
        found[weather] = dict(
            ap=[average_precision(part['scores'], part['hits'], part['cars']) for part in parts],
            found=sum(sum(part['hits']) for part in parts), cars=sum(part['cars'] for part in parts),
            loss=[part['loss'] for part in parts],
        )  # fmt: skip
    for name in ('auc', 'ratio'):
        if name in folds[0]:
            found[name] = [fold[name] for fold in folds]
    return found


def kitti(options, find_likelihoods) -> list[str]:
    """Lines of the page; what the ledger does not have is trained first."""
    ledger = SeedLedger(options.ledger, options.only_print, ('mmdet3d', 'scikit-learn'))
    if not options.only_print:
        from clusterplug import compat

        compat.apply_all()
        prepare(options.out / 'kitti')
    entries: dict[str, dict[int, dict]] = {method: {} for method in METHODS}
    for repeat in range(options.repeats):
        for method in METHODS:
            folds = [Fold(options, repeat, fold, find_likelihoods) for fold in range(FOLDS)]
            content = content_key_of(*(fold.config(method) for fold in folds))
            key = dict(part='kitti', steps=options.steps, method=method, repeat=repeat, content=content)
            entry = ledger.measured(key, lambda: joined([fold.measure(method) for fold in folds]))  # noqa: B023 (at once)
            if entry is not None:
                entries[method][repeat] = entry
    return table(entries, options.steps)


def table(entries: dict[str, dict[int, dict]], steps: int) -> list[str]:
    """The methods side by side; differences are paired over the trainings."""
    if not entries[METHODS[0]]:
        return ['Nothing measured yet.']
    lines = [
        '| weights | repeats | rain found, AUC | weight of rain / dry | AP dry | AP in rain | loss dry '
        '| loss in rain |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for method, found in entries.items():
        if not found:
            continue
        cells = [
            spread((each for entry in found.values() for each in entry['found'].get(name, [])), 2)
            for name in ('auc', 'ratio')
        ]
        for weather in WEATHER:
            cells.append(_compared(entries, method, lambda each, w=weather: [100 * ap for ap in each[w]['ap']], 1))
        for weather in WEATHER:
            cells.append(_compared(entries, method, lambda each, w=weather: each[w]['loss'], 2))
        lines.append(f'| {method} | {len(found)} | {" | ".join(cells)} |')
    about = next(iter(entries[METHODS[0]].values()))['found']['dry']
    remark = (
        f'{FOLDS} trainings a repeat, of {steps} steps of two frames each; AP in percent over the cars of its held-out '
        f'frames with at least {LEAST_POINTS} points ({about["cars"]} in all ten), overlap {OVERLAP} from above; mean '
        'over trainings. In parentheses: standard deviation. After a semicolon: difference to no weights, paired over '
        'trainings, with its 95 % interval.'
    )
    return [*lines, '', remark, '', *sources(entry for found in entries.values() for entry in found.values())]


def _compared(entries, method: str, values, digits: int) -> str:
    found, base = entries[method], entries[METHODS[0]]
    text = spread((each for entry in found.values() for each in values(entry['found'])), digits)
    pairs = [
        (ours, theirs)
        for repeat in sorted(set(found) & set(base))
        for ours, theirs in zip(values(found[repeat]['found']), values(base[repeat]['found']), strict=True)
    ]
    if method == METHODS[0] or len(pairs) < 2:
        return text
    differences = [ours - theirs for ours, theirs in pairs]
    low, high = interval(differences)
    return f'{text}; {statistics.mean(differences):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})'
