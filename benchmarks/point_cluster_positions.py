# SPDX-License-Identifier: Apache-2.0
"""What a layer behind strided convolutions tells of the position inside the stride, and whether k-means gains without.

    PYTHONPATH=.:benchmarks python benchmarks/point_cluster_positions.py --out work_dirs/point_cluster_gain --city 1

Reads the pair of trainings of one seed that ``point_cluster_gain.py`` left under ``--out``. From the tapped features of
both networks, of unit length and class by class, it takes away what a linear regression on the position inside cells
of 4 rows predicts (the regressors of ``assigner=dict(position_period=4)``), or the mean of each of the 64 positions,
and clusters the rest by k-means, by point and by the mean of each object.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PERIOD, NUM_SCANS = 4, 40


class Rest(NamedTuple):
    """Features (N, C) without what their position tells, and the mean over classes of the share of variance it told."""

    features: Tensor
    told: float


def without_position(features: Tensor, regressors: Tensor, classes: Tensor, num_classes: int, ridge: float) -> Rest:
    """Take from features (N, C) what a ridge regression on regressors (N, P), within each class, predicts."""
    rest, told = features.clone(), []
    for c in range(num_classes):
        mine = (classes == c).nonzero()[:, 0]
        if not len(mine):
            continue
        x, y = (each[mine] - each[mine].mean(0) for each in (regressors, features))
        predicted = x @ torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y)
        told.append(float(predicted.square().sum() / y.square().sum()))
        rest[mine] = features[mine] - predicted
    return Rest(rest, sum(told) / len(told))


def seen(args):
    """The table of both networks, with the coordinates of every point's row."""
    from point_cluster_gain import runs_of, table_of

    runs = runs_of(args)
    ours, plain = runs[f'point-seed{args.seeds[0]}'], runs[f'plain-seed{args.seeds[0]}']
    reading = ours._replace(options={**ours.options, 'model.loss.assigner': dict(position_period=PERIOD)})
    return table_of(reading, ours, plain, NUM_SCANS)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/point_cluster_gain'), help='of the gain benchmark')
    parser.add_argument('--city', type=int, choices=(1, 2), default=1, help='which city the pair is of')
    parser.add_argument('--seeds', type=int, nargs=1, default=[0], help='seed of the pair')
    parser.add_argument('--num-train', type=int, default=140, help='as in the trainings')
    parser.add_argument('--num-val', type=int, default=150, help='as in the trainings')
    parser.add_argument('--epochs', type=int, default=5, help='as in the trainings')
    parser.add_argument('--share', type=float, default=0.25, help='of the points that are clustered')
    args = parser.parse_args()
    args.settings = ['point']

    from _timing import describe_machine

    from clusterplug import compat
    from clusterplug.evaluation import kmeans_within_classes, subclass_agreement
    from clusterplug.losses import PositionRegression

    compat.apply_all()
    table = seen(args)
    names = ('classes', 'subtypes', 'objects', 'cells', 'plain', 'ours')
    columns = {name: table[name] for name in names}
    count = len(columns['classes'])
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: int(args.share * count)].sort().values
    columns = {name: values[chosen] for name, values in columns.items()}
    classes, num_classes, num_clusters = columns['classes'], 19, 8
    cells = columns['cells'].remainder(PERIOD)
    place = (cells * torch.tensor([PERIOD**2, PERIOD, 1])).sum(1)
    regressors = dict(
        regression=PositionRegression(1, 1, PERIOD).design(cells), means=F.one_hot(place, PERIOD**3).float()
    )
    print(*describe_machine(('mmdet3d', 'spconv')), sep='\n')
    print('\n| network | without | variance told | NMI by point | NMI by object |\n|---|---|---|---|---|')
    for network, column in (('without the loss', 'plain'), ('with the loss', 'ours')):
        features = F.normalize(columns[column].float(), dim=1)
        rests = {'nothing': Rest(features, 0.0)}
        rests |= {name: without_position(features, x, classes, num_classes, 10.0) for name, x in regressors.items()}
        for name, (rest, told) in rests.items():
            found = []
            for regions in (None, columns['objects']):
                ids = kmeans_within_classes(rest, classes, num_classes, num_clusters, regions=regions)
                found.append(subclass_agreement(classes, ids, columns['subtypes'], num_classes).mean)
            print(f'| {network} | {name} | {100 * told:.0f} % | {found[0]:.3f} | {found[1]:.3f} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
