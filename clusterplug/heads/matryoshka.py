# SPDX-License-Identifier: Apache-2.0
"""Prototypes over prefixes of one feature: coarse clusters from few channels, fine ones from all."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.heads.prototype_head import PrototypeHead
from clusterplug.registry import MODELS

MODES = ('slice', 'project')
NORMS = {'batch': nn.BatchNorm1d, 'layer': nn.LayerNorm}


class PrototypeScores(NamedTuple):
    """Scores that are not made yet: embeddings (N, D) and prototypes (K, D), for losses that make them in blocks.

    Example:
        >>> scores = PrototypeScores(torch.eye(2, 3), torch.eye(4, 3))
        >>> scores.shape, scores.dense().shape
        ((2, 4), torch.Size([2, 4]))
    """

    embeddings: Tensor
    prototypes: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.embeddings.shape[0], self.prototypes.shape[0]

    def dense(self) -> Tensor:
        """The scores (N, K), in fp32 at least."""
        with exact_products(self.embeddings):
            return _score(self.embeddings, self.prototypes)

    def split(self, sizes: Sequence[int]) -> list['PrototypeScores']:
        """Parts of so many rows, with the same prototypes."""
        return [PrototypeScores(part, self.prototypes) for part in self.embeddings.split(sizes)]

    def argmax(self, dim: int = 1) -> Tensor:
        """(N,) prototype of each row."""
        return self.dense().argmax(dim)

    def max(self, dim: int = 1) -> torch.return_types.max:
        """(N,) score and prototype of each row, as ``values`` and ``indices``."""
        return self.dense().max(dim)


@MODELS.register_module()
class MatryoshkaHead(nn.Module):
    r"""Score a feature at several widths, each with a projector and prototypes of its own.

    .. math:: m_j = d / n_j, \qquad K_j = \lfloor K m_j / d \rfloor, \qquad
              S_j = \mathrm{unit}(p_j(x_{1:m_j}))\ \mathrm{unit}(C_j)^\top

    for each number n_j of ``nesting``. Coarse levels have few channels and few prototypes; as level j sees the first
    m_j channels alone (``mode='slice'``), a prefix of the trained backbone feature is a feature of its own.

    Args:
        in_channels: d, divisible by every number of ``nesting``.
        num_prototypes: K, of a level with all channels.
        nesting: n_j, by how much each level is narrower.
        mode: ``'slice'``: level j reads the first m_j channels (the paper). ``'project'``: level j reads a learned
            linear map of all channels to m_j, and its projector ends in a GELU (the released training code); prefixes
            of the feature are not trained then.
        hidden_channels: width inside the projectors.
        bottleneck: width of the embeddings that are compared with prototypes.
        num_layers: linear layers of a projector; 0: the slice itself is compared.
        normalize: scale embeddings to length 1. None: as published for the mode, True for ``'slice'`` (as DINOv2),
            False for ``'project'``.
        lazy: ``score`` returns :class:`PrototypeScores` in place of tensors, so that in
            :class:`~clusterplug.pretraining.MultiViewModel` no logits are kept for the backward pass.
        norm: after the hidden layers of the projectors: ``'batch'`` (BatchNorm1d), ``'layer'``, or None, as published.
            Without it a small network may stay at the loss of a collapse, ln K; batch norm needs two rows in training.

    Attributes:
        levels: one :class:`~clusterplug.heads.PrototypeHead` for each level.
        widths, num_prototypes: lists of m_j and K_j.

    Shapes:
        ``x`` (..., in_channels), floating; a list of scores (..., K_j), in the order of ``nesting``. Prototypes have
        length 1 whenever they are used, so nothing must rescale them. Scores are computed in fp32 at least.

    Raises:
        ValueError: ``in_channels`` that a number of ``nesting`` does not divide, a level of fewer than 2 prototypes,
            an unknown mode or norm, a norm without hidden layers, features of another width.
        TypeError: features that are not floating.

    Source: Venkataramanan et al., "Franca: Nested Matryoshka Clustering for Scalable Visual Representation Learning",
    arXiv 2507.14137, section 3.2; official code valeoai/Franca (Apache-2.0), ``franca/layers/mrl_dino_head.py``.

    **Differs from the authors' code**: theirs is ``mode='project'`` only, although the paper describes slices; its
    prototypes have a trained length, and logits without a bound; its initialization misses the prototypes, which are
    drawn on the unit sphere here.

    Example:
        >>> head = MatryoshkaHead(32, 64, hidden_channels=16, bottleneck=8)
        >>> [tuple(scores.shape) for scores in head(torch.zeros(5, 32))]
        [(5, 4), (5, 8), (5, 16), (5, 32), (5, 64)]
    """

    def __init__(
        self,
        in_channels: int,
        num_prototypes: int,
        nesting: Sequence[int] = (16, 8, 4, 2, 1),
        mode: str = 'slice',
        hidden_channels: int = 2048,
        bottleneck: int = 256,
        num_layers: int = 3,
        normalize: bool | None = None,
        lazy: bool = False,
        norm: str | None = None,
    ):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        total = check_count(num_prototypes, 'num_prototypes', 2)
        self.mode = check_choice(mode, 'mode', MODES)
        if isinstance(nesting, (str, int)) or not len(nesting):
            raise ValueError(f'nesting must be a sequence of ints such as (16, 8, 4, 2, 1), got {nesting!r}')
        self.nesting = tuple(check_count(each, 'nesting', 1) for each in nesting)
        check_count(num_layers, 'num_layers', 0)
        make_norm = None if norm is None else NORMS[check_choice(norm, 'norm', tuple(NORMS))]
        if make_norm is not None and num_layers < 2:
            raise ValueError(
                f'norm={norm!r} follows hidden layers, of which num_layers={num_layers} has none; use norm=None'
            )
        odd = [each for each in self.nesting if in_channels % each]
        if odd:
            raise ValueError(
                f'in_channels must be divisible by every number of nesting, got {in_channels} and {odd}; leave those '
                f'out, for example nesting={tuple(each for each in self.nesting if not in_channels % each)}'
            )
        self.widths = [self.in_channels // each for each in self.nesting]
        self.num_prototypes = [total * width // self.in_channels for width in self.widths]
        if min(self.num_prototypes) < 2:
            raise ValueError(
                f'num_prototypes must give every level at least 2, got {self.num_prototypes} for nesting '
                f'{self.nesting}; use at least {2 * max(self.nesting)}'
            )
        self.normalize = mode == 'slice' if normalize is None else bool(normalize)
        self.lazy = bool(lazy)
        self.levels = nn.ModuleList()
        for width, number in zip(self.widths, self.num_prototypes, strict=True):
            projector = _projector(self.in_channels, width, mode, hidden_channels, bottleneck, num_layers, make_norm)
            read = self.in_channels if mode == 'project' else width
            self.levels.append(PrototypeHead(read, number, projector, normalize=self.normalize))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Scores (..., K_j) of features (..., in_channels), one tensor for each level."""
        with_rows = self.factors(x)
        return [each.dense().reshape(*x.shape[:-1], each.shape[1]) for each in with_rows]

    def factors(self, x: Tensor) -> list[PrototypeScores]:
        """As ``forward``, with scores that are not made yet, of (N, in_channels): a loss then keeps none of them."""
        return self._levels(self.embed(x.reshape(-1, x.shape[-1]) if isinstance(x, Tensor) and x.dim() else x))

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings of all levels side by side, (..., levels x bottleneck), of features (..., in_channels)."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f'x must be a floating tensor (..., {self.in_channels}), got {got}; use x.float()')
        if not x.dim() or x.shape[-1] != self.in_channels:
            raise ValueError(
                f'x must have shape (..., {self.in_channels}), got {tuple(x.shape)}; set in_channels to the width of '
                f'the backbone'
            )
        rows = x.reshape(-1, self.in_channels)
        parts = [rows if self.mode == 'project' else rows[:, :width] for width in self.widths]
        z = torch.cat([level.embed(part) for level, part in zip(self._heads(), parts, strict=True)], 1)
        return z.reshape(*x.shape[:-1], z.shape[1])

    def score(self, z: Tensor) -> list[Tensor] | list[PrototypeScores]:
        """Scores of embeddings (N, levels x bottleneck); not made yet with ``lazy``."""
        levels = self._levels(z)
        return levels if self.lazy else [each.dense() for each in levels]

    def _levels(self, z: Tensor) -> list[PrototypeScores]:
        parts = z.split([level.embed_dims for level in self._heads()], dim=1)
        return [PrototypeScores(part, rows) for part, rows in zip(parts, self.prototypes, strict=True)]

    @property
    def prototypes(self) -> list[Tensor]:
        """Prototypes (K_j, bottleneck) of length 1, one tensor for each level; differentiable."""
        return [nn.functional.normalize(cast(Tensor, level.prototypes), dim=-1) for level in self._heads()]

    def _heads(self) -> list[PrototypeHead]:
        return cast(list[PrototypeHead], list(self.levels))


def _score(z: Tensor, prototypes: Tensor) -> Tensor:
    dtype = working_dtype(z.dtype, prototypes.dtype)
    return (z.to(dtype) @ prototypes.to(dtype).mT).to(torch.promote_types(z.dtype, prototypes.dtype))


def _projector(
    in_channels: int, width: int, mode: str, hidden: int, bottleneck: int, num_layers: int, make_norm
) -> nn.Sequential | None:
    """The way from a feature to the embedding of one level, and None where there is none."""
    layers: list[nn.Module] = [nn.Linear(in_channels, width)] if mode == 'project' else []
    channels = [width, *[check_count(hidden, 'hidden_channels', 1)] * (num_layers - 1)][: max(num_layers, 1)]
    channels += [check_count(bottleneck, 'bottleneck', 1)] if num_layers else []
    for number, (before, after) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        if number:
            layers += [nn.GELU()] if make_norm is None else [make_norm(before), nn.GELU()]
        layers.append(nn.Linear(before, after))
    layers += [nn.GELU()] if mode == 'project' and num_layers else []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers) if layers else None
