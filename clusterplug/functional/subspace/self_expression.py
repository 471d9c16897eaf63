# SPDX-License-Identifier: Apache-2.0
"""Each point as a combination of the others: coefficients that tell which points share a subspace."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_finite, check_number, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype

__all__ = ['self_expression', 'top_coefficients']


def self_expression(layers: Tensor | Sequence[Tensor], *, ridge: float) -> Tensor:
    r"""Return the coefficients by which the samples express each other in several spaces at once, in closed form.

    .. math:: C = \operatorname{argmin}_{\operatorname{diag} C = 0} \sum_l \| C H_l - H_l \|_F^2 + \lambda \| C \|_F^2,
              \qquad C_{ij} = -\frac{D_{ij}}{D_{ii}}\ (i \ne j), \quad
              D = \Bigl(\sum_l H_l H_l^\top + \lambda I\Bigr)^{-1}

    Row i holds the coefficients of sample i. One Cholesky factorization of n x n replaces the hundreds of gradient
    steps of the deep methods. Gradients reach the layers.

    Args:
        layers: (..., n, p) or a sequence of (..., n, p_l), floating: the input and the outputs of the layers.
        ridge: lambda > 0, in squared units of the layers.

    Returns:
        (..., n, n) with a zero diagonal, in the type of the first layer. Computed in float64. Zero rows give zero
        coefficients.

    Raises:
        TypeError: If a layer is not a floating tensor.
        ValueError: If the layers differ in their samples, there is none, ``ridge`` <= 0 or (looked at on the CPU) a
            value is not finite.

    Source: Lu et al., "Robust and efficient subspace segmentation via least squares regression", ECCV 2012, with the
    diagonal removed exactly; over all layers as Sindicic and Kopriva, arXiv 2504.18179, code lovro-sinda/LIHFSS-SVDSC
    (no license). **Differs from the authors' code**: it computes a form like this and never uses it (the transposed,
    with ridge 0, of a singular matrix), and trains C from 1e-8 without removing the diagonal.

    Example:
        >>> c = self_expression(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), ridge=1e-3)
        >>> c.round(decimals=2)[0].abs()
        tensor([0.0000, 0.5000, 0.0000])
    """
    layers = _check_layers(layers)
    ridge = check_number(ridge, 'ridge', above=0)
    first = layers[0]
    with exact_products(first):
        values = [layer.double() for layer in layers]
        gram = values[0] @ values[0].mT
        for value in values[1:]:
            gram = gram + value @ value.mT
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # rounding of a large Gram matrix next to a small ridge must not make it indefinite
        floor = gram.detach().diagonal(dim1=-2, dim2=-1).mean(-1) * 1e-13
        factor, info = torch.linalg.cholesky_ex(gram + (ridge + floor)[..., None, None] * eye)
        inverse = torch.cholesky_inverse(factor)
        result = -inverse / inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        result = result * (1 - eye)
        return torch.where((info == 0)[..., None, None], result, torch.nan).to(first.dtype)


def top_coefficients(c: Tensor, k: int) -> Tensor:
    r"""Return the affinity that the k largest coefficients of each sample make.

    .. math:: A = \tfrac12 (|C| + |C|^\top), \quad A' = A \text{ with the } k \text{ largest of each column}, \quad
              \tfrac12 (A' + A'^\top)

    Args:
        c: (..., n, n) floating coefficients.
        k: Coefficients kept in each column, 1 .. n; entries equal to the k-th are kept too, so a column may have more.
            The dimension of the subspaces is a good choice; n changes nothing.

    Returns:
        (..., n, n) symmetric and non-negative, in the type of ``c``.

    Raises:
        TypeError: If ``c`` is not a floating tensor.
        ValueError: If it is not square, ``k`` is out of range or (looked at on the CPU) a value is not finite.

    Source: as :func:`self_expression`; **differs from the authors' code**: k is an argument (theirs is 9 whatever is
    asked for).

    Example:
        >>> top_coefficients(torch.tensor([[0.0, 0.9, 0.1], [-0.9, 0.0, 0.2], [0.1, 0.2, 0.0]]), 1)
        tensor([[0.0000, 0.9000, 0.0000],
                [0.9000, 0.0000, 0.1000],
                [0.0000, 0.1000, 0.0000]])
    """
    check_points(c, 'c')
    if c.shape[-1] != c.shape[-2]:
        raise ValueError(f'c must be square (..., n, n), got {tuple(c.shape)}')
    k = check_count(k, 'k', 1, c.shape[-1])
    if host_checks_allowed(c):
        check_finite(c.detach(), 'c')
    values = c.to(working_dtype(c.dtype)).abs()
    affinity = (values + values.mT) / 2
    threshold = affinity.topk(k, dim=-2).values[..., -1:, :]
    kept = torch.where(affinity >= threshold, affinity, 0.0)
    return ((kept + kept.mT) / 2).to(c.dtype)


def _check_layers(layers: Tensor | Sequence[Tensor]) -> list[Tensor]:
    layers = [layers] if isinstance(layers, Tensor) else list(layers)
    if not layers:
        raise ValueError('layers must hold at least one tensor (n, p), got none')
    for number, layer in enumerate(layers):
        name = f'layers[{number}]'
        check_points(layer, name)
        check_device(layer, layers[0].device, name)
        if layer.shape[:-1] != layers[0].shape[:-1]:
            raise ValueError(
                f'{name} must hold the samples of layers[0], {tuple(layers[0].shape[:-1])}, got {tuple(layer.shape)}; '
                f'flatten feature maps to (n, p)'
            )
        if host_checks_allowed(layer):
            check_finite(layer.detach(), name)
    return layers
