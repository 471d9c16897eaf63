# SPDX-License-Identifier: Apache-2.0
"""Low-rank orthogonal projections that stay so in training, as a layer and as a parametrization of any layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clusterplug.core.checks import check_choice, check_count
from clusterplug.functional import householder_product, householder_reflectors
from clusterplug.registry import MODELS

__all__ = ['HouseholderProjector', 'register_householder']

_INIT_STD = 0.05


@MODELS.register_module()
class HouseholderProjector(nn.Module):
    r"""A linear layer of rank r whose non-zero singular values are all 1 (or learned), by construction.

    .. math:: y = C \, \mathrm{diag}(s) \, B x + b, \qquad C^\top C = B B^\top = I_r

    with C (out, r) and B (r, in) the first columns and rows of two products of r Householder reflections, which any
    optimizer may change in any way. The rows of B are the directions of the input that the layer reads: orthogonal, and
    of equal effect on the output, in an order that training does not shuffle. The weight (out, in) is never made.

    A projector of :class:`~clusterplug.losses.PointClusterLoss` by config:
    ``projector=dict(type='clusterplug.HouseholderProjector', in_features=96, out_features=64, rank=32)``.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        rank: r, at most the smaller of both.
        bias: Add a bias, 0 at the start.
        singular_values: 'fixed': all 1. 'learned': positive, 1 at the start, for a layer whose scale matters.

    Input and output are (..., in_features) and (..., out_features); the frames are computed in fp32 at least, the
    products in the type of the input.

    Source: Song, Zhang, Sebe, Wang, "Householder Projector for Unsupervised Latent Semantics Discovery", ICCV 2023
    (arXiv 2307.08012), section 3.2; official code KingJamesSong/HouseholderGAN (no license of its own).

    **Differs from the authors' code**: r reflections a side instead of all of them (r (in + out) numbers instead of
    in^2 + out^2, the same set of matrices); any widths (theirs: a power of two, in <= out); the directions are the
    rows of B instead of singular vectors of equal singular values, which are arbitrary; starts from the layer that it
    replaces (:meth:`from_linear`), where theirs forgets it.

    Example:
        >>> layer = HouseholderProjector(8, 6, rank=3)
        >>> torch.linalg.svdvals(layer.weight().detach()).round(decimals=5)
        tensor([1., 1., 1., 0., 0., 0.])
    """

    signs: Tensor

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, bias: bool = True, singular_values: str = 'fixed'
    ):
        super().__init__()
        self.in_features = check_count(in_features, 'in_features', 1)
        self.out_features = check_count(out_features, 'out_features', 1)
        self.rank = _check_rank(rank, self.out_features, self.in_features)
        check_choice(singular_values, 'singular_values', ('fixed', 'learned'))
        self.left = nn.Parameter(torch.empty(self.out_features, self.rank))
        self.right = nn.Parameter(torch.empty(self.in_features, self.rank))
        self.log_values = nn.Parameter(torch.empty(self.rank)) if singular_values == 'learned' else None
        self.bias = nn.Parameter(torch.empty(self.out_features)) if bias else None
        self.register_buffer('signs', torch.empty(self.rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both frames anew, with singular values 1 and bias 0."""
        for normals in (self.left, self.right):
            nn.init.normal_(normals, std=_INIT_STD)
        nn.init.ones_(self.signs)
        for zeros in (self.log_values, self.bias):
            if zeros is not None:
                nn.init.zeros_(zeros)

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int, *, singular_values: str = 'fixed') -> 'HouseholderProjector':
        r"""Return the layer whose weight is nearest to that of ``linear``, with its bias.

        With the SVD W = U S V^T that is U_r V_r^T, at squared distance
        :math:`\sum_{i \le r} (\sigma_i - 1)^2 + \sum_{i > r} \sigma_i^2`; with ``singular_values='learned'`` the best
        matrix of rank r, U_r S_r V_r^T. The signs of the directions do not depend on the SVD's.

        Raises:
            TypeError: no ``nn.Linear``.
            ValueError: a rank above both widths; a weight that is not finite; with learned values a weight of a rank
                below ``rank``.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f'linear must be an nn.Linear, got {type(linear).__name__}; see register_householder')
        layer = cls(
            linear.in_features,
            linear.out_features,
            rank,
            bias=linear.bias is not None,
            singular_values=singular_values,
        ).to(linear.weight)
        with torch.no_grad():
            left, right, signs, values = _nearest(linear.weight, layer.rank)
            for own, found in ((layer.left, left), (layer.right, right), (layer.signs, signs)):
                own.copy_(found)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
            if layer.log_values is not None:
                if float(values[-1]) <= 1e-7 * float(values[0]):
                    raise ValueError(f'rank must be at most that of the weight, got {layer.rank}; lower it')
                layer.log_values.copy_(values.log())
        return layer.train(linear.training)

    @property
    def singular_values(self) -> Tensor:
        """(rank,) the non-zero singular values of the weight."""
        return torch.ones_like(self.signs) if self.log_values is None else self.log_values.exp()

    def directions(self) -> Tensor:
        """(rank, in_features) orthonormal directions of the input, without gradient: x + a d_j moves y by a s_j."""
        with torch.no_grad():
            return householder_product(self.right).mT

    def weight(self) -> Tensor:
        """(out_features, in_features), with gradient; the forward pass does not need it."""
        return self._columns() @ householder_product(self.right).mT

    def to_linear(self) -> nn.Linear:
        """Return a plain layer that computes the same, for export."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None).to(self.left)
        with torch.no_grad():
            linear.weight.copy_(self.weight())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def _columns(self) -> Tensor:
        return householder_product(self.left) * (self.signs * self.singular_values)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, householder_product(self.right).mT), self._columns(), self.bias)

    def extra_repr(self) -> str:
        kind = 'fixed' if self.log_values is None else 'learned'
        return (
            f'in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, '
            f'bias={self.bias is not None}, singular_values={kind!r}'
        )


def register_householder(module: nn.Module, name: str = 'weight', rank: int = 10) -> nn.Module:
    """Keep a weight of a layer a matrix of rank ``rank`` with singular values 1, through training.

    The weight becomes the nearest such matrix and stays an attribute of the layer; what is trained and saved are its
    reflectors (``parametrizations.<name>.original0`` and ``original1``). Assigning to the weight projects likewise.
    ``torch.nn.utils.parametrize.remove_parametrizations`` leaves the plain weight behind.

    Args:
        module: Layer with the weight (out, in, ...): linear, convolution (its dimensions after the first are one).
        name: Of the parameter.
        rank: At most the smaller of its sides; 10 as in the paper.

    Returns:
        The module.

    Raises:
        ValueError: no such parameter, one of fewer than two dimensions, a rank that is too large.

    Source: as :class:`HouseholderProjector`.

    Example:
        >>> layer = register_householder(nn.Conv2d(4, 8, 3), 'weight', rank=2)
        >>> layer.weight.shape, torch.linalg.svdvals(layer.weight.detach().flatten(1))[:3].round(decimals=5)
        (torch.Size([8, 4, 3, 3]), tensor([1., 1., 0.]))
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor) or (
        name not in module._parameters and not parametrize.is_parametrized(module, name)
    ):
        known = ', '.join(repr(each) for each, _ in module.named_parameters(recurse=False)) or 'none'
        raise ValueError(f'{type(module).__name__} has no parameter {name!r}; its own parameters: {known}')
    if parametrize.is_parametrized(module, name):
        raise ValueError(f'{name} of {type(module).__name__} is parametrized already; register once')
    if weight.dim() < 2:
        raise ValueError(f'{name} must have at least two dimensions, got shape {tuple(weight.shape)}')
    rank = _check_rank(rank, weight.shape[0], weight[0].numel())
    parametrize.register_parametrization(module, name, _NearestOrthogonal(weight, rank))
    return module


class _NearestOrthogonal(nn.Module):
    """From two sets of reflectors to a weight, and from a weight to those of the nearest such matrix."""

    signs: Tensor

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        self.shape, self.rank = weight.shape, rank
        self.register_buffer('signs', torch.ones(rank, dtype=weight.dtype, device=weight.device))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (householder_product(left) * self.signs @ householder_product(right).mT).view(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        left, right, signs, _ = _nearest(weight.flatten(1), self.rank)
        self.signs.copy_(signs)
        return left.to(weight.dtype), right.to(weight.dtype)


def _nearest(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reflectors of both sides, signs, and singular values of the nearest matrix of the rank, in float64."""
    exact = weight.detach().double()
    if not bool(torch.isfinite(exact).all()):
        raise ValueError('the weight must be finite, got NaN or inf; start from one that is')
    u, values, vh = torch.linalg.svd(exact, full_matrices=False)
    u, v = u[:, :rank], vh[:rank].mT
    # of the two signs of each pair the one with a positive largest entry, whatever LAPACK chose
    flip = v.gather(0, v.abs().argmax(0, keepdim=True)).sign()
    (left, one), (right, other) = householder_reflectors(u * flip), householder_reflectors(v * flip)
    return left, right, one * other, values[:rank]


def _check_rank(rank: int, rows: int, columns: int) -> int:
    most = min(rows, columns)
    try:
        return check_count(rank, 'rank', 1, most)
    except ValueError as error:
        raise ValueError(f'{error}: a matrix of {rows} x {columns} has at most rank {most}; lower rank') from None
