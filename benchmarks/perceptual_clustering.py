# SPDX-License-Identifier: Apache-2.0
"""PerceptualClusterer on generated plots, and next to k-means, DBSCAN and HDBSCAN on plots with several raters.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/perceptual_clustering.py --plots 25
    CLUSTERPLUG_DATA=data OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/perceptual_clustering.py

Williams index on the sets of scatter/scatter.npz in the folder that CLUSTERPLUG_DATA names; without it that part is
left out. The table is printed.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from clusterplug.datasets.scatterplots import FAMILIES, make_scatterplot
from clusterplug.estimators import PerceptualClusterer
from clusterplug.functional import adjusted_rand_index, williams_index


def generated(number, sizes=(64, 200)):
    """Mean adjusted Rand index of each family."""
    yield '| points | ' + ' | '.join(FAMILIES) + ' |'
    yield '|---' * (len(FAMILIES) + 1) + '|'
    for size in sizes:
        means = []
        for family in FAMILIES:
            rng = np.random.default_rng(5)
            plots = [make_scatterplot(family, size, 0, rng) for _ in range(number)]
            found = [torch.from_numpy(PerceptualClusterer().fit_predict(plot.points)) for plot in plots]
            means.append(np.mean([adjusted_rand_index(torch.from_numpy(p.labels), f) for p, f in zip(plots, found)]))
        yield f'| {size} | ' + ' | '.join(f'{mean:.3f}' for mean in means) + ' |'


def rated(path):
    """Williams index of each clustering on the plots with several raters."""
    from sklearn.cluster import DBSCAN, HDBSCAN, KMeans

    file = np.load(path)
    yield '| plot | PerceptualClusterer | k-means, true number | DBSCAN(0.07, 5) | HDBSCAN(20) |'
    yield '|---|---|---|---|---|'
    for name in file['names']:
        x, raters = file[f'X_{name}'], torch.from_numpy(file[f'L_{name}'].astype(np.int64)) - 1
        if len(raters) < 2:
            continue
        scaled = (x - x.min(0)) / np.ptp(x, axis=0).max()
        candidates = [
            PerceptualClusterer().fit_predict(x),
            KMeans(int(raters[0].max()) + 1, n_init=10, random_state=0).fit_predict(x),
            DBSCAN(eps=0.07, min_samples=5).fit_predict(scaled),
            HDBSCAN(min_cluster_size=20, copy=True).fit_predict(x),
        ]
        scores = [williams_index(torch.as_tensor(each).long(), raters) for each in candidates]
        yield f'| {name} | ' + ' | '.join(f'{score:.2f}' for score in scores) + ' |'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plots', type=int, default=25, help='generated plots of each family (default: 25)')
    options = parser.parse_args()
    for line in generated(options.plots):
        print(line, flush=True)
    folder = os.environ.get('CLUSTERPLUG_DATA')
    if folder:
        for line in rated(Path(folder) / 'scatter/scatter.npz'):
            print(line, flush=True)


if __name__ == '__main__':
    main()
