# SPDX-License-Identifier: Apache-2.0
"""Scores of embeddings against learnable prototypes: the head of clustering-based pre-training."""

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.core.numerics import no_autocast, unit_rows, working_dtype
from clusterplug.registry import MODELS


@MODELS.register_module()
class PrototypeHead(nn.Module):
    r"""Project a feature, scale it to length 1, compare it with K prototypes.

    .. math:: z = p(x) / \lVert p(x) \rVert, \qquad S = z C^\top

    with projector :math:`p` and prototypes :math:`C` (K, D), rows of length 1 after :meth:`normalize_`, no bias.
    Lengths and scores are computed in fp32 or better with autocast off; the projector follows the caller's autocast.

    Args:
        in_channels: width of the features.
        num_prototypes: K; a list gives several sets of prototypes over one embedding, and a list of scores.
        projector: module or config from (N, in_channels) to (N, D); None: D = in_channels.
        normalize: scale embeddings to length 1. False gives raw logits.

    Attributes:
        prototypes: parameter (K, D), or a list of them, of length 1 at the start. Nothing rescales them in
            ``forward``: call :meth:`normalize_` before a step (:class:`~clusterplug.pretraining.MultiViewModel` does).
        embed_dims: D.

    Shapes:
        ``x`` (N, in_channels), N = 0 too; N = 1 not in training where the projector holds BatchNorm.
        Scores (N, K) in the wider of the types of the embedding and of the prototypes. A row of zeros stays zeros, and
        has no gradient. A row with NaN or inf gives NaN in this row alone, as far as the projector treats rows one by
        one.

    Raises:
        ValueError: features of another width; one row in training with a BatchNorm in the projector; a projector that
            does not tell its width.
        TypeError: features that are not floating.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
    arXiv 2006.09882; official code facebookresearch/swav (CC BY-NC 4.0; reimplemented from the paper).

    **Differs from the authors' code**: prototypes start with length 1, not only after the first step; scores are fp32
    under autocast (fp16 has 3 digits, and they are divided by 0.05).

    Example:
        >>> head = PrototypeHead(16, 5)
        >>> head(torch.ones(3, 16)).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        in_channels: int,
        num_prototypes: int | Sequence[int],
        projector: nn.Module | dict | None = None,
        normalize: bool = True,
    ):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        if projector is not None and not isinstance(projector, (nn.Module, dict)):
            raise TypeError(f'projector must be None, a module or a dict, got {type(projector).__name__}')
        self.projector: nn.Module | None = MODELS.build(projector) if isinstance(projector, dict) else projector
        self.embed_dims = self.in_channels if self.projector is None else _width_of(self.projector)
        self.normalize = bool(normalize)
        self.several = isinstance(num_prototypes, Sequence) and not isinstance(num_prototypes, str)
        given = list(num_prototypes) if isinstance(num_prototypes, Sequence) and self.several else [num_prototypes]
        if not given:
            raise ValueError('num_prototypes must be an int or a non-empty list of ints, got an empty list')
        numbers = [check_count(number, 'num_prototypes', 1) for number in given]
        self.num_prototypes: int | list[int] = numbers if self.several else numbers[0]
        sets = [nn.Parameter(F.normalize(torch.randn(number, self.embed_dims), dim=1)) for number in numbers]
        self.prototypes = nn.ParameterList(sets) if self.several else sets[0]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Scores (N, K) of features (N, in_channels), or a list of them."""
        return self.score(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (N, D) of features (N, in_channels)."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f'x must be a floating tensor (N, {self.in_channels}), got {got}; use x.float()')
        if x.dim() != 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'x must have shape (N, {self.in_channels}), got {tuple(x.shape)}; set in_channels to the width of the '
                f'backbone and pool maps first'
            )
        z = x
        if self.projector is not None:
            z = self._project(self.projector, x)
        if not self.normalize:
            return z
        with no_autocast(z):
            return unit_rows(z.to(working_dtype(z.dtype))).to(self._result_dtype(z))

    def score(self, z: Tensor) -> Tensor | list[Tensor]:
        """Scores (N, K) of embeddings (N, D), for those of a queue."""
        with no_autocast(z):
            dtype, result = working_dtype(z.dtype, self._sets()[0].dtype), self._result_dtype(z)
            scores = [(z.to(dtype) @ each.to(dtype).mT).to(result) for each in self._sets()]
        return scores if self.several else scores[0]

    @torch.no_grad()
    def normalize_(self) -> 'PrototypeHead':
        """Scale every prototype to length 1, in place; returns the head."""
        for each in self._sets():
            each.copy_(unit_rows(each.to(working_dtype(each.dtype))))
        return self

    def _sets(self) -> list[Tensor]:
        return list(self.prototypes) if isinstance(self.prototypes, nn.ParameterList) else [self.prototypes]

    def _result_dtype(self, z: Tensor) -> torch.dtype:
        return torch.promote_types(z.dtype, self._sets()[0].dtype)

    def _project(self, projector: nn.Module, x: Tensor) -> Tensor:
        """The projector, where BatchNorm can take statistics of the rows."""
        if not self.training or len(x) > 1 or not any(isinstance(m, nn.BatchNorm1d) for m in projector.modules()):
            return projector(x)
        if len(x) == 1:
            raise ValueError(
                'the projector holds BatchNorm, which has no statistics of one row in training; use at least 2 samples '
                "a step, or a projector without it: dict(type='clusterplug.ProjectionHead', norm='layer')"
            )
        projector.eval()  # of no row, its running statistics would become NaN
        try:
            return projector(x)
        finally:
            projector.train()


def _width_of(projector: nn.Module) -> int:
    """Width of what a projector gives: its ``out_channels``, or that of its last linear layer."""
    width = getattr(projector, 'out_channels', None)
    if width is None:
        widths = [module.out_features for module in projector.modules() if hasattr(module, 'out_features')]
        width = widths[-1] if widths else None
    if isinstance(width, bool) or not isinstance(width, Integral):
        raise ValueError(
            f'the projector {type(projector).__name__} does not tell the width of its embeddings; give it an attribute '
            f'out_channels'
        )
    return int(width)
