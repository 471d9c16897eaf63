# SPDX-License-Identifier: Apache-2.0
"""Which sample of one space belongs to which of another, by the alignment that the pair leaves among known pairs."""

import warnings

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_finite, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed
from clusterplug.functional.subspace.correlation import linear_cka

__all__ = ['cka_null', 'local_cka_scores']


@torch.no_grad()
def local_cka_scores(x_anchor: Tensor, y_anchor: Tensor, x: Tensor, y: Tensor) -> Tensor:
    r"""Return the CKA of the anchors with each pair (x_i, y_j) appended to them, for all pairs at once.

    .. math:: s_{ij} = \mathrm{CKA}\bigl([X_A; x_i], [Y_A; y_j]\bigr)

    with linear kernels and the biased form (:func:`linear_cka` with ``biased=True``), by which the score is defined. In
    closed form, with anchors centered, x and y moved along, n anchors, c = n / (n + 1), S = X_A^T Y_A, P = X_A^T X_A:

    .. math:: s_{ij} = \frac{\|S\|^2 + 2 c\, x_i^\top S y_j + c^2 \|x_i\|^2 \|y_j\|^2}{\sqrt{d_i e_j}}, \qquad
              d_i = \|P\|^2 + 2 c\, x_i^\top P x_i + c^2 \|x_i\|^4

    and e alike: O(n d^2 + Q^2 d) where the definition takes O(Q^2 n d^2).

    Args:
        x_anchor: (..., n, p) floating, n >= 2 known pairs.
        y_anchor: (..., n, q), the partners of ``x_anchor`` in the same order.
        x: (..., Q, p) samples to place.
        y: (..., R, q) candidates; any number.

    Returns:
        (..., Q, R) **float64** whatever came: scores differ by O(1 / n) only, of which fp32 keeps about two digits at
        n = 30,000. Higher = more likely a pair.

    Raises:
        TypeError: If one is not a floating tensor.
        ValueError: Shapes that do not belong together; (looked at on the CPU) anchors that do not vary, NaN or
            infinity.

    Source: Maniparambil et al., "Do vision and language encoders represent the world similarly?", CVPR 2024 (code
    mayug/0-shot-llm-vision, no license; reimplemented from the definition), as used by Hadgi et al., "Escaping Plato's
    Cave", CVPR 2025, arXiv 2503.05283. **Differs from the authors' code**: linear kernels and a closed form instead of
    a Gram matrix for each pair.

    Example:
        >>> anchors = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> x = 3 * torch.eye(4)
        >>> local_cka_scores(anchors, 2 * anchors, x, 2 * x).argmax(1)
        tensor([0, 1, 2, 3])
    """
    given = ((x_anchor, 'x_anchor'), (y_anchor, 'y_anchor'), (x, 'x'), (y, 'y'))
    for values, name in given:
        check_points(values, name, allow_empty=name in 'xy')
        check_device(values, x_anchor.device, name)
        if host_checks_allowed(values):
            check_finite(values, name)
    if x_anchor.shape[:-1] != y_anchor.shape[:-1]:
        raise ValueError(
            f'y_anchor must hold the partners of x_anchor, shape {(*x_anchor.shape[:-1], "q")}, got '
            f'{tuple(y_anchor.shape)}; row i of both is one sample'
        )
    n = x_anchor.shape[-2]
    if n < 2:
        raise ValueError(f'x_anchor must hold at least 2 anchors, got {n}')
    for values, anchors, name in ((x, x_anchor, 'x'), (y, y_anchor, 'y')):
        if values.shape[:-2] != anchors.shape[:-2] or values.shape[-1] != anchors.shape[-1]:
            shape = (*anchors.shape[:-2], 'queries', anchors.shape[-1])
            raise ValueError(f'{name} must have shape {shape}, got {tuple(values.shape)}')
    with exact_products(x):
        (a, u), (b, v) = _centered(x_anchor, x, 'x_anchor'), _centered(y_anchor, y, 'y_anchor')
        share = n / (n + 1)
        cross = a.mT @ b
        own, own_size = _self_term(a, u, share)
        other, other_size = _self_term(b, v, share)
        base = cross.square().sum((-2, -1))[..., None, None]
        both = 2 * share * (u @ cross @ v.mT) + share**2 * own_size.unsqueeze(-1) * other_size.unsqueeze(-2)
        scale = (own.unsqueeze(-1) * other.unsqueeze(-2)).sqrt()
        return torch.where(scale > 0, (base + both) / torch.where(scale > 0, scale, 1.0), 0.0)


def _centered(anchors: Tensor, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Anchors and samples in float64 around the anchors' mean, in a unit in which nothing overflows."""
    anchors, x = anchors.double(), x.double()
    mean = anchors.mean(-2, keepdim=True)
    anchors, x = anchors - mean, x - mean
    largest = anchors.abs().amax((-2, -1), keepdim=True)
    if host_checks_allowed(anchors) and not bool((largest > 1e-13 * mean.abs().amax(-1, keepdim=True)).all()):
        raise ValueError(f'{name} must vary: all anchors are the same; pass features of different samples')
    unit = torch.where(largest > 0, largest, 1.0)
    return anchors / unit, x / unit


def _self_term(anchors: Tensor, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """d (..., Q) and the squared lengths (..., Q)."""
    gram = anchors.mT @ anchors
    size = x.square().sum(-1)
    middle = ((x @ gram) * x).sum(-1)
    return gram.square().sum((-2, -1)).unsqueeze(-1) + 2 * share * middle + share**2 * size.square(), size


@torch.no_grad()
def cka_null(
    x: Tensor,
    y: Tensor,
    num_permutations: int = 100,
    *,
    biased: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return linear CKA of pairs that were shuffled: what :func:`linear_cka` reads where samples have nothing to do.

    A value above all of them has p < 1 / (num_permutations + 1).

    Args:
        x: (n, p) floating.
        y: (n, q), the same samples in the same order.
        num_permutations: Number of shufflings, at least 1.
        biased: As for :func:`linear_cka`.
        generator: Of the shufflings, on the CPU; default torch's own.

    Returns:
        (num_permutations,) in the wider type of the two.

    Raises:
        TypeError, ValueError: As :func:`linear_cka`, and for batches.

    Source: the permutation test of HSIC, Gretton et al., "A kernel statistical test of independence", NeurIPS 2007.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(40, 3, generator=g)
        >>> bool(cka_null(x, x, 20, generator=g).max() < 0.5 < linear_cka(x, x))
        True
    """
    value = linear_cka(x, y, biased=biased)
    if x.dim() != 2:
        raise ValueError(f'x must have shape (n, p), got {tuple(x.shape)}; test one pair of features at a time')
    number = check_count(num_permutations, 'num_permutations', 1)
    if value.isnan():
        return value.expand(number).clone()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rows = [torch.randperm(len(x), generator=generator).to(x.device) for _ in range(number)]
        return torch.stack([linear_cka(x[each], y, biased=biased) for each in rows])
