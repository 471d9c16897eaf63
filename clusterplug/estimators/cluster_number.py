# SPDX-License-Identifier: Apache-2.0
"""The number of clusters by a validity index."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count
from clusterplug.estimators._arrays import make_generator
from clusterplug.functional import kmeans, pairwise_distances

CRITERIA = ('silhouette', 'calinski_harabasz')


def estimate_n_clusters(
    X: Any,
    k_range: Iterable[int] | None = None,
    *,
    criterion: str = 'silhouette',
    n_init: int = 3,
    max_samples: int = 2000,
    random_state: Any = 0,
    return_scores: bool = False,
) -> int | tuple[int, dict[int, float]]:
    """Return the number of clusters whose k-means partition has the best validity index.

    For each k, k-means runs ``n_init`` times and the indices of the runs are averaged. Distances between samples are
    computed once for all k.

    Args:
        X: (N, D) array or tensor, N >= 3: usually the embedding of unlabeled samples.
        k_range: Numbers to try; None = 2 .. 30 (at most N - 1).
        criterion: ``'silhouette'`` or ``'calinski_harabasz'``.
        n_init: Runs of k-means for each number.
        max_samples: The silhouette is that of so many random samples.
        random_state: None, an int, a NumPy or a torch generator.
        return_scores: Return (number, scores by number) instead.

    Returns:
        The number; the smaller one of equally good ones.

    Raises:
        ValueError: Fewer than 3 samples, numbers outside 2 .. N - 1, NaN or inf, an unknown criterion.

    Source: Rousseeuw 1987 (silhouette), Calinski and Harabasz 1974; used for novel classes by Troisemaine et al.,
    arXiv 2311.05440. **Differs from the authors' code**: one matrix of distances instead of 87, a sample of the rows.

    Example:
        >>> X = np.concatenate([np.random.default_rng(0).normal(m, 0.1, (20, 2)) for m in (0, 3, 6)])
        >>> estimate_n_clusters(X)
        3
    """
    values = X.detach() if isinstance(X, Tensor) else np.asarray(X)
    if isinstance(values, np.ndarray) and values.dtype.kind not in 'biuf':
        raise ValueError(f'X must hold real numbers, got {values.dtype}; convert it first')
    x = (values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))).double()
    if x.dim() != 2 or len(x) < 3 or x.shape[1] == 0:
        raise ValueError(f'X must hold at least 3 samples (N, D), got shape {tuple(x.shape)}')
    if not bool(torch.isfinite(x).all()):
        raise ValueError('X must be finite, got NaN or infinity; drop or impute those samples')
    check_choice(criterion, 'criterion', CRITERIA)
    n_init, max_samples = check_count(n_init, 'n_init', 1), check_count(max_samples, 'max_samples', 3)
    numbers = range(2, min(30, len(x) - 1) + 1) if k_range is None else list(k_range)
    numbers = sorted({check_count(k, 'each of k_range', 2, len(x) - 1) for k in numbers})
    if not numbers:
        raise ValueError('k_range must hold at least one number, got none')
    generator = make_generator(random_state, x.device)
    picked = torch.arange(len(x), device=x.device)
    if len(x) > max_samples:
        picked = torch.randperm(len(x), generator=generator, device=x.device)[:max_samples]
    distances = pairwise_distances(x[picked]) if criterion == 'silhouette' else None
    scores = {}
    for k in numbers:
        result = kmeans(x.expand(n_init, -1, -1), k, generator=generator)
        if distances is not None:
            found = [_silhouette(distances, labels[picked], k) for labels in result.labels]
        else:
            found = [_calinski_harabasz(x, *each) for each in zip(result.labels, result.centers, strict=True)]
        scores[k] = float(np.mean(found))
    best = max(scores, key=lambda k: (scores[k], -k))
    return (best, scores) if return_scores else best


def _silhouette(distances: Tensor, labels: Tensor, count: int) -> float:
    hot = torch.nn.functional.one_hot(labels, count).to(distances.dtype)
    sizes = hot.sum(0)
    sums = distances @ hot
    own_size = sizes[labels]
    own = sums.gather(1, labels.unsqueeze(1)).squeeze(1) / (own_size - 1).clamp_min(1)
    others = torch.where((hot > 0) | (sizes == 0), torch.inf, sums / sizes.clamp_min(1)).amin(1)
    largest = torch.maximum(own, others)
    width = torch.where((own_size > 1) & (largest > 0) & largest.isfinite(), (others - own) / largest, 0.0)
    return float(width.mean())


def _calinski_harabasz(x: Tensor, labels: Tensor, centers: Tensor) -> float:
    sizes = torch.bincount(labels, minlength=len(centers)).to(x.dtype)
    used = int((sizes > 0).sum())
    between = float((sizes * (centers - x.mean(0)).square().sum(1)).sum())
    within = float((x - centers[labels]).square().sum())
    if used < 2 or within == 0:
        return 0.0 if used < 2 else float('inf')
    return between / (used - 1) / (within / (len(x) - used))
