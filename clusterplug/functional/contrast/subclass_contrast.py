# SPDX-License-Identifier: Apache-2.0
"""Contrast between subclasses: every anchor is pulled to the keys of its subclass, pushed from all others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_device, check_mask, check_points
from clusterplug.core.constants import constant
from clusterplug.core.numerics import working_dtype

# Stands for "not a key": far below any logit, yet finite, so that rows without keys give 0 and not NaN.
NEVER = -1e30


def _check_ids(ids: Tensor, length: int, device: torch.device, name: str) -> None:
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f'{name} must be an integer tensor, got {got}; convert it with {name}.long()')
    if tuple(ids.shape) != (length,):
        raise ValueError(f'{name} must have shape ({length},), one id per row, got {tuple(ids.shape)}')
    check_device(ids, device, name)


def check_rows(rows: Tensor, ids: Tensor, name: str, ids_name: str) -> None:
    """Raise unless ``rows`` is floating (N, D) and ``ids`` one integer for each of them."""
    check_points(rows, name, allow_empty=True)
    if rows.dim() != 2:
        raise ValueError(f'{name} must have shape (N, D), got {tuple(rows.shape)}')
    _check_ids(ids, rows.shape[0], rows.device, ids_name)


def check_temperature(temperature: float) -> None:
    """Raise unless ``temperature`` is positive and finite."""
    if not 0 < temperature < float('inf'):
        raise ValueError(f'temperature must be positive and finite (the logits are divided by it), got {temperature}')


def subclass_contrast_terms(
    anchors: Tensor,
    anchor_ids: Tensor,
    keys: Tensor,
    key_ids: Tensor,
    no_key: Tensor,
    *,
    temperature: float,
    self_offset: int | None = None,
    count_self_as_negative: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`subclass_contrast` without host synchronization: a value for every anchor.

    Args:
        anchors: (A, D), unit rows.
        anchor_ids: (A,) integer.
        keys: (M, D), unit rows.
        key_ids: (M,) integer.
        no_key: (M,) bool, True = not a key. Anchors with the id of such a row get a meaningless, finite value.
        temperature: divides the dot products.
        self_offset: anchor i is row ``i + self_offset`` of the keys, left out of its positives and negatives.
        count_self_as_negative: take the anchor itself as a negative, as the authors' code does.

    Returns:
        ``(values, num_positives)``, both (A,); a value is 0 where there is no positive.

    Raises:
        TypeError: a tensor of the wrong kind.
        ValueError: shapes, devices or temperature that do not fit.
    """
    check_rows(anchors, anchor_ids, 'anchors', 'anchor_ids')
    check_rows(keys, key_ids, 'keys', 'key_ids')
    check_mask(no_key, key_ids.shape, keys.device, 'no_key')
    check_temperature(temperature)
    if anchors.shape[1] != keys.shape[1]:
        raise ValueError(f'keys must have as many columns as anchors, {anchors.shape[1]}, got {keys.shape[1]}')
    given, dtype = anchors.dtype, working_dtype(anchors.dtype, keys.dtype)
    anchors, keys = anchors.to(dtype), keys.to(dtype)
    bias = constant(0.0, anchors.dtype, anchors.device).masked_fill(no_key, NEVER)
    logits = torch.addmm(bias, anchors, keys.mT, alpha=1 / temperature)
    same = anchor_ids[:, None] == key_ids
    positive = same
    if self_offset is not None:
        positive = same.clone()
        positive.diagonal(self_offset).fill_(False)
    not_negative = positive if count_self_as_negative else same
    log_negatives = logits.masked_fill(not_negative, NEVER).logsumexp(1, keepdim=True)
    pairs = F.softplus(log_negatives - logits) * positive
    count = positive.sum(1)
    return (pairs.sum(1) / count.clamp(min=1)).to(given), count


def subclass_contrast(
    anchors: Tensor,
    anchor_ids: Tensor,
    keys: Tensor,
    key_ids: Tensor,
    *,
    temperature: float,
    exclude_self: bool = False,
    count_self_as_negative: bool = False,
) -> Tensor:
    r"""Supervised InfoNCE over subclasses, one value per anchor that has a positive.

    .. math::
        L_i = -\frac{1}{|P_i|} \sum_{j \in P_i} \Big[ l_{ij} - \log\big(e^{l_{ij}} + \sum_{m \in N_i} e^{l_{im}}\big)
        \Big], \qquad l_{ij} = x_i \cdot z_j / \tau,

    where :math:`P_i` are the keys with the anchor's id and :math:`N_i` the keys with another id. Each positive has its
    own denominator. An anchor without negatives has value 0.

    Args:
        anchors: (A, D), floating, rows of unit length (not checked).
        anchor_ids: (A,) integer subclass ids; below 0 = ignored.
        keys: (M, D), rows of unit length. The gradient reaches them too; detach them if it must not.
        key_ids: (M,) integer subclass ids; below 0 = ignored.
        temperature: the logits are divided by it.
        exclude_self: ``keys`` are the anchors in the same order; leave each anchor out of its own keys.
        count_self_as_negative: with ``exclude_self``, still count the anchor among its own negatives (parity only).

    Returns:
        (A',) values for the A' <= A anchors that have at least one positive, in the order of ``anchors``, before any
        scaling; empty if there are none. Computed in fp32 (fp64 for fp64 input), returned in the dtype of ``anchors``.

    Raises:
        TypeError: a tensor of the wrong kind.
        ValueError: shapes, devices or temperature that do not fit.

    Source: Feng et al., "Clustering based Point Cloud Representation Learning for 3D Analysis", ICCV 2023, official
    code FengZicai/Cluster3DSeg (MIT), ``spvnas/cluster_contrastloss.py``.

    Differs from the authors' code: theirs removes the anchor from its positives before it forms the negatives, so the
    anchor (cosine 1, the largest logit) becomes its own negative and a perfect embedding costs ln 2 instead of about
    2e-4. Here it is in neither set; ``count_self_as_negative=True`` reproduces theirs.

    Example:
        >>> x = torch.eye(2).repeat_interleave(5, 0)
        >>> ids = torch.tensor([0] * 5 + [1] * 5)
        >>> subclass_contrast(x, ids, x, ids, temperature=0.1, exclude_self=True).mean().item()  # doctest: +ELLIPSIS
        0.00022...
    """
    check_points(anchors, 'anchors', allow_empty=True)
    check_points(keys, 'keys', allow_empty=True)
    check_temperature(temperature)
    if anchors.dim() != 2 or keys.dim() != 2 or anchors.shape[1] != keys.shape[1]:
        raise ValueError(
            f'anchors and keys must have shapes (A, D) and (M, D), got {tuple(anchors.shape)} and {tuple(keys.shape)}'
        )
    check_device(keys, anchors.device, 'keys')
    _check_ids(anchor_ids, anchors.shape[0], anchors.device, 'anchor_ids')
    _check_ids(key_ids, keys.shape[0], anchors.device, 'key_ids')
    if exclude_self and anchors.shape[0] != keys.shape[0]:
        raise ValueError(
            f'exclude_self needs keys that are the anchors in the same order, '
            f'got {anchors.shape[0]} anchors and {keys.shape[0]} keys'
        )
    if anchors.shape[0] == 0 or keys.shape[0] == 0:
        return anchors.sum(1)[:0]
    with torch.autocast(anchors.device.type, enabled=False):
        dtype = torch.promote_types(anchors.dtype, torch.float32)
        values, count = subclass_contrast_terms(
            anchors.to(dtype),
            anchor_ids,
            keys.to(dtype),
            key_ids,
            key_ids < 0,
            temperature=temperature,
            self_offset=0 if exclude_self else None,
            count_self_as_negative=count_self_as_negative,
        )
    return values[(count > 0) & (anchor_ids >= 0)].to(anchors.dtype)
