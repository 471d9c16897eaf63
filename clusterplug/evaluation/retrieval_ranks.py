# SPDX-License-Identifier: Apache-2.0
"""Ranks of the right answers of a retrieval, by counting: no sorting, ties by average rank, in chunks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_points
from clusterplug.core.numerics import exact_products, working_dtype

# Scores held at once: 64 MB on a CPU, 1 GB on an accelerator.
_SCORES_ON_CPU = 2**24
_SCORES_ELSEWHERE = 2**28


def ranks_of_targets(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of the right column of each row: one plus the columns that score more, plus half of those that tie.

    Args:
        scores: (Q, G) of any floating type. NaN never counts as more; a row whose own score is NaN has rank G.
        targets: (Q,) int64, the right column of each row.

    Returns:
        (Q,) fp64 ranks from 1 to G, with halves for ties: the average of the ranks that the tied columns share.

    Raises:
        TypeError: ``scores`` is not floating, or ``targets`` not int64.
        ValueError: Shapes do not fit, or a target is out of range.

    Example:
        >>> import torch
        >>> ranks_of_targets(torch.tensor([[0.9, 0.1, 0.9], [0.3, 0.2, 0.1]]), torch.tensor([0, 2])).tolist()
        [1.5, 3.0]
    """
    check_points(scores, 'scores')
    if scores.dim() != 2:
        raise ValueError(f'scores must have shape (queries, gallery), got {tuple(scores.shape)}')
    _check_targets(targets, len(scores), scores.shape[1], 'targets')
    return _ranks(scores, targets.to(scores.device))


def retrieval_ranks(
    text: Tensor, video: Tensor, video_of_text: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rank all videos for each text, and all videos' texts for each video, by cosine similarity.

    Text to video: each of the Q texts ranks the G videos. Video to text: a video scores each of the G groups of texts
    (the texts of one video) by the best text of the group, and its own group is ranked among them; with one text for
    each video this is the plain ranking of the transposed matrix. The similarity matrix is made in rows of a chunk
    and never held as a whole.

    Args:
        text: (Q, D) features of any length; Q >= 1.
        video: (G, D) features.
        video_of_text: (Q,) int64, the video that each text belongs to. A video without a text is part of the gallery
            of the texts and asks nothing itself.
        chunk_size: Queries at once; by default as many as 64 MB of scores allow (1 GB on an accelerator).

    Returns:
        Text-to-video ranks (Q,) and video-to-text ranks (V,), of the V videos that have a text, in rising order; fp64.

    Raises:
        TypeError: Features are not floating, or ``video_of_text`` not int64.
        ValueError: Shapes do not fit each other, or a number in ``video_of_text`` is out of range.

    Source:
        **Differs from the authors' code** (mzhaoshuai/CenterCLIP): columns that tie with the right one share an
        average rank, where theirs enters each of them as a result of its own; videos are encoded once.

    Example:
        >>> import torch
        >>> eye = torch.eye(3)
        >>> text_ranks, video_ranks = retrieval_ranks(eye[[0, 0, 1, 2]], eye, torch.tensor([0, 0, 1, 2]))
        >>> text_ranks.tolist(), video_ranks.tolist()
        ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    """
    for name, features in (('text', text), ('video', video)):
        check_points(features, name)
        if features.dim() != 2:
            raise ValueError(f'{name} must have shape (number, channels), got {tuple(features.shape)}')
    if text.shape[1] != video.shape[1]:
        raise ValueError(f'text and video must have the same channels, got {text.shape[1]} and {video.shape[1]}')
    _check_targets(video_of_text, len(text), len(video), 'video_of_text')
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f'chunk_size must be at least 1, got {chunk_size}')
    dtype = working_dtype(text.dtype)
    text, video = F.normalize(text.to(dtype), dim=-1), F.normalize(video.to(dtype), dim=-1)
    owner = video_of_text.to(text.device)
    with exact_products(text):
        text_ranks = [
            _ranks(part @ video.mT, target)
            for part, target in zip(_chunks(text, len(video), chunk_size), _chunks(owner, len(video), chunk_size))
        ]
        asking, group = torch.unique(owner, return_inverse=True)
        targets = torch.arange(len(asking), device=text.device)
        video_ranks = [
            _ranks(_best_of_groups(part @ text.mT, group, len(asking)), target)
            for part, target in zip(
                _chunks(video[asking], len(text), chunk_size), _chunks(targets, len(text), chunk_size)
            )
        ]
    return torch.cat(text_ranks), torch.cat(video_ranks)


def rank_summary(ranks: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, median and mean of ranks.

    Args:
        ranks: (Q,) from 1, at least one.

    Returns:
        ``R1``, ``R5``, ``R10`` (percent of the ranks up to 1, 5, 10), ``MdR`` (the mean of the middle two for an even
        number) and ``MnR``.

    Raises:
        ValueError: There is no rank.

    Example:
        >>> import torch
        >>> rank_summary(torch.tensor([1.0, 3.0, 7.0, 20.0]))
        {'R1': 25.0, 'R5': 50.0, 'R10': 75.0, 'MdR': 5.0, 'MnR': 7.75}
    """
    if ranks.numel() == 0:
        raise ValueError('ranks must hold at least one rank, got none: no query was evaluated')
    ranks = ranks.double()
    summary = {f'R{k}': 100 * (ranks <= k).double().mean().item() for k in (1, 5, 10)}
    ordered = ranks.sort().values
    middle = ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]
    return summary | {'MdR': 0.5 * middle.item(), 'MnR': ranks.mean().item()}


def _chunks(x: Tensor, gallery: int, chunk_size: int | None) -> tuple[Tensor, ...]:
    budget = _SCORES_ON_CPU if x.device.type == 'cpu' else _SCORES_ELSEWHERE
    return x.split(chunk_size or max(1, budget // gallery))


def _ranks(scores: Tensor, targets: Tensor) -> Tensor:
    own = scores.gather(1, targets[:, None])
    # With better - worse, the rank 1 + better + ties / 2 is (G + 1 + better - worse) / 2: one pass over the scores.
    # Sums of signs are exact below 2^24 columns; NaN and infinity, which survive every sum, take the long way.
    if bool(scores.sum().isfinite()) and scores.shape[1] < 2**24:
        difference = (scores - own).sign_().sum(1).double()
    else:
        # NaN counts as worse, infinities tie with each other.
        better, ties = (scores > own).sum(1), (scores == own).sum(1)
        difference = (2 * better + ties - scores.shape[1]).double()
        difference = torch.where(own.squeeze(1).isnan(), scores.shape[1] - 1, difference)
    return 0.5 * (scores.shape[1] + 1 + difference)


def _best_of_groups(scores: Tensor, group: Tensor, num_groups: int) -> Tensor:
    if num_groups == scores.shape[1]:
        return scores[:, group.argsort()]
    best = scores.new_full((len(scores), num_groups), -torch.inf)
    return best.scatter_reduce(1, group.expand_as(scores), scores, 'amax')


def _check_targets(targets: Tensor, length: int, limit: int, name: str) -> None:
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        raise TypeError(f'{name} must be an int64 tensor, got {getattr(targets, "dtype", type(targets).__name__)}')
    if tuple(targets.shape) != (length,):
        raise ValueError(f'{name} must have shape ({length},), got {tuple(targets.shape)}')
    if int(targets.min()) < 0 or int(targets.max()) >= limit:
        raise ValueError(
            f'{name} must hold numbers from 0 to {limit - 1}, got {int(targets.min())} to {int(targets.max())}'
        )
