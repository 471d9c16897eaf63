# SPDX-License-Identifier: Apache-2.0
"""What the estimators of novel classes share: reading known labels, k-means that keeps away from known classes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number
from clusterplug.estimators._arrays import Points, check_parameter, make_generator, partial_labels, read_points
from clusterplug.estimators.cluster_number import estimate_n_clusters
from clusterplug.functional import kmeans, nearest_center, pairwise_distances

# Starts run as one batch while their copies of the samples stay below so many numbers.
_MOST_NUMBERS = 2**25


class Split(NamedTuple):
    """Samples of known and of novel classes."""

    points: Points
    labels: Tensor  # (N,) int64, -1 = novel
    novel: Tensor  # (N,) bool
    classes: Tensor  # (C,) known classes


def read_split(estimator: Any, X: Any, y: Any) -> Split:
    """Check ``X`` and ``y`` (-1 = unlabeled; None = all); raise where there is nothing to discover."""
    points = read_points(estimator, X, reset=True)
    count, device = len(points.tensor), points.tensor.device
    if y is None:
        labels = torch.full((count,), -1, dtype=torch.int64, device=device)
    else:
        labels = partial_labels(y, device)
    if labels.shape != (count,):
        raise ValueError(
            f'y must hold one integer a sample, -1 = unlabeled, got {labels.dtype} of shape {tuple(labels.shape)}'
        )
    novel = labels < 0
    if not bool(novel.any()):
        raise ValueError('y must hold -1 for unlabeled samples, got labels for all; no unlabeled rows to cluster')
    return Split(points, labels, novel, labels[~novel].unique())


def check_common(estimator: Any) -> None:
    """Check the arguments that the estimators share."""
    if estimator.n_clusters != 'auto':
        check_parameter(check_count, estimator.n_clusters, 'n_clusters', 1)
    check_parameter(check_count, estimator.n_init, 'n_init', 1)
    check_parameter(check_count, estimator.max_iter, 'max_iter', 1)
    check_parameter(check_number, estimator.tol, 'tol', 0)
    if estimator.power not in (1, 2):
        raise ValueError(f'power must be 1 (distances) or 2 (squared distances), got {estimator.power!r}')


def number_of_clusters(estimator: Any, z: Tensor) -> int:
    """Return ``n_clusters``, estimated from the novel samples ``z`` where it is 'auto'."""
    if estimator.n_clusters != 'auto':
        count = int(estimator.n_clusters)
    else:
        found = estimate_n_clusters(z, random_state=0)
        count = found if isinstance(found, int) else found[0]
    if len(z) < count:
        raise ValueError(f'n_clusters={count} needs as many unlabeled samples, got {len(z)}; ask for fewer clusters')
    return count


def class_means(x: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Return the mean of each known class, (C, D)."""
    hot = (labels.unsqueeze(-1) == classes).to(x.dtype)
    return (hot.T @ x) / hot.sum(0).unsqueeze(-1).clamp_min(1)


def novel_kmeans(
    x: Tensor, count: int, known: Tensor, power: int, n_init: int, max_iter: int, tol: float, generator: Any
) -> tuple[Tensor, Tensor, float, int]:
    """Return centers, labels, inertia (sum of distances^power) and iterations of the best of ``n_init`` starts."""
    best = None
    together = max(1, min(n_init, _MOST_NUMBERS // max(1, x.numel())))
    for first in range(0, n_init, together):
        starts = min(together, n_init - first)
        centers = _seeds(x, count, known, power, starts, generator)
        # 0 would mean the form that never looks at the data
        result = kmeans(
            x.expand(starts, -1, -1), count, init=centers, num_iters=max_iter, tol=max(tol, 1e-12), generator=generator
        )
        squared = nearest_center(x.expand(starts, -1, -1), result.centers)[1].double()
        inertia = (squared.sqrt() if power == 1 else squared).sum(-1)
        pick = int(inertia.argmin())
        if best is None or inertia[pick] < best[2]:
            best = result.centers[pick], result.labels[pick], float(inertia[pick]), int(result.num_iters[pick])
    assert best is not None, 'n_init is at least 1'
    return best


def _seeds(x: Tensor, count: int, known: Tensor, power: int, starts: int, generator: Any) -> Tensor:
    """Return centers (S, K, D) drawn in proportion to the distance^power to known and chosen centers."""

    def distances(centers: Tensor) -> Tensor:
        return pairwise_distances(x, centers).double().pow(power)

    uniform = torch.ones(starts, len(x), dtype=torch.float64, device=x.device)
    closest = distances(known).amin(-1).expand(starts, -1) if len(known) else uniform
    chosen = []
    for number in range(count):
        usable = (closest > 0).any(-1, keepdim=True)
        index = torch.multinomial(torch.where(usable, closest, uniform), 1, generator=generator).squeeze(-1)
        chosen.append(x[index])
        to_new = distances(chosen[-1]).T
        closest = to_new if number == 0 and not len(known) else torch.minimum(closest, to_new)
    return torch.stack(chosen, 1)


def numbered(split: Split, clusters: Tensor) -> tuple[Any, int]:
    """Return labels of all samples: known classes as given, clusters numbered after them; and the first number."""
    offset = int(split.classes.max()) + 1 if len(split.classes) else 0
    labels = split.labels.clone()
    labels[split.novel] = clusters + offset
    return split.points.like(labels), offset


def generator_of(estimator: Any, device: torch.device) -> torch.Generator:
    """Return the generator of ``random_state``."""
    return make_generator(estimator.random_state, device)
