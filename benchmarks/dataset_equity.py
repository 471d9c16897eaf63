# SPDX-License-Identifier: Apache-2.0
"""Weights from likelihoods: do they find a rare condition, and does training with them help it?

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/dataset_equity.py --only digits
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/dataset_equity.py --page docs/benchmarks.md     # all parts

What the weights do for a training in the city: benchmarks/few_labels_city.py.

digits: 5 % of the training images of scikit-learn's digits are shown as negatives. Likelihoods come from the pixels
alone; an MLP is trained with and without the weights, for as many steps, and tested on plain and on negative images.
city: scans of the generated LiDAR city, of which 5 % lose most of their points, as in rain; the tool embeds them with
an untrained MinkUNet and ranks them.
kitti: ten real frames (in $CLUSTERPLUG_DATA), a third held out in turn; one training frame is in rain. A small
PointPillars is trained with and without weights, then tested on the held-out frames, dry and in rain. Results go to
--ledger as they are finished, trainings are kept under --out.
"""

import argparse
import contextlib
import importlib.util
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from _city_segmentation import rain, scans_of
from _kitti_weights import kitti
from _timing import describe_machine, one_thread_each, publish
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from clusterplug.estimators import SampleLikelihood

ROOT = Path(__file__).resolve().parents[1]
LEDGER = Path(__file__).with_name('dataset_equity.json')
FORMS = {
    'HDBSCAN': dict(cluster='hdbscan', min_samples=10),
    'k-means, 20 clusters': dict(cluster='kmeans', n_clusters=20),
    '10th neighbor': dict(cluster='knn'),
}


def markdown(lines):
    head, *rest = ['| ' + ' | '.join(line) + ' |' for line in lines]
    return [head, '|' + '---|' * len(lines[0]), *rest]


def fit_mlp(x, y, weights, seed, steps=300):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows], reduction='none')
        (loss * weights[rows]).mean().backward()
        optimizer.step()
    return model


def accuracy(model, x, y):
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).double().mean())


def digits(seeds):
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32) / 16
    results = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(pixels))
        train, test = order[:900], order[900:]
        rare = np.arange(900) < 45
        x = np.where(rare[:, None], 1 - pixels[train], pixels[train])
        plain, negative = torch.tensor(pixels[test]), torch.tensor(1 - pixels[test])
        y, y_test = torch.tensor(labels[train]), torch.tensor(labels[test])
        choices = {'no weights': np.ones(900)}
        for name, options in FORMS.items():
            found = SampleLikelihood(**options).fit(x)
            auc = roc_auc_score(rare, -found.likelihood_)
            choices[name] = found.weights(0.5, 5, normalize='mean')
            results.setdefault(name, []).append([auc])
        choices['known condition'] = SampleLikelihood.from_labels(rare.astype(int)).weights(0.5, 5, normalize='mean')
        for name, weights in choices.items():
            model = fit_mlp(torch.tensor(x), y, torch.tensor(weights, dtype=torch.float32), seed)
            figures = [accuracy(model, plain, y_test), accuracy(model, negative, y_test)]
            if name in results and len(results[name]) > seed:
                results[name][seed] += figures
            else:
                results.setdefault(name, []).append([np.nan, *figures])
    lines = [('weights (eta 0.5, gamma 5, mean 1)', 'rare found, AUC', 'plain images, %', 'negative images, %', 'gain')]
    base = np.array(results['no weights'])[:, 2]
    for name, rows in results.items():
        rows = np.array(rows)
        gain = rows[:, 2] - base
        lines.append((
            name, '-' if np.isnan(rows[0, 0]) else f'{rows[:, 0].mean():.3f}',
            *(f'{rows[:, c].mean():.1f} +- {rows[:, c].std(ddof=1):.1f}' for c in (1, 2)),
            '-' if name == 'no weights' else f'{gain.mean():+.1f} +- {gain.std(ddof=1):.1f}',
        ))  # fmt: skip
    return [
        f'Digits, {seeds} seeds, mean and spread; the gain is paired, on the negative images.',
        '',
        *markdown(lines),
    ]


def load_tool():
    spec = importlib.util.spec_from_file_location('dataset_equity_tool', ROOT / 'tools/dataset_equity.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def city(number):
    from clusterplug.datasets import generate_lidar_city

    tool = load_tool()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, 'city')
        generate_lidar_city(root, num_train=number, num_val=1, columns=256, scans_per_street=10, progress=False)
        rng = np.random.default_rng(0)
        scans = scans_of(root, 'train')
        wet = set(rng.choice(len(scans), max(1, number // 20), replace=False).tolist())
        rain(root, [scans[index] for index in sorted(wet)], seed=0)
        rare = np.array([index in wet for index in range(len(scans))])
        config = Path(folder, 'config.py')
        base = ROOT / 'configs/point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
        config.write_text(
            f"_base_ = ['{base}']\n"
            f"train_dataloader = dict(dataset=dict(data_root='{root}/'))\n"
            f"test_dataloader = dict(dataset=dict(data_root='{root}/'))\n"
        )
        lines = [('likelihoods by', 'rare scans', 'AUC', 'mean weight rare', 'mean weight others')]
        for name, options in {'10th neighbor': ['knn'], 'HDBSCAN': ['hdbscan', '--min-samples', '3']}.items():
            arguments = [str(config), '--out', str(Path(folder, 'out')), '--cluster', *options, '--no-pictures']
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                code = tool.main([*arguments, '--standardize'])
            if code:
                raise RuntimeError('the tool failed')
            found = SampleLikelihood.load(Path(folder, 'out', 'likelihood.json'))
            ids = found.to_dict()
            p = np.array([ids['/'.join(path.parts[-3:])] for path in scans])
            weights = (0.5 + (1 - p) ** 5) / 1.5
            lines.append((
                name, f'{rare.sum()} of {len(scans)}', f'{roc_auc_score(rare, -p):.3f}', f'{weights[rare].mean():.3f}',
                f'{weights[~rare].mean():.3f}',
            ))  # fmt: skip
    return [f'LiDAR city, {number} scans, untrained MinkUNet, one run.', '', *markdown(lines)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ('digits', 'city', 'kitti')
    parser.add_argument('--only', choices=names, nargs='+', default=names)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--scans', type=int, default=60)
    parser.add_argument('--repeats', type=int, default=3, help='of kitti: each holds every frame out once')
    parser.add_argument('--steps', type=int, default=300, help='of each training of kitti')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/dataset_equity'), help='where these are kept')
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of the results (default: %(default)s)')
    parser.add_argument('--only-print', action='store_true', help='train nothing; the table of what is in the ledger')
    parser.add_argument('--page', help='page whose parts "dataset_equity" and "dataset_equity_kitti" are replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = describe_machine(('torch', 'scikit-learn'))
    lines = [f'{line}<br>' for line in head]
    if 'digits' in options.only:
        lines += ['', *digits(options.seeds)]
    if 'city' in options.only:
        lines += ['', *city(options.scans)]
    parts = {'dataset_equity': lines} if {'digits', 'city'} & {*options.only} else {}
    if 'kitti' in options.only:
        with one_thread_each():
            parts['dataset_equity_kitti'] = kitti(options, load_tool().main)
    for name, found in parts.items():
        print('\n'.join(['', *found]))
        if options.page:
            publish(options.page, name, ['', *found, ''])


if __name__ == '__main__':
    main()
