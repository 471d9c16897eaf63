# SPDX-License-Identifier: Apache-2.0
"""Few and uneven labels in the LiDAR city: pseudo-labels, weights of rare scans, subspace learners on objects.

    export OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks
    python benchmarks/few_labels_city.py --part labels pseudo rain --columns 256 --seeds 0 1 2
    python benchmarks/few_labels_city.py --part objects unseen --seeds 0 1 2
    python benchmarks/few_labels_city.py --part objects unseen --only-print --page docs/benchmarks.md

labels: a MinkUNet is trained on 5 of 100 scans, tools/pseudo_labels.py labels the others; how many labels are right.
pseudo: this network is trained on for as many steps, every other scan one of the 5; IoU on other streets, of the rarest
40 % of the classes as well. Without pseudo-labels it goes on with the 5.
rain: 5 of 100 training scans have lost most of their points; training with and without weights of their likelihoods,
IoU on dry scans and on the same scans in rain. As a control, the weights of rain are given to as many dry scans.
unseen: the network ignores seven classes; their objects are labeled from one and five examples, and clustered.
objects: mean features of labeled objects from the network that was trained on all scans; one learner, fixed numbers and
learners that grow, trained on half of the scans.

City 2 is for choosing settings, city 1 for figures; all settings are the defaults of the tools. Every result is noted
in --ledger as it is finished, trainings are kept under --out: a run that was stopped goes on.
"""

import argparse
import functools
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import torch
from _city_segmentation import LINEAR, ROOT, class_ious, class_points, rain, scans_of, settings, trained
from _few_labels_tables import lines_of
from _gain_ledger import content_key_of
from _seed_ledger import SeedLedger
from _timing import one_thread_each, publish
from _unseen_objects import Unseen

LEDGER = Path(__file__).with_name('few_labels_city.json')
SCANS, LABELED, WET = 100, 5, 5
# What tools/pseudo_labels.py is told; the others are trained on labels alone. The share was chosen on city 2.
ALONE, BASE = 'the 5 labeled scans alone', 'the most confident 80 %'
PSEUDO = {
    'confidence of at least 0.9': ['--method', 'confidence', '--threshold', '0.9'],
    BASE: ['--method', 'confidence', '--share', '0.8'],
    'the most confident 80 % of each class': ['--method', 'class-confidence', '--share', '0.8'],
    'transport of 80 %': ['--method', 'transport', '--share', '0.8'],
    'transport of 80 %, neighbors': ['--method', 'transport', '--share', '0.8', '--strength', '0.2'],
}
RAIN = ('no weights', 'likelihoods by HDBSCAN', 'known condition', 'as many dry scans, drawn at random')
LEARNERS = ('1', '2', '4', 'growing')


def tool(name: str):
    spec = importlib.util.spec_from_file_location(f'{name}_tool', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_validation(config):
    """The config with its test scans for the validation, which the tools read."""
    found = config.copy()
    found.val_dataloader, found.val_evaluator, found.val_cfg = config.test_dataloader, config.test_evaluator, {}
    return found


def remembered(predictions: type, seen: dict) -> type:
    """The class of predictions, with neighbors always, that computes each scan once."""

    class Remembered(predictions):
        def __init__(self, model, dataset, num_neighbors: int):
            super().__init__(model, dataset, 8)

        def __call__(self, number: int):
            if number not in seen:
                seen[number] = super().__call__(number)
            return seen[number]

    return Remembered


class Pseudo:
    """The trainings of one seed: on few labels, on all, and on what each rule made of the others."""

    name, methods = 'pseudo', (ALONE, *PSEUDO, 'all 100 scans labeled')

    def __init__(self, options, seed: int):
        self.options, self.seed = options, seed
        self.data = options.out / f'city{options.city}'
        self.folder = options.out / f'pseudo-city{options.city}-{options.steps}-seed{seed}'
        self.labeled = sorted(np.random.default_rng(seed).permutation(SCANS)[:LABELED].tolist())
        self.seen: dict = {}  # what the first network makes of each scan, for all rules

    def teacher(self):
        """The config of the first network, of the few labeled scans."""
        config = settings(LINEAR, self.data, self.folder / 'teacher', self.options.steps, self.seed)
        config.train_dataloader.dataset.indices = self.labeled
        return config

    def config(self, method: str):
        """The config of the second training, which goes on from the first network."""
        config = settings(LINEAR, self.data, self.folder / method.replace(' ', '_'), self.options.steps, self.seed)
        if method == ALONE:
            config.train_dataloader.dataset.indices = self.labeled
        elif method in PSEUDO:
            config.train_dataloader.dataset.ann_file = str((self.labels_of(method) / 'infos.pkl').resolve())
        return config

    def labels_of(self, method: str) -> Path:
        return self.folder / 'labels' / method.replace(' ', '_')

    def first(self) -> Path:
        """The checkpoint of the first network."""
        config = self.teacher()
        trained(config, self.options.steps)
        return Path(config.work_dir) / f'iter_{self.options.steps}.pth'

    def label(self, method: str) -> dict:
        """Label the other scans, or read what was found of them."""
        import mmengine

        noted = self.labels_of(method) / 'pseudo_labels.json'
        if not noted.is_file():
            config = self.folder / 'teacher.py'
            checkpoint = str(self.first())
            with_validation(self.teacher()).dump(str(config))
            write = tool('pseudo_labels')
            write.Predictions = remembered(write.Predictions, self.seen)
            arguments = [str(config), checkpoint, '--out', str(noted.parent), '--check', '--labeled-share', '0.5']
            arguments += PSEUDO[method]
            print(write.run(write.parse_arguments(arguments)), flush=True)
        return mmengine.load(str(noted))

    def rarest(self) -> list[int]:
        return np.argsort(class_points(self.data, 'train', dict(model_mapping())))[:8].tolist()

    def measure(self, method: str) -> dict:
        checked = {}
        if method in PSEUDO:
            found = self.label(method)
            checked = dict(share=found['share'], right=found['check']['right'])
        model, test = trained(self.config(method), self.options.steps, self.first())
        return dict(iou=nan_free(class_ious(model, test)), rarest=self.rarest(), **checked)


class Labels(Pseudo):
    """What each rule makes of the scans that nobody labeled, without a second training."""

    name, methods = 'labels', tuple(PSEUDO)

    def __init__(self, options, seed: int):
        super().__init__(options, seed)
        self.trained = Pseudo(options, seed)

    def config(self, method: str):
        return self.trained.teacher()

    def measure(self, method: str) -> dict:
        found = self.trained.label(method)
        names = load_class_names()
        rare = {name: found['check']['classes'].get(name) for name in (names[k] for k in self.rarest())}
        return dict(share=found['share'], right=found['check']['right'], rare=rare)


class Rain:
    """The trainings of one seed with some scans in rain: without weights, and with those of two likelihoods."""

    name, methods = 'rain', RAIN

    def __init__(self, options, seed: int):
        self.options, self.seed = options, seed
        self.data = options.out / f'city{options.city}-rain'
        self.test = options.out / f'city{options.city}-rain-test'
        self.folder = options.out / f'rain-city{options.city}-{options.steps}-seed{seed}'
        self.wet = sorted(np.random.default_rng(0).permutation(SCANS)[:WET].tolist())
        self.drawn = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(SCANS), self.wet))[:WET]

    def prepare(self) -> None:
        """The city with some training scans in rain, and one with all test scans in rain."""
        for target, split, chosen in ((self.data, 'train', self.wet), (self.test, 'val', range(10**6))):
            if target.is_dir():
                continue
            part = target.with_name(target.name + '.part')
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.options.out / f'city{self.options.city}', part)
            rain(part, [scan for number, scan in enumerate(scans_of(part, split)) if number in chosen], seed=1)
            part.rename(target)

    def config(self, method: str):
        config = settings(LINEAR, self.data, self.folder / method.replace(' ', '_'), self.options.steps, self.seed)
        if method != RAIN[0]:
            config.model = dict(
                type='clusterplug.WithSampleWeights', model=config.model, normalize='mean',
                likelihood=str(self.folder / method.replace(' ', '_') / 'likelihood.json'),
            )  # fmt: skip
        return config

    def find_likelihoods(self, method: str) -> dict:
        """Write the table of a method; how well it finds the scans in rain."""
        from sklearn.metrics import roc_auc_score

        from clusterplug.estimators import SampleLikelihood

        scans = ['/'.join(scan.parts[-3:]) for scan in scans_of(self.data, 'train')]
        rare = np.isin(np.arange(len(scans)), self.wet)
        file = self.folder / method.replace(' ', '_') / 'likelihood.json'
        file.parent.mkdir(parents=True, exist_ok=True)
        if method in RAIN[2:]:
            chosen = rare if method == RAIN[2] else np.isin(np.arange(len(scans)), self.drawn)
            SampleLikelihood.from_labels(chosen.astype(int), ids=scans).save(file, key='lidar_path')
        else:
            plain = self.config(RAIN[0])
            trained(plain, self.options.steps)  # the features of the network without weights
            config = self.folder / 'plain.py'
            with_validation(plain).dump(str(config))
            checkpoint = str(Path(plain.work_dir) / f'iter_{self.options.steps}.pth')
            arguments = [str(config), '--checkpoint', checkpoint, '--out', str(self.folder / 'tool'), '--standardize']
            if tool('dataset_equity').main([*arguments, '--min-samples', '3', '--no-pictures']):
                raise RuntimeError('tools/dataset_equity.py failed')
            shutil.copyfile(self.folder / 'tool' / 'likelihood.json', file)
        found = SampleLikelihood.load(file).to_dict()
        p = np.array([found[scan] for scan in scans])
        weights = (0.5 + (1 - p) ** 5) / 1.5
        return dict(
            auc=float(roc_auc_score(rare, -p)), ratio=float(weights[rare].mean() / weights[~rare].mean())
        )  # fmt: skip

    def measure(self, method: str) -> dict:
        self.prepare()
        found = {} if method == RAIN[0] else self.find_likelihoods(method)
        config = self.config(method)
        model, dry = trained(config, self.options.steps)
        loader = dict(config.test_dataloader, dataset=dict(config.test_dataloader.dataset))
        loader['dataset']['data_root'] = str(self.test.resolve())
        from mmengine.runner import Runner

        wet = Runner.build_dataloader(loader)
        return dict(dry=nan_free(class_ious(model, dry)), wet=nan_free(class_ious(model, wet)), **found)


class Objects:
    """Subspace learners on the mean features of objects."""

    name, methods = 'objects', LEARNERS

    def __init__(self, options, seed: int):
        self.options, self.seed = options, seed
        self.teacher = Pseudo(options, 0)

    def config(self, method: str):
        folder = self.teacher.folder / 'objects'
        return settings(LINEAR, self.teacher.data, folder, self.options.steps, self.teacher.seed)

    def features(self) -> dict:
        """Objects of the labeled classes, kept: features, labels, scans."""
        file = self.options.out / f'objects-city{self.options.city}-{self.options.steps}.npz'
        if not file.is_file():
            discover = tool('discover_classes')
            config = self.config('1')
            model, _ = trained(config, self.options.steps)
            arguments = discover.parse_arguments(['config', 'checkpoint'])
            dataset = discover.labelled_set(with_validation(config), 'val')
            objects, x = discover.collect(model, dataset, len(dataset), [], arguments)
            about = {name: np.array([found[name] for found in objects]) for name in ('label', 'scan')}
            np.savez(file, x=x, **about)
        return dict(np.load(file))

    def measure(self, method: str) -> dict:
        from subspace_learners import train

        found = self.features()
        known = found['label'] >= 0
        values, counts = np.unique(found['label'][known], return_counts=True)
        rows = known & np.isin(found['label'], values[counts >= 20])
        x, y = found['x'][rows], np.unique(found['label'][rows], return_inverse=True)[1]
        half = found['scan'][rows] >= 15  # scans of other streets for the test
        x = (x - x[~half].mean(0)) / (x[~half].std(0) + 1e-9)
        learners, dynamic = (1, True) if method == 'growing' else (int(method), False)
        parts = (torch.from_numpy(np.flatnonzero(half == each)) for each in (0, 1))
        data = (torch.tensor(x, dtype=torch.float32), torch.tensor(y), *parts)
        best, last, recall, splits, sizes = train(learners, dynamic, self.seed, data=data)
        return dict(
            best=best, last=last, recall=recall, splits=splits, sizes=sizes, objects=int(rows.sum()),
            classes=int(y.max()) + 1,
        )  # fmt: skip


PARTS = {
    **{part.name: part for part in (Labels, Pseudo, Rain, Objects)},
    Unseen.name: functools.partial(Unseen, tool=tool, with_validation=with_validation),
}
METHODS = {part.name: part.methods for part in (Labels, Pseudo, Rain, Objects, Unseen)}


def nan_free(values) -> list:
    return [None if np.isnan(value) else float(value) for value in values]


def model_mapping() -> dict:
    from clusterplug.cli import load_config

    return load_config(str(LINEAR), None, 'work_dirs/reading').labels_map


def load_class_names() -> list[str]:
    from clusterplug.cli import load_config

    return load_config(str(LINEAR), None, 'work_dirs/reading').class_names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', nargs='+', choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument('--out', type=Path, default=Path('work_dirs/few_labels_city'), help='where trainings are kept')
    parser.add_argument('--city', type=int, choices=(1, 2), default=1, help='2 to choose settings, 1 to report')
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(3)))
    parser.add_argument('--steps', type=int, default=400, help='of each training, one scan a step')
    parser.add_argument('--columns', type=int, default=128, help='firings in a turn of the scanner')
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of the results (default: %(default)s)')
    parser.add_argument('--only-print', action='store_true', help='train nothing; the tables of what is in the ledger')
    parser.add_argument('--page', help='page whose parts "few_labels_city_PART" are replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    from clusterplug import compat
    from clusterplug.datasets.lidar_city import generate_lidar_city

    compat.apply_all()
    ledger = SeedLedger(options.ledger, options.only_print, ('mmdet3d', 'spconv', 'scikit-learn'))
    if not options.only_print:
        generate_lidar_city(
            options.out / f'city{options.city}', num_train=SCANS, num_val=30, seed=options.city - 1,
            columns=options.columns,
        )  # fmt: skip
    with one_thread_each():
        for name in options.part:
            entries: dict[str, dict[int, dict]] = {method: {} for method in METHODS[name]}
            for seed in options.seeds:
                part = PARTS[name](options, seed)
                for method in METHODS[name]:
                    key = dict(
                        part=name, city=options.city, columns=options.columns, steps=options.steps, method=method,
                        seed=seed, content=content_key_of(part.config(method)),
                    )  # fmt: skip
                    entry = ledger.measured(key, functools.partial(part.measure, method))
                    if entry is not None:
                        entries[method][seed] = entry
            title = f'City {options.city}, {options.columns} columns, {options.steps} steps'
            lines = lines_of(name, entries, title, BASE if name != 'rain' else RAIN[0])
            print('\n'.join(['', *lines]), flush=True)
            if options.page:
                publish(options.page, f'few_labels_city_{name}', ['', *lines, ''])


if __name__ == '__main__':
    main()
