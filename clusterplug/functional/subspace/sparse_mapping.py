# SPDX-License-Identifier: Apache-2.0
"""Predict the units of one layer from few units of another: lasso of all targets at once, from second moments."""

import warnings

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_finite, check_number
from clusterplug.core.numerics import exact_products
from clusterplug.functional.subspace._standard_units import check_unit_pair, standard_units

__all__ = ['lasso_from_gram', 'sparse_mapping']


@torch.no_grad()
def sparse_mapping(
    x: Tensor,
    y: Tensor,
    *,
    penalty: float,
    standardized: bool = False,
    max_iters: int = 1000,
    tol: float = 1e-7,
) -> Tensor:
    r"""Return the sparse linear map that predicts the units of one layer from those of another (many to one).

    .. math:: \min_W \frac{1}{2 N} \|\tilde Y - \tilde X W\|_F^2 + \text{penalty} \sum_{ij} |W_{ij}|

    over units of mean 0 and variance 1, so that the penalty means the same for all. Column j has the units of x that
    unit j of y is made of. Solved exactly, by coordinate descent from the second moments: the rows are read once.

    Args:
        x: (N, C) floating, N samples (or samples x positions) of C units.
        y: (N, D), the same samples in the same order.
        penalty: >= 0. 0 is least squares (the smallest solution where it is not unique); from the largest
            correlation on, at most 1, all weights are 0.
        standardized: Return the weights of the standardized units. By default weights are those of the units as they
            came: ``(x - x.mean(0)) @ W`` predicts ``y - y.mean(0)``.
        max_iters: Maximum number of passes over the units of x; a warning says where they did not suffice.
        tol: The conditions of an optimum hold to this, in units of the correlation.

    Returns:
        (C, D), exact zeros where a unit has no part (dead units too), in the wider type of the two; computed in
        float64.

    Raises:
        TypeError: If one is not a floating tensor.
        ValueError: If the samples differ in number, are fewer than 2, not finite, not (N, C), or an option is out of
            range.

    Source: Li et al., "Convergent learning", ICLR 2016, arXiv 1511.07543, section 3.2; official code
    YixuanLi/convergent_learning (GPL-3.0; reimplemented from the paper); Friedman, Hastie and Tibshirani, 2010
    (coordinate descent from covariances). **Differs from the authors' code**: an exact solution; theirs trains a
    1 x 1 convolution by SGD, in which no weight becomes exactly 0. Objective as in scikit-learn's ``Lasso``.

    Example:
        >>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> y = 2 * x[:, 1:2] + x[:, 3:]
        >>> sparse_mapping(x, y, penalty=0.1).ne(0).flatten()
        tensor([False,  True, False,  True])
    """
    dtype = check_unit_pair(x, y)
    if x.dim() != 2:
        raise ValueError(f'x must have shape (N, units), got {tuple(x.shape)}; map one pair of layers at a time')
    penalty = check_number(penalty, 'penalty', 0)
    check_finite(x.detach())
    check_finite(y.detach(), 'y')
    with exact_products(x):
        (one, scale, _), (other, other_scale, _) = (standard_units(each.double()) for each in (x, y))
        gram, cross = one.mT @ one / len(x), one.mT @ other / len(x)
    weights = lasso_from_gram(gram, cross, penalty=penalty, max_iters=max_iters, tol=tol)
    if not standardized:
        weights = weights * other_scale / torch.where(scale > 0, scale, 1.0).mT
    return weights.to(dtype)


@torch.no_grad()
def lasso_from_gram(gram: Tensor, cross: Tensor, *, penalty: float, max_iters: int = 1000, tol: float = 1e-7) -> Tensor:
    r"""Solve the lasso of many targets at once, given only second moments.

    .. math:: \min_W \tfrac12 \operatorname{tr} W^\top G W - \operatorname{tr} W^\top R + \text{penalty} \sum |W_{ij}|

    Args:
        gram: (C, C) G = X^T X / N, symmetric, of any scale.
        cross: (C, D) R = X^T Y / N.
        penalty: >= 0; 0 is least squares by the pseudo-inverse.
        max_iters: Maximum number of passes over the rows of W.
        tol: Largest violation of the conditions of an optimum, in units of ``cross``.

    Returns:
        (C, D), in the wider type of the two; computed in float64. Rows of units without variance are 0.

    Raises:
        TypeError, ValueError: Wrong shapes, not floating, not finite, an option out of range.

    Source: as :func:`sparse_mapping`.

    Example:
        >>> lasso_from_gram(torch.eye(2), torch.tensor([[0.5], [-0.1]]), penalty=0.2)
        tensor([[0.3000],
                [0.0000]])
    """
    for values, name in ((gram, 'gram'), (cross, 'cross')):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f'{name} must be a floating tensor, got {getattr(values, "dtype", type(values).__name__)}')
    if gram.dim() != 2 or cross.dim() != 2 or gram.shape != (len(cross), len(cross)) or not cross.numel():
        raise ValueError(
            f'gram must be (C, C) and cross (C, D), got {tuple(gram.shape)} and {tuple(cross.shape)}'
        )  # fmt: skip
    check_device(cross, gram.device, 'cross')
    check_finite(gram, 'gram')
    check_finite(cross, 'cross')
    penalty, tol = check_number(penalty, 'penalty', 0), check_number(tol, 'tol', above=0)
    max_iters = check_count(max_iters, 'max_iters', 1)
    dtype = torch.promote_types(gram.dtype, cross.dtype)
    gram, cross = gram.double(), cross.double()
    with exact_products(gram):
        if penalty == 0:
            weights = torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ cross
            return torch.where(_alive(gram).unsqueeze(1), weights, 0.0).to(dtype)
        weights, violation = _descend(gram, cross, penalty, max_iters, tol)
    if violation > tol:
        warnings.warn(
            f'lasso_from_gram: after {max_iters} passes the conditions of an optimum hold to {violation:.1e}, not to '
            f'{tol:.1e}; raise max_iters or tol',
            stacklevel=2,
        )
    return weights.to(dtype)


def _descend(gram: Tensor, cross: Tensor, penalty: float, max_iters: int, tol: float) -> tuple[Tensor, float]:
    """Coordinate descent: a row of W after the other, all targets at once; rows that are 0 and stay so are skipped."""
    weights, rest = torch.zeros_like(cross), cross.clone()  # rest = R - G W
    size, alive = gram.diagonal(), _alive(gram)
    violation = 0.0
    for number in range(max_iters + 1):
        wrong = torch.where(
            weights == 0, (rest.abs() - penalty).clamp(min=0), (rest - penalty * weights.sign()).abs()
        ).amax(1).masked_fill(~alive, 0.0)  # fmt: skip
        violation = float(wrong.max())
        if violation <= tol or number == max_iters:
            break
        for row in (wrong > tol / 10).nonzero().flatten().tolist():
            pulled = rest[row] + size[row] * weights[row]
            new = pulled.sign() * (pulled.abs() - penalty).clamp(min=0) / size[row]
            rest.addr_(gram[:, row], new - weights[row], alpha=-1)
            weights[row] = new
        if number % 50 == 49:
            rest = cross - gram @ weights  # no drift
    return weights, violation


def _alive(gram: Tensor) -> Tensor:
    size = gram.diagonal()
    return size > 1e-14 * size.max().clamp(min=1e-300)
