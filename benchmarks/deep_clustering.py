# SPDX-License-Identifier: Apache-2.0
"""Deep clustering estimators on real data next to k-means, spectral and agglomerative: one table.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/deep_clustering.py --data FOLDER              # some minutes
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/deep_clustering.py --data FOLDER --only digits --seeds 1
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/deep_clustering.py --data FOLDER --page docs/benchmarks.md

FOLDER holds features/planetoid_cora.npz and features/coil100_20obj_4views.npz (without it: digits alone). Labels are
used for the scores alone: no epoch is chosen by them. Seconds are process time of one thread.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _timing import describe_machine, one_thread_each, publish

from clusterplug import estimators
from clusterplug.functional import adjusted_rand_index, clustering_accuracy, normalized_mutual_info

SHORT = dict(pretrain_epochs=40, head_epochs=10, epochs=40, batch_size=128)  # of DEPICT, for a CPU


def scores(labels, truth):
    labels, truth = torch.as_tensor(np.asarray(labels)), torch.as_tensor(truth)
    kinds = (clustering_accuracy, normalized_mutual_info, adjusted_rand_index)
    return [float(kind(labels, truth)) for kind in kinds]


def digits(_):
    from sklearn.datasets import load_digits

    x, truth = load_digits(return_X_y=True)
    images = x.reshape(-1, 1, 8, 8)
    yield 'digits', 'k-means', truth, lambda seed: estimators.KMeans(10, n_init=10, random_state=seed).fit_predict(x)
    yield 'digits', 'spectral', truth, lambda seed: estimators.SpectralClustering(10).fit_predict(x)
    yield 'digits', 'Ward', truth, lambda seed: estimators.AgglomerativeClustering(10).fit_predict(x)
    yield 'digits', 'graph degree linkage', truth, lambda seed: estimators.GraphDegreeLinkage(10).fit_predict(x)
    for objective in ('idec', 'dec'):
        yield (
            'digits', objective.upper(), truth,
            lambda seed, o=objective: estimators.DeepEmbeddedClustering(10, objective=o, random_state=seed)
            .fit_predict(x),
        )  # fmt: skip
    for target in ('dec', 'sqrt', 'none'):
        yield (
            'digits', f'DEPICT, target {target}', truth,
            lambda seed, t=target: estimators.DEPICT(10, target=t, random_state=seed, **SHORT).fit_predict(images),
        )  # fmt: skip


def views(folder):
    bank = np.load(folder / 'features' / 'coil100_20obj_4views.npz')
    names = [name for name in bank.files if name != 'y' and bank[name].ndim == 2]
    truth = bank['y'].astype(np.int64)
    x = {name: bank[name] for name in names}
    for name in names:
        rows = torch.nn.functional.normalize(torch.from_numpy(bank[name].astype(np.float32)), dim=1)
        yield (
            'COIL-100, 20 objects', f'Ward, {name}', truth,
            lambda seed, r=rows: estimators.AgglomerativeClustering(20).fit_predict(r),
        )  # fmt: skip
        yield (
            'COIL-100, 20 objects', f'graph degree linkage, {name}', truth,
            lambda seed, r=rows: estimators.GraphDegreeLinkage(20).fit_predict(r),
        )  # fmt: skip
    for base in ('agglomerative', 'gdl'):
        yield (
            'COIL-100, 20 objects', f'CoAssociation, {base}', truth,
            lambda seed, b=base: estimators.CoAssociation(20, base=b).fit_predict(x),
        )  # fmt: skip
    yield (
        'COIL-100, 20 objects', 'MultiViewClustering, jule', truth,
        lambda seed: estimators.MultiViewClustering(20, random_state=seed).fit_predict(x),
    )  # fmt: skip


def cora(folder):
    from scipy.sparse import csr_matrix

    file = np.load(folder / 'features' / 'planetoid_cora.npz')
    matrix = csr_matrix((file['x_data'], file['x_indices'], file['x_indptr']), shape=tuple(file['x_shape']))
    x, truth, edges = matrix.toarray(), file['y'], file['edges'].T
    yield 'Cora', 'k-means of the features', truth, lambda seed: estimators.KMeans(7, random_state=seed).fit_predict(x)
    for name, options in (
        ('SCGC*', {}),
        ('SCGC* without the warm-up', dict(warmup_epochs=0, epochs=60)),
        ('SCGC', dict(cumulative=False, reconstruction=True)),
    ):
        yield (
            'Cora', name, truth,
            lambda seed, o=options: estimators.GraphContrastClustering(7, random_state=seed, **o).fit_predict(x, edges),
        )  # fmt: skip


PARTS = {'digits': digits, 'views': views, 'cora': cora}
FIXED = ('spectral', 'Ward', 'graph degree', 'CoAssociation')  # the seed plays no part


def measure(part, folder, seeds):
    for data, method, truth, fit in PARTS[part](folder):
        rows, seconds = [], []
        for seed in range(1 if method.startswith(FIXED) else seeds):
            begin = time.process_time()
            labels = fit(seed)
            seconds.append(time.process_time() - begin)
            rows.append(scores(labels, truth))
        columns = []
        for values in zip(*rows, strict=True):
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
            columns.append(f'{statistics.mean(values):.3f}{spread}')
        line = f'| {data} | {method} | {" | ".join(columns)} | {statistics.mean(seconds):.1f} | {len(rows)} |'
        print(line, flush=True)
        yield line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder of the real data (default: digits alone)')
    parser.add_argument('--only', choices=PARTS, nargs='+', help='parts (default: all that have data)')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--page', help='page whose part between the marks "deep clustering" is replaced')
    options = parser.parse_args()
    parts = options.only or (list(PARTS) if options.data else ['digits'])
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    head = ['| Data | Method | ACC | NMI | ARI | Seconds | Seeds |', '|---|---|---|---|---|---|---|']
    print('\n'.join(head))
    with one_thread_each():
        lines = [line for part in parts for line in measure(part, options.data, options.seeds)]
    if options.page:
        machine = describe_machine(('scikit-learn', 'scipy', 'numpy'))
        publish(options.page, 'deep clustering', ['', *(f'{line}<br>' for line in machine), '', *head, *lines, ''])


if __name__ == '__main__':
    main()
