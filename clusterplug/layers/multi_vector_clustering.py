# SPDX-License-Identifier: Apache-2.0
"""The layer between a token encoder and a late-interaction score: fewer vectors for each text or video."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import (
    check_choice,
    check_count,
    check_mask,
    check_num_clusters,
    check_number,
    check_points,
)
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.functional import cluster_vectors, spaced_vectors, tail_vectors
from clusterplug.registry import MODELS

_KINDS = ('cluster', 'tail', 'spacing')


@MODELS.register_module()
class MultiVectorClustering(nn.Module):
    """Replace the vectors of each sequence by a few means of similar ones, in training and in the index alike.

    Without parameters or state: the same config gives the same vectors in training, when an index is made and when it
    is made again. It takes the tokens of texts (B, L, D) and those of videos (B, T, P, D) with a mask of the frames or
    segments, so it stands behind the encoders of :class:`~clusterplug.retrieval.CenterCLIP`, whether those cluster
    tokens inside segments or not.

    Args:
        num_clusters: Vectors kept of each sequence ("C8x32" = 8 of a query, 32 of a document: two layers). Exactly one
            of ``num_clusters``, ``ratio`` and ``spacing``.
        ratio: Share of the valid vectors kept ("C25" = 0.25).
        kind: 'cluster'; or a baseline that is trained the same way: 'tail' keeps the last ``num_clusters`` vectors,
            'spacing' every ``spacing``-th.
        spacing: For ``kind='spacing'``.
        num_iters: Lloyd steps at most.
        init: 'farthest', or 'k-means++': random in training, from a fixed seed in evaluation.
        num_protected: First valid vectors (class token) that stay as they are, in front of the others; they are not
            among ``num_clusters``.
        normalize_centers: Scale the vectors that come out to length one. Off: a mean of unit vectors is the shorter,
            the looser its cluster.

    Returns of ``forward(x, mask=None)``:
        ``(centers, mask)``: (B, P + K, D) in the type of ``x``, and (B, P + K) bool, True = a vector. See
        :func:`~clusterplug.functional.cluster_vectors`.

    Raises:
        TypeError, ValueError: Options or inputs that do not fit.

    Source: Veneroso et al., "CRISP", arXiv 2505.11471, sections 3 and 4.

    Example:
        >>> layer = MultiVectorClustering(num_clusters=32)
        >>> frames = torch.ones(2, 12, dtype=torch.bool)  # of two videos
        >>> centers, mask = layer(torch.randn(2, 12, 49, 64), frames)
        >>> centers.shape, mask.shape
        (torch.Size([2, 32, 64]), torch.Size([2, 32]))
    """

    def __init__(
        self,
        num_clusters: int | None = None,
        ratio: float | None = None,
        kind: str = 'cluster',
        spacing: int | None = None,
        num_iters: int = 20,
        init: str = 'farthest',
        num_protected: int = 0,
        normalize_centers: bool = False,
    ):
        super().__init__()
        check_choice(kind, 'kind', _KINDS)
        given = dict(num_clusters=num_clusters, ratio=ratio, spacing=spacing)
        wanted = {'cluster': ('num_clusters', 'ratio'), 'tail': ('num_clusters',), 'spacing': ('spacing',)}[kind]
        passed = [name for name, value in given.items() if value is not None]
        if len(passed) != 1 or passed[0] not in wanted:
            raise ValueError(f'kind={kind!r} takes exactly one of: {", ".join(wanted)}, got {given}')
        self.num_clusters = None if num_clusters is None else check_num_clusters(num_clusters)
        self.ratio = None if ratio is None else check_number(ratio, 'ratio', most=1, above=0)
        self.spacing = None if spacing is None else check_count(spacing, 'spacing', 1)
        self.kind, self.num_iters = kind, check_count(num_iters, 'num_iters', 1)
        self.init = check_choice(init, 'init', ('farthest', 'k-means++'))
        self.num_protected = check_count(num_protected, 'num_protected')
        self.normalize_centers = bool(normalize_centers)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, mask = _sequences(x, mask)
        if not self.num_protected:
            return self._finished(*self._fewer(x, mask))
        protected = mask & (mask.cumsum(1) <= self.num_protected)
        last = mask.shape[1] - torch.arange(mask.shape[1], device=x.device)
        order = (protected * last).topk(min(self.num_protected, mask.shape[1]), dim=1).indices
        kept = protected.gather(1, order)
        first = torch.where(kept.unsqueeze(-1), x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1])), 0.0)
        vectors, there = self._fewer(x, mask & ~protected)
        return self._finished(torch.cat([first, vectors], 1), torch.cat([kept, there], 1))

    def _fewer(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == 'tail' and self.num_clusters is not None:
            return tail_vectors(x, mask, self.num_clusters)
        if self.kind == 'spacing' and self.spacing is not None:
            return spaced_vectors(x, mask, self.spacing)
        generator = None
        if self.init == 'k-means++' and not self.training:
            generator = torch.Generator().manual_seed(0)
        vectors, there = cluster_vectors(
            x, mask, self.num_clusters, self.ratio, num_iters=self.num_iters, init=self.init, generator=generator
        )
        return vectors, there

    def _finished(self, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.normalize_centers:
            return vectors, mask
        with no_autocast(vectors):
            return F.normalize(vectors.to(working_dtype(vectors.dtype)), dim=-1).to(vectors.dtype), mask

    def extra_repr(self) -> str:
        """Settings for ``print``."""
        names = ('num_clusters', 'ratio', 'kind', 'spacing', 'num_iters', 'init', 'num_protected', 'normalize_centers')
        return ', '.join(f'{name}={getattr(self, name)!r}' for name in names)


def _sequences(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return vectors (B, L, D) and mask (B, L); those of a video's frames become one sequence."""
    check_points(x)
    if x.dim() not in (3, 4):
        raise ValueError(f'x must be tokens (B, L, D) or tokens of frames (B, T, P, D), got {tuple(x.shape)}')
    if mask is None:
        mask = x.new_ones(x.shape[:-1], dtype=torch.bool)
    elif x.dim() == 4 and isinstance(mask, Tensor) and mask.dim() == 2:
        check_mask(mask, x.shape[:2], x.device)
        mask = mask.unsqueeze(-1).expand(x.shape[:-1])
    check_mask(mask, x.shape[:-1], x.device)
    return x.flatten(1, -2), mask.flatten(1)
