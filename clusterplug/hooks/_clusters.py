# SPDX-License-Identifier: Apache-2.0
"""Clusters of embeddings by any estimator, and ids that stay from one clustering to the next."""

import copy
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.functional import linear_assignment


def build_estimator(estimator: Any) -> Any:
    """Return the estimator that a dict names, or the object itself."""
    if isinstance(estimator, dict):
        from clusterplug import estimators

        options = dict(estimator)
        name = options.pop('type', None)
        kind = name if isinstance(name, type) else getattr(estimators, str(name), None)
        if not isinstance(kind, type):
            raise ValueError(f'estimator must have a type of clusterplug.estimators such as KMeans, got {name!r}')
        estimator = kind(**options)
    if not hasattr(estimator, 'fit'):
        raise TypeError(f'estimator must be a dict or have a method fit, got {type(estimator).__name__}')
    return estimator


def fit_copy(estimator: Any, rows: Tensor, seed: int) -> Any:
    """Fit a copy, so that what it learned last does not stay, with a seed where it would draw one by itself."""
    estimator = copy.deepcopy(estimator)
    if 'random_state' in inspect.signature(type(estimator).__init__).parameters and estimator.random_state is None:
        estimator.random_state = seed
    estimator.fit(rows.numpy())
    return estimator


def centers_of(fitted: Any, rows: Tensor, labels: Tensor) -> Tensor:
    """Centers of the estimator, or the means of its clusters; 0 for one without members."""
    centers = getattr(fitted, 'cluster_centers_', None)
    if centers is not None and tuple(centers.shape[1:]) == tuple(rows.shape[1:]):
        return torch.as_tensor(centers).to(rows.dtype).cpu()
    number = max(int(labels.max()) + 1, getattr(fitted, 'n_clusters', None) or 0, 1)
    member = F.one_hot(labels + 1, number + 1)[:, 1:].to(rows.dtype)
    return member.T @ rows / member.sum(0).clamp(min=1)[:, None]


def matched_ids(labels: Tensor, centers: Tensor, old: Tensor | None, target: Tensor | None) -> Tensor:
    """New id of each cluster (K,): those that share most samples, or point most alike, keep the old one."""
    number = len(centers)
    if old is not None and bool((old >= 0).any()):
        size = max(number, int(old.max()) + 1) if target is None else number
        both = (labels >= 0) & (old >= 0) & (old < size)
        pairs = labels[both] * size + old[both]
        gain = torch.bincount(pairs, minlength=size * size).view(size, size).double()
    elif old is None and target is not None:
        gain = (F.normalize(centers, dim=1) @ F.normalize(target.detach().cpu().float(), dim=1).T).double()
    else:
        return torch.arange(number)
    rows, columns = linear_assignment(gain, maximize=True)
    return columns[rows.argsort()][:number]
