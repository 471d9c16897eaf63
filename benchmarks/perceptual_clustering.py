# SPDX-License-Identifier: Apache-2.0
"""PerceptualClusterer on generated plots, on plots with several raters, and as a grouping of objects from above.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/perceptual_clustering.py --plots 25
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/perceptual_clustering.py --data FOLDER --page docs/benchmarks.md

generated: mean adjusted Rand index of each family (clusterplug.datasets.scatterplots), other plots than in training.
rated: Williams index (1 = as good as one more rater) on the sets of scatter/scatter.npz in FOLDER; k-means is told the
number of clusters of the first rater, DBSCAN and HDBSCAN have the settings written above the column. city: panoptic
quality of the thing classes of the LiDAR city, whose true classes are given, so that grouping alone is measured.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _timing import describe_machine, publish

from clusterplug.datasets.scatterplots import FAMILIES, make_scatterplot
from clusterplug.estimators import PerceptualClusterer
from clusterplug.functional import adjusted_rand_index, williams_index

# raw labels of things, and of the same classes in motion
THINGS = dict(car=(10, 252), bicycle=(11,), bus=(13, 257), motorcycle=(15,), truck=(18, 258), person=(30, 254),
              bicyclist=(31, 253), motorcyclist=(32, 255))  # fmt: skip


def ari(truth, found):
    return adjusted_rand_index(torch.as_tensor(np.asarray(truth)).long(), torch.as_tensor(np.asarray(found)).long())


def generated(options):
    """Mean adjusted Rand index of each family, next to HDBSCAN and to k-means that is told the number."""
    from sklearn.cluster import HDBSCAN, KMeans

    yield '| Points | Method | ' + ' | '.join(FAMILIES) + ' |'
    yield '|---' * (len(FAMILIES) + 2) + '|'
    for size in (64, 200, 500):
        plots = {
            family: [
                make_scatterplot(family, size, 0, np.random.default_rng([5, size, n])) for n in range(options.plots)
            ]
            for family in FAMILIES
        }
        for name, label in (
            ('PerceptualClusterer', lambda plot: PerceptualClusterer(weights=options.weights).fit_predict(plot.points)),
            ('HDBSCAN(10)', lambda plot: HDBSCAN(min_cluster_size=10, copy=True).fit_predict(plot.points)),
            ('k-means, true number', lambda plot: KMeans(
                int(plot.labels.max()) + 1, n_init=10, random_state=0).fit_predict(plot.points)),
        ):  # fmt: skip
            means = [np.mean([ari(plot.labels, label(plot)) for plot in plots[family]]) for family in FAMILIES]
            yield f'| {size} | {name} | ' + ' | '.join(f'{mean:.3f}' for mean in means) + ' |'


def rated(options):
    """Williams index of each clustering on the plots with several raters."""
    from sklearn.cluster import DBSCAN, HDBSCAN, KMeans

    file = np.load(options.data / 'scatter' / 'scatter.npz')
    names = ('PerceptualClusterer', 'k-means, true number', 'DBSCAN(0.07, 5)', 'HDBSCAN(20)')
    yield '| Plot | Raters | ' + ' | '.join(names) + ' |'
    yield '|---' * (len(names) + 2) + '|'
    rows = []
    for name in file['names']:
        x, raters = file[f'X_{name}'], torch.from_numpy(file[f'L_{name}'].astype(np.int64)) - 1
        if len(raters) < 2:
            continue
        scaled = (x - x.min(0)) / np.ptp(x, axis=0).max()
        candidates = [
            PerceptualClusterer(weights=options.weights).fit_predict(x),
            KMeans(int(raters[0].max()) + 1, n_init=10, random_state=0).fit_predict(x),
            DBSCAN(eps=0.07, min_samples=5).fit_predict(scaled),
            HDBSCAN(min_cluster_size=20, copy=True).fit_predict(x),
        ]
        rows.append([williams_index(torch.as_tensor(each).long(), raters) for each in candidates])
        yield f'| {name} | {len(raters)} | ' + ' | '.join(f'{score:.2f}' for score in rows[-1]) + ' |'
    for word, mean in (('mean', np.mean(rows, 0)), ('median', np.median(rows, 0))):
        yield f'| {word} | | ' + ' | '.join(f'{score:.2f}' for score in mean) + ' |'


def city(options):
    """Panoptic quality of objects grouped from above on new streets of the LiDAR city."""
    from clusterplug.datasets.lidar_city import generate_lidar_city
    from clusterplug.evaluation import group_instances, panoptic_quality

    with tempfile.TemporaryDirectory() as folder:
        root = generate_lidar_city(
            folder, num_train=1, num_val=options.scans, seed=11, scans_per_street=2, spacing=20.0, progress=False
        )
        scans, first = [], 1
        for path in sorted(root.glob('sequences/*/velodyne/*.bin'))[1:]:
            points = np.fromfile(path, np.float32).reshape(-1, 4)[:, :3]
            raw = np.fromfile(path.parents[1] / 'labels' / f'{path.stem}.label', np.uint32)
            classes = np.full(len(raw), -1)
            for number, labels in enumerate(THINGS.values()):
                classes[np.isin(raw & 0xFFFF, labels)] = number
            ids = (raw >> 16).astype(np.int64)
            scans.append((points, classes, np.where((classes >= 0) & (ids > 0), ids + first, 0)))
            first += int(ids.max()) + 1
    things = range(len(THINGS))
    yield '| Grouping | PQ | SQ | RQ | ' + ' | '.join(f'PQ {name}' for name in THINGS) + ' | Seconds a scan |'
    yield '|---' * (len(THINGS) + 5) + '|'
    truth = [np.concatenate(each) for each in list(zip(*scans, strict=True))[1:]]
    for method in ('components', 'hdbscan', 'perceptual'):
        begin, parts, first = time.process_time(), [], 1
        for points, classes, _ in scans:
            estimator = PerceptualClusterer(weights=options.weights) if method == 'perceptual' else None
            found = group_instances(points, classes, things, method, estimator=estimator)
            parts.append(np.where(found > 0, found + first, 0))
            first += int(found.max()) + 1
        seconds = (time.process_time() - begin) / len(scans)
        quality = panoptic_quality(truth[0], np.concatenate(parts), *truth, things)
        means = [np.nanmean(each) for each in (quality.quality, quality.segmentation, quality.recognition)]
        cells = [f'{each:.3f}' for each in [*means, *quality.quality]]
        yield f'| {method} | ' + ' | '.join(cells).replace('nan', '-') + f' | {seconds:.2f} |'


PARTS = {'generated': generated, 'rated': rated, 'city': city}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plots', type=int, default=25, help='generated plots of each family (default: 25)')
    parser.add_argument('--scans', type=int, default=20, help='scans of the city (default: 20)')
    parser.add_argument('--data', type=Path, help='folder of the real data, for the part rated')
    parser.add_argument('--weights', help='weight file (default: the one of the package)')
    parser.add_argument('--only', choices=PARTS, nargs='+', help='parts (default: all that have data)')
    parser.add_argument('--page', help='page whose parts between the marks "perceptual PART" are replaced')
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    for part in options.only or [each for each in PARTS if each != 'rated' or options.data]:
        lines = []
        for line in PARTS[part](options):
            print(line, flush=True)
            lines.append(line)
        if options.page:
            machine = describe_machine(('scikit-learn', 'numpy'))
            publish(options.page, f'perceptual {part}', ['', *(f'{line}<br>' for line in machine), '', *lines, ''])


if __name__ == '__main__':
    main()
