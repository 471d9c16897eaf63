# SPDX-License-Identifier: Apache-2.0
"""The layer that turns the tokens of T frames into those of S segments with K kept tokens each."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_finite, check_mask, check_num_clusters, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, no_autocast
from clusterplug.functional import KMedoidsResult, spectral_clustering
from clusterplug.functional.distance import self_distances
from clusterplug.functional.kmedoids import kmedoids
from clusterplug.functional.tokens import (
    segment_bounds,
    segment_mean,
    shift_channels,
    sparse_token_index,
    split_segments,
)
from clusterplug.layers._tokens import check_num_prefix
from clusterplug.registry import MODELS

CLUSTERING = ('kmedoids', 'spectral')
SHIFTS = ('token_shift', 'temporal_shift')
METHODS = (*CLUSTERING, 'sparse', 'pooling', *SHIFTS)


class SegmentTokens(NamedTuple):
    """What the layer made of a batch of videos.

    Attributes:
        tokens: (B, S, P + K, D).
        places: (B, S, K) int64, where each kept token stood: frame * n + patch. None where tokens are no longer those
            of one place (pooling, shifts).
        segment_mask: (B, S) bool, True where a segment has a valid frame. All True without a frame mask.
    """

    tokens: Tensor
    places: Tensor | None
    segment_mask: Tensor


@MODELS.register_module()
class SegmentTokenClustering(nn.Module):
    """Cut a video into segments and keep K of each segment's patch tokens.

    The T frames of a video are cut into S consecutive segments (:func:`segment_bounds`: of T / S frames each, the last
    ones a frame shorter where T is no multiple of S). The patch tokens of a segment's frames are clustered together;
    the medoid of each cluster, a token that exists, stays, in the order of time and place. The tokens in front (class
    tokens) of a segment's frames are averaged. Gradients reach the kept tokens and all tokens in front.

    Methods: ``'kmedoids'`` and ``'spectral'`` cluster; the others are what the paper compares with: ``'sparse'``
    keeps one token of each of K equal spans (at random while training, the middle one otherwise), ``'pooling'``
    averages the frames of a segment place by place, ``'token_shift'`` and ``'temporal_shift'`` reduce nothing and
    exchange a quarter of the channels of the tokens in front, or of the patch tokens, with the neighboring frames.

    With a frame mask, invalid frames are neither clustered nor averaged. A segment with fewer valid tokens than K (one
    without a valid frame among them) uses all its frames, so that shapes stay; ``segment_mask`` tells which segments
    have no valid frame.

    Args:
        num_segments: S. Not for shifts.
        num_clusters: K, at most the tokens of the shortest segment. Not for pooling and shifts.
        method: See above. Defaults to ``'kmedoids'``.
        aggregation: ``'medoid'`` or ``'mean'`` of each cluster. Defaults to ``'medoid'``.
        metric: ``'euclidean'`` or ``'cosine'`` distances of k-medoids. Defaults to ``'euclidean'``.
        pre_norm: Cluster tokens scaled to length one, from the most distant one on. Defaults to False.
        num_prefix: P, tokens in front of each frame's patches. Defaults to 1, the class token.
        options: Further arguments of :func:`~clusterplug.functional.kmedoids` (``num_iters``, by
            default 10) or :func:`~clusterplug.functional.spectral_clustering` (``sigma``, by default ``'local'``,
            ``num_neighbors``, by default 5 for each frame of a segment and 5 more above 100 patches, ...).

    Raises:
        TypeError, ValueError: A setting is out of range or does not belong to the method.

    Source:
        Zhao et al., "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval", SIGIR 2022, section 3; official
        code mzhaoshuai/CenterCLIP (CC-BY-NC 4.0).

        **Differs from the authors' code**: the whole batch is clustered at once and stops problem by problem, after
        at most 10 rounds instead of 100 (1 to 5 are typical); ties go to the lowest index; widths of the spectral
        graph follow the data, since a width of 2 underflows in 768 dimensions; frames that only fill a short video up
        are left out; S need not divide T; K > N raises.

    Example:
        >>> layer = SegmentTokenClustering(num_segments=4, num_clusters=49)
        >>> layer(torch.randn(2, 12, 1 + 49, 32)).shape
        torch.Size([2, 4, 50, 32])
    """

    def __init__(
        self,
        num_segments: int | None = None,
        num_clusters: int | None = None,
        method: str = 'kmedoids',
        aggregation: str = 'medoid',
        metric: str = 'euclidean',
        pre_norm: bool = False,
        num_prefix: int = 1,
        options: dict | None = None,
    ):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f'method must be one of {", ".join(METHODS)}, got {method!r}')
        _check_counts(method, num_segments, num_clusters)
        if aggregation not in ('medoid', 'mean'):
            raise ValueError(f"aggregation must be 'medoid' or 'mean', got {aggregation!r}")
        if aggregation == 'mean' and method not in CLUSTERING:
            raise ValueError(f"aggregation='mean' needs method {' or '.join(CLUSTERING)}, got {method!r}")
        if metric not in ('euclidean', 'cosine'):
            raise ValueError(f"metric must be 'euclidean' or 'cosine', got {metric!r}")
        self.num_segments, self.num_clusters, self.method = num_segments, num_clusters, method
        self.aggregation, self.metric, self.pre_norm = aggregation, metric, pre_norm
        self.num_prefix = check_num_prefix(num_prefix)
        self.options = _check_options(method, options)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shorten the token sequences of a batch of videos.

        Args:
            tokens: (B, T, P + n, D), tokens in front first.
            mask: (B, T) bool, True = a frame of the video.

        Returns:
            (B, S, P + K, D); (B, S, P + n, D) for pooling, (B, T, P + n, D) for shifts.

        Raises:
            TypeError, ValueError: Shapes do not fit the settings; K exceeds the tokens of a segment; a token is NaN
                or infinite (checked on the CPU).
        """
        return self.select(tokens, mask).tokens

    def select(self, tokens: Tensor, mask: Tensor | None = None) -> SegmentTokens:
        """As :meth:`forward`, with the places of the kept tokens and the mask of the segments."""
        self._check(tokens, mask)
        if self.method in SHIFTS:
            everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            return SegmentTokens(self._shift(tokens), None, everywhere if mask is None else mask)
        frames, real = split_segments(tokens, self._segments)
        valid, segment_mask = self._valid_frames(frames, real, mask)
        if self.method == 'pooling':
            return SegmentTokens(segment_mean(frames, valid), None, segment_mask)
        kept, places = self._reduce(frames[..., self.num_prefix :, :], valid)
        if self.num_prefix:
            front = segment_mean(frames[..., : self.num_prefix, :], valid)
            kept = torch.cat([front, kept.to(front.dtype)], 2)
        return SegmentTokens(kept, places + self._first_places(tokens), segment_mask)

    @property
    def _segments(self) -> int:
        assert self.num_segments is not None, 'the method was checked to have a number of segments'
        return self.num_segments

    @property
    def _clusters(self) -> int:
        assert self.num_clusters is not None, 'the method was checked to have a number of clusters'
        return self.num_clusters

    def _shift(self, tokens: Tensor) -> Tensor:
        front, patches = tokens[:, :, : self.num_prefix], tokens[:, :, self.num_prefix :]
        if self.method == 'token_shift':
            return torch.cat([shift_channels(front), patches], 2)
        return torch.cat([front, shift_channels(patches)], 2)

    def _valid_frames(self, frames: Tensor, real: Tensor | None, mask: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Return (B, S, d) frames to use, or None for all, and (B, S) segments with a valid frame."""
        batch, segments = frames.shape[:2]
        if mask is None:
            valid = None if real is None else real.expand(batch, -1, -1)
            return valid, torch.ones(batch, segments, dtype=torch.bool, device=frames.device)
        valid = split_segments(mask, self._segments)[0]
        if real is not None:
            valid = valid & real
        needed = self.num_clusters if self.num_clusters is not None else 1
        enough = valid.sum(-1, keepdim=True) * (frames.shape[3] - self.num_prefix) >= needed
        every = torch.ones_like(valid) if real is None else real.expand_as(valid)
        return torch.where(enough, valid, every), valid.any(-1)

    def _reduce(self, patches: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return kept tokens (B, S, K, D) and their places (B, S, K) in the segment, of patches (B, S, d, n, D)."""
        batch, segments, length, number, channels = patches.shape
        x = patches.reshape(batch * segments, length * number, channels)
        if self.method == 'sparse':
            index = self._sparse(valid, batch * segments, length, number, x.device)
            labels = None
        elif self._clusters == x.shape[1] and valid is None:
            index = torch.arange(self._clusters, device=x.device).expand(len(x), -1)
            labels = index
        else:
            token_mask = None if valid is None else valid.flatten(0, 1).repeat_interleave(number, 1)
            result = self._cluster(x.detach(), token_mask, length)
            index, labels = result.medoids, result.labels
        if self.aggregation == 'mean' and labels is not None:  # never without labels, as checked when it was built
            kept = _means(x, labels, self._clusters)
        else:
            kept = _take(x, index)
        return kept.unflatten(0, (batch, segments)), index.unflatten(0, (batch, segments))

    def _cluster(self, x: Tensor, mask: Tensor | None, length: int) -> KMedoidsResult:
        checked = host_checks_allowed(x)
        if checked:
            check_finite(x, 'tokens', mask)
        metric = self.metric
        if self.pre_norm:
            with exact_products(x):
                x = F.normalize(x.float(), dim=-1)
        if self.method == 'spectral':
            options = {'sigma': 'local', 'num_neighbors': _neighbors(x.shape[1], length)} | self.options
            return spectral_clustering(x, self._clusters, mask=mask, **options)
        # With a tolerance the host waits for the device in every round; on a CPU that costs nothing and saves rounds.
        options = {'num_iters': 10, 'tol': 1e-6 if checked else None} | self.options
        if self.pre_norm:
            # All norms are one: the start would be decided by rounding. From distances it is the most distant point.
            with exact_products(x):
                x, metric = self_distances(x, metric, mask), 'precomputed'
        return kmedoids(x, self._clusters, metric=metric, mask=mask, **options)

    def _sparse(self, valid: Tensor | None, rows: int, length: int, number: int, device: torch.device) -> Tensor:
        if valid is None:
            return sparse_token_index(length * number, self._clusters, rows, self.training, device)
        # As sparse_token_index, over the valid tokens alone: valid frames first, in their order.
        order = (~valid.flatten(0, 1)).to(torch.uint8).argsort(dim=-1, stable=True)
        count = valid.flatten(0, 1).sum(-1, keepdim=True) * number
        if self.training:
            edges = torch.arange(self._clusters + 1, device=device) * count // self._clusters
            first, lengths = edges[:, :-1], edges.diff(dim=-1)
            drawn = (torch.rand(first.shape, device=device, dtype=torch.float32) * lengths).long()
            index = first + torch.minimum(drawn, (lengths - 1).clamp_min(0))
        else:
            tick = count.double() / self._clusters
            index = (tick / 2 + tick * torch.arange(self._clusters, device=device)).long()
        return order.gather(-1, index // number) * number + index % number

    def _first_places(self, tokens: Tensor) -> Tensor:
        number = tokens.shape[2] - self.num_prefix
        bounds = segment_bounds(tokens.shape[1], self._segments)
        return torch.tensor([first * number for first, _ in bounds], device=tokens.device)[:, None]

    def _check(self, tokens: Tensor, mask: Tensor | None) -> None:
        check_points(tokens, 'tokens', allow_empty=True)
        if tokens.dim() != 4 or tokens.shape[2] <= self.num_prefix:
            raise ValueError(
                f'tokens must have shape (batch, frames, {self.num_prefix} + patches, channels), got '
                f'{tuple(tokens.shape)}; check num_prefix, and unflatten frames from the batch'
            )
        check_mask(mask, tokens.shape[:2], tokens.device)
        if self.num_segments is None:
            return
        bounds = segment_bounds(tokens.shape[1], self.num_segments)
        shortest = (bounds[-1][1] - bounds[-1][0]) * (tokens.shape[2] - self.num_prefix)
        if self.num_clusters is not None:
            check_num_clusters(self.num_clusters, shortest)

    def extra_repr(self) -> str:
        """Settings for ``print``."""
        return (
            f'num_segments={self.num_segments}, num_clusters={self.num_clusters}, method={self.method!r}, '
            f'aggregation={self.aggregation!r}, metric={self.metric!r}, num_prefix={self.num_prefix}'
        )


def _neighbors(num_tokens: int, length: int) -> int:
    # As the authors: five for each frame of the segment, five more for fine patches.
    return min(num_tokens, 5 * length + (5 if num_tokens // length >= 100 else 0))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens ``index`` (R, K) of ``x`` (R, N, D): (R, K, D)."""
    offset = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + offset).flatten()).view(*index.shape, x.shape[-1])


def _means(x: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Return the mean of each cluster (R, K, D) of tokens (R, N, D) with labels (R, N), -1 for none."""
    with no_autocast(x):
        # One column more than clusters takes the tokens without a label.
        one_hot = F.one_hot(labels % (num_clusters + 1), num_clusters + 1)[..., :num_clusters].to(
            torch.promote_types(x.dtype, torch.float32)
        )
        weights = one_hot / one_hot.sum(1, keepdim=True).clamp_min(1)
        return (weights.mT @ x.to(weights.dtype).masked_fill(labels[..., None] < 0, 0)).to(x.dtype)


def _check_counts(method: str, num_segments: int | None, num_clusters: int | None) -> None:
    needs_segments, needs_clusters = method not in SHIFTS, method in (*CLUSTERING, 'sparse')
    for name, value, needed in (
        ('num_segments', num_segments, needs_segments),
        ('num_clusters', num_clusters, needs_clusters),
    ):
        if not needed and value is not None:
            raise ValueError(f'{name} does not belong to method {method!r}, got {value}; leave it out')
        if not needed:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f'{name} must be an int for method {method!r}, got {type(value).__name__} ({value!r})')
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')


def _check_options(method: str, options: dict | None) -> dict:
    allowed = {
        'kmedoids': {'num_iters', 'tol'},
        'spectral': {'affinity', 'sigma', 'num_neighbors', 'solver'},
    }.get(method, set())
    unknown = sorted(set(options or {}) - allowed)
    if unknown:
        raise ValueError(f'options of method {method!r} are {sorted(allowed)}, got {", ".join(unknown)}')
    return dict(options or {})
