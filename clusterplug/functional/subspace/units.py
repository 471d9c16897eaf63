# SPDX-License-Identifier: Apache-2.0
"""How alike the units of two layers are over the same samples: correlation and mutual information of every pair."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_count
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.subspace._standard_units import check_unit_pair, standard_units

__all__ = ['unit_correlation', 'unit_mutual_information']

# Entries of the table of joint counts that are held at once.
_TABLE = 1 << 24


@torch.no_grad()
def unit_correlation(x: Tensor, y: Tensor, *, absolute: bool = False) -> Tensor:
    r"""Return the correlation of every unit of one layer with every unit of another, over the same samples.

    .. math:: c_{ij} = \frac{E[(x_i - \mu_i)(y_j - \mu_j)]}{\sigma_i \sigma_j}

    Scaling a unit by a positive number or shifting it changes nothing. A unit that never changes (dead) has
    correlation 0 with all.

    Args:
        x: (..., N, C) floating, N samples (or samples x positions) of C units.
        y: (..., N, D), the same samples in the same order.
        absolute: Return \|c\|: units that are each other's negative count as alike. Off by default as in the paper,
            whose units are taken after a ReLU.

    Returns:
        (..., C, D) within -1 .. 1, in the wider type of the two; computed in fp32 at least, without gradients.

    Raises:
        TypeError: If one is not a floating tensor.
        ValueError: If the samples differ in number, are fewer than 2, or (looked at on the CPU) not finite.

    Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent learning", ICLR 2016, arXiv 1511.07543, section 2;
    official code YixuanLi/convergent_learning (GPL-3.0; reimplemented from the paper). **Differs from the authors'
    code**: dead units give 0 and not NaN.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
        >>> unit_correlation(x, torch.tensor([[5.0, 0.0], [7.0, -1.0], [9.0, -2.0]])).round()
        tensor([[ 1., -1.],
                [ 0.,  0.]])
    """
    dtype = check_unit_pair(x, y)
    with exact_products(x):
        working = working_dtype(x.dtype, y.dtype)
        (one, _, _), (other, _, _) = (standard_units(each.to(working)) for each in (x, y))
        found = (one.mT @ other / x.shape[-2]).clamp(-1, 1)
    return (found.abs() if absolute else found).to(dtype)


@torch.no_grad()
def unit_mutual_information(x: Tensor, y: Tensor, *, num_bins: int = 10) -> Tensor:
    r"""Return the mutual information of every unit of one layer with every unit of another, in nats.

    .. math:: I_{ij} = \sum_{ab} p_{ab} \ln \frac{p_{ab}}{p_a p_b} - \frac{(B_i - 1)(B_j - 1)}{2 N}

    from a histogram of both units: zeros are one bin, the other values ``num_bins - 1`` bins of equal counts. The last
    term, B the number of bins that are not empty, is the bias of such an estimate. It sees relations that are not
    linear, but it is never above ln ``num_bins``, and 10 bins underrate a strong linear one.

    Args:
        x: (..., N, C) floating; a few thousand samples are enough for 10 bins.
        y: (..., N, D), the same samples in the same order.
        num_bins: At least 2, that of the zeros counted.

    Returns:
        (..., C, D), in the wider type of the two. About 0 for independent units, sometimes slightly below.

    Raises:
        TypeError: If one is not a floating tensor.
        ValueError: If the samples differ in number, are fewer than 2, or (looked at on the CPU) not finite.

    Source: as :func:`unit_correlation`; the bias is that of Miller, 1955. **Differs from the authors' code**: it
    subtracts :math:`B^2 / (2 N \ln 2)`, which is in bits and counts all cells, so that independent units get less
    than 0.

    Example:
        >>> x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
        >>> bool(unit_mutual_information(x, x.square()) > 1 > unit_correlation(x, x.square()).abs())
        True
    """
    dtype = check_unit_pair(x, y)
    num_bins = check_count(num_bins, 'num_bins', 2)
    lead = x.shape[:-2]
    pairs = zip(x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:]), strict=True)
    with exact_products(x):
        found = [_information(one, other, num_bins) for one, other in pairs]
    shape = (*lead, x.shape[-1], y.shape[-1])
    return (torch.stack(found) if found else x.new_zeros(shape)).reshape(shape).to(dtype)


def _information(x: Tensor, y: Tensor, num_bins: int) -> Tensor:
    """One problem: I = H(x) + H(y) - H(x, y), of counts."""
    number, bins = len(x), num_bins
    one, other = (torch.nn.functional.one_hot(_binned(each, bins - 1), bins).float() for each in (x, y))
    (own, filled), (others, others_filled) = (_entropy(each.sum(0), number) for each in (one, other))
    other = other.flatten(1)
    step = max(1, _TABLE // (bins * other.shape[1]))
    parts = []
    for part in one.split(step, 1):
        table = (part.flatten(1).T @ other).view(part.shape[1], bins, -1, bins)  # exact: counts below 2^24
        parts.append(_entropy(table.transpose(1, 2).flatten(2), number)[0])
    bias = (filled - 1).unsqueeze(1) * (others_filled - 1) / (2 * number)
    return own.unsqueeze(1) + others - torch.cat(parts) - bias


def _entropy(counts: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Entropy in nats over the last dimension, and the number of bins that are not empty."""
    counts = counts.double()
    return math.log(number) - torch.special.xlogy(counts, counts).sum(-1) / number, (counts > 0).sum(-1).double()


def _binned(x: Tensor, num_bins: int) -> Tensor:
    """Bins (N, C): 0 for zeros, 1 .. num_bins of about equal counts for the others; equal values share a bin."""
    columns = x.mT.contiguous().to(working_dtype(x.dtype))
    zero = columns == 0
    ordered = columns.masked_fill(zero, torch.inf).sort(-1).values  # zeros at the end
    count = (~zero).sum(-1, keepdim=True)
    first = torch.arange(1, num_bins, device=x.device) * count // num_bins
    edges = ordered.gather(-1, first.clamp(max=x.shape[0] - 1)).contiguous()
    found = 1 + torch.searchsorted(edges, columns, right=True)
    return torch.where(zero, 0, found).mT
