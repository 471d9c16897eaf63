# SPDX-License-Identifier: Apache-2.0
"""Feature clustering (FEC): points join the nearest center, the means go back to their members or replace them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_mask, whole_number
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.features._feature_checks import check_feature_sets, check_projection, check_weighting
from clusterplug.functional.features._feature_members import assign, counts_and_sums, lengths, spread_to_members, unit


class FeatureClusters(NamedTuple):
    """Which points form which cluster.

    Attributes:
        representatives: (..., M, D') one vector for each cluster, in the type of the values.
        labels: (..., N) int64 cluster of each point; -1 for points that the mask leaves out.
        similarity: (..., N) of each point and its center, fp32 or fp64: the cosine after pooling, its sigmoid after
            encoding; 0 for points that the mask leaves out.
        counts: (..., M) fp32 or fp64 points in each cluster, the center not among them.
    """

    representatives: Tensor
    labels: Tensor
    similarity: Tensor
    counts: Tensor


def cluster_encode(
    x: Tensor,
    values: Tensor,
    centers: Tensor,
    center_values: Tensor,
    *,
    scale: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    weighting: str = 'mean',
    mask: Tensor | None = None,
    center_mask: Tensor | None = None,
) -> tuple[Tensor, FeatureClusters]:
    r"""Group points around centers and send each group's mean back to its members, scaled by similarity.

    .. math::
        S_{mn} = \sigma(\beta + \alpha \cos(c_m, x_n)), \quad a(n) = \arg\max_m S_{mn}, \quad
        g_m = \frac{\hat v_m + \sum_{a(n) = m} v_n}{1 + |\{n: a(n) = m\}|}, \quad o_n = S_{a(n) n} \, g_{a(n)}

    Gradients reach ``x``, ``centers``, ``scale`` and ``shift`` through the similarity, and both values through the
    mean; none through the choice.

    Args:
        x: (..., N, D) what points are compared by.
        values: (..., N, D') what is averaged.
        centers: (..., M, D) likewise of the centers.
        center_values: (..., M, D').
        scale: alpha, one number. Where it is negative, the least similar center wins, as the formula says.
        shift: beta, one number.
        weighting: ``'mean'`` (FEC), or ``'similarity'``: members count by their similarity, as in Context Cluster.
        mask: (..., N) bool, True = valid. Other points join nothing, and their output is 0.
        center_mask: (..., M) bool, True = may be joined.

    Returns:
        Outputs (..., N, D') in the type of ``values``, and the clusters. A center that nobody joins keeps its own
        value; ties, and points or centers of length 0, go to the lowest index; N or the batch may be 0.

    Raises:
        TypeError: An input is no floating tensor, a mask is not bool.
        ValueError: Shapes do not fit each other, or ``weighting`` is unknown.

    Source:
        Chen et al., "Neural Clustering based Visual Representation Learning", CVPR 2024; official code
        guikunchen/FEC (Apache-2.0), and ma-xu/Context-Cluster (Apache-2.0) for ``'similarity'``.

        **Differs from the authors' code**: the same numbers, but no tensor of centers x points x channels; the
        sigmoid is taken of the winner alone (so a scale beyond 17, where sigmoids round to 1, still tells centers
        apart); masks; similarities and counts in fp32 under autocast.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> out, clusters = cluster_encode(x, x, x[[0, 2]], x[[0, 2]])
        >>> clusters.labels.tolist(), clusters.counts.tolist()
        ([0, 0, 1], [2.0, 1.0])
    """
    check_weighting(weighting)
    flat = _flatten(x, values, centers, center_values, mask, center_mask)
    dtype = working_dtype(values.dtype)
    with exact_products(x):
        chosen = assign(flat.x, flat.centers, scale, flat.center_mask)
        similarity = torch.sigmoid(shift + chosen.score)
        if flat.mask is not None:
            similarity = similarity * flat.mask
        weights = similarity if weighting == 'similarity' else None
        counts, mass, sums = counts_and_sums(chosen, flat.values, weights, flat.mask)
        groups = (flat.center_values.to(dtype) + sums) / (1 + mass)[..., None]
        out = spread_to_members(groups, chosen, similarity)
    clusters = _clusters(groups.to(values.dtype), chosen.labels, similarity, counts, flat)
    return out.to(values.dtype).reshape(*flat.batch, *out.shape[1:]), clusters


def cluster_pool(
    x: Tensor,
    values: Tensor,
    centers: Tensor,
    center_values: Tensor,
    *,
    straight_through: bool = True,
    mask: Tensor | None = None,
    center_mask: Tensor | None = None,
    projection: tuple[Tensor, Tensor] | None = None,
    chunk_size: int = 4_194_304,
) -> FeatureClusters:
    r"""Group points around centers; the means take the place of the points.

    .. math::
        a(n) = \arg\max_m \cos(c_m, x_n), \quad
        g_m = \frac{\hat v_m + \sum_{a(n) = m} v_n}{1 + |\{n: a(n) = m\}|}

    With ``straight_through``, gradients take each point for a member of weight :math:`1 + \cos(c_{a(n)}, x_n) -
    \mathrm{const}`, which is 1: a point whose value pulls its mean the right way becomes more similar to the center,
    others less. The result is the same with and without.

    Args:
        x: (..., N, D) what points are compared by.
        values: (..., N, D') what is averaged.
        centers: (..., M, D) likewise of the centers.
        center_values: (..., M, D').
        straight_through: Whether gradients reach ``x`` and ``centers``.
        mask: (..., N) bool, True = valid. Other points join nothing.
        center_mask: (..., M) bool, True = may be joined.
        projection: Weight (D, D') and bias (D,) where ``x`` is ``values @ weight.T + bias``. The nearest centers
            are then looked for in the D' channels of the values, which costs D' / D as much; labels are the same up to
            rounding.
        chunk_size: Similarities that are held at a time, at least; one row of M is the least.

    Returns:
        The clusters. A center that nobody joins keeps its own value; ties go to the lowest index.

    Raises:
        TypeError: An input is no floating tensor, a mask is not bool.
        ValueError: Shapes do not fit each other, or ``chunk_size`` is below 1.

    Source:
        Chen et al., CVPR 2024; official code guikunchen/FEC (Apache-2.0).

        **Differs from the authors' code**: there, what points are compared by is used inside an argmax alone and
        never gets a gradient (``straight_through=False``); no N x M tensor beyond ``chunk_size``; masks.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> cluster_pool(x, x, x[[0, 2]], x[[0, 2]]).labels.tolist()
        [0, 0, 1]
    """
    chunk_size = whole_number('chunk_size', chunk_size)
    flat = _flatten(x, values, centers, center_values, mask, center_mask)
    check_projection(projection, flat.x, flat.values)
    dtype = working_dtype(values.dtype)
    with exact_products(x):
        with torch.no_grad():
            source = None if projection is None else (flat.values, *projection)
            chosen = assign(flat.x, flat.centers, 1.0, flat.center_mask, chunk_size, source)
        similarity, weights = chosen.score, None
        if straight_through and torch.is_grad_enabled() and (x.requires_grad or centers.requires_grad):
            similarity = _chosen_cosine(flat, chosen.labels)
            weights = 1 + (similarity - similarity.detach())
        if flat.mask is not None:
            similarity = similarity * flat.mask
            weights = None if weights is None else weights * flat.mask
        counts, mass, sums = counts_and_sums(chosen, flat.values, weights, flat.mask)
        groups = (flat.center_values.to(dtype) + sums) / (1 + mass)[..., None]
    return _clusters(groups.to(values.dtype), chosen.labels, similarity.detach(), counts, flat)


def soft_cluster_encode(
    x: Tensor,
    values: Tensor,
    centers: Tensor,
    center_values: Tensor,
    *,
    scale: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    temperature: float = 0.1,
    mask: Tensor | None = None,
    center_mask: Tensor | None = None,
) -> tuple[Tensor, FeatureClusters]:
    r"""As :func:`cluster_encode`, but every point belongs to all centers in part.

    .. math::
        P_{mn} = \mathrm{softmax}_m(\alpha \cos(c_m, x_n) / \tau), \quad
        g_m = \frac{\hat v_m + \sum_n P_{mn} v_n}{1 + \sum_n P_{mn}}, \quad o_n = \sum_m P_{mn} S_{mn} \, g_m

    The choice itself gets a gradient. As the temperature falls to 0 it becomes the hard form.

    Args:
        x: (..., N, D) what points are compared by.
        values: (..., N, D') what is averaged.
        centers: (..., M, D) likewise of the centers.
        center_values: (..., M, D').
        scale: alpha, one number.
        shift: beta, one number.
        temperature: tau, above 0.
        mask: (..., N) bool, True = valid.
        center_mask: (..., M) bool, True = may be joined.

    Returns:
        Outputs (..., N, D') and the clusters: ``labels`` are those of the largest share, ``similarity`` its S,
        ``counts`` the sums of shares.

    Raises:
        TypeError, ValueError: As :func:`cluster_encode`; ``temperature`` is not above 0.

    Source:
        Own; the hard form is Chen et al., CVPR 2024.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> soft_cluster_encode(x, x, x, x, temperature=0.1)[1].counts.tolist()
        [1.0, 1.0]
    """
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature > 0:
        raise ValueError(f'temperature must be a number above 0, got {temperature!r}')
    flat = _flatten(x, values, centers, center_values, mask, center_mask)
    dtype = working_dtype(values.dtype)
    with exact_products(x):
        scores = scale * (unit(flat.centers.to(dtype)) @ unit(flat.x.to(dtype)).mT)
        if flat.center_mask is not None:
            scores = scores.masked_fill(~flat.center_mask[..., None], -torch.inf)
        shares = (scores / temperature).softmax(1)
        if flat.mask is not None:
            shares = shares * flat.mask[:, None]
        strength = torch.sigmoid(shift + scores)
        counts = shares.sum(-1)
        groups = (flat.center_values.to(dtype) + shares @ flat.values.to(dtype)) / (1 + counts)[..., None]
        out = (groups.mT @ (shares * strength)).mT
        labels = shares.detach().argmax(1)
        similarity = strength.detach().gather(1, labels[:, None])[:, 0]
    if flat.mask is not None:
        similarity = similarity * flat.mask
    clusters = _clusters(groups.to(values.dtype), labels, similarity, counts.detach(), flat)
    return out.to(values.dtype).reshape(*flat.batch, *out.shape[1:]), clusters


class _Flat(NamedTuple):
    """Inputs with one batch dimension, and the batch shape that they came with."""

    x: Tensor
    values: Tensor
    centers: Tensor
    center_values: Tensor
    mask: Tensor | None
    center_mask: Tensor | None
    batch: tuple[int, ...]


def _flatten(x, values, centers, center_values, mask, center_mask) -> _Flat:
    check_feature_sets(x, values, centers, center_values)
    check_mask(mask, x.shape[:-1], x.device)
    check_mask(center_mask, centers.shape[:-1], x.device, 'center_mask')
    batch = tuple(x.shape[:-2])
    number = math.prod(batch)
    masks = [None if each is None else each.reshape(number, each.shape[-1]) for each in (mask, center_mask)]
    sets = []
    for each, valid in zip((x, values, centers, center_values), (*masks[:1] * 2, *masks[1:] * 2)):
        if each.dim() != 3:
            each = each.reshape(number, *each.shape[-2:])
        # what is masked may be NaN, which no factor of 0 removes
        sets.append(each if valid is None else torch.where(valid[..., None], each, 0))
    return _Flat._make((*sets, *masks, batch))


def _chosen_cosine(flat: _Flat, labels: Tensor) -> Tensor:
    """Cosine (B, N) of each point and the center that it has joined, with gradients to both."""
    dtype = working_dtype(flat.x.dtype)
    centers = unit(flat.centers.to(dtype))
    offset = torch.arange(len(labels), device=labels.device)[:, None] * centers.shape[1]
    chosen = centers.flatten(0, 1).index_select(0, (labels + offset).flatten()).view(*labels.shape, centers.shape[-1])
    x = flat.x.to(dtype)
    return (chosen * x).sum(-1) / lengths(x)


def _clusters(groups, labels, similarity, counts, flat: _Flat) -> FeatureClusters:
    if flat.mask is not None:
        labels = labels.masked_fill(~flat.mask, -1)
    parts = (groups, labels, similarity, counts)
    return FeatureClusters(*(part.reshape(*flat.batch, *part.shape[1:]) for part in parts))
