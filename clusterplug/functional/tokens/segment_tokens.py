# SPDX-License-Identifier: Apache-2.0
"""Video tokens in segments: frames cut into consecutive runs, and parameter-free ways to shorten or mix them."""

import torch
from torch import Tensor


def segment_bounds(num_frames: int, num_segments: int) -> list[tuple[int, int]]:
    """Cut T frames into S consecutive segments whose lengths differ by at most one, longer ones first.

    Args:
        num_frames: T.
        num_segments: S, 1 <= S <= T.

    Returns:
        (first frame, frame behind the last) of each segment.

    Raises:
        ValueError: S is out of range.

    Source:
        Zhao et al., "CenterCLIP", SIGIR 2022. **Differs from the authors' code**: T need not be a multiple of S.

    Example:
        >>> segment_bounds(12, 4), segment_bounds(10, 4)
        ([(0, 3), (3, 6), (6, 9), (9, 12)], [(0, 3), (3, 6), (6, 8), (8, 10)])
    """
    if not 1 <= num_segments <= num_frames:
        raise ValueError(
            f'num_segments must lie between 1 and the number of frames, {num_frames}, got {num_segments}; '
            f'ask for fewer segments or load more frames'
        )
    length, longer = divmod(num_frames, num_segments)
    starts = [index * length + min(index, longer) for index in range(num_segments + 1)]
    return list(zip(starts[:-1], starts[1:]))


def split_segments(x: Tensor, num_segments: int) -> tuple[Tensor, Tensor | None]:
    """Stack the frames of each segment: (B, T, ...) -> (B, S, d, ...) with d the length of the longest segment.

    Args:
        x: (B, T, ...).
        num_segments: S.

    Returns:
        The frames, and (S, d) bool, False where a shorter segment repeats its last frame to fill up; None when all
        are of the same length.

    Raises:
        ValueError: S is out of range.

    Example:
        >>> frames, real = split_segments(torch.arange(5).view(1, 5), 2)
        >>> frames.tolist(), real.tolist()
        ([[[0, 1, 2], [3, 4, 4]]], [[True, True, True], [True, True, False]])
    """
    num_frames = x.shape[1]
    bounds = segment_bounds(num_frames, num_segments)
    if num_frames % num_segments == 0:
        return x.unflatten(1, (num_segments, -1)), None
    starts = torch.tensor([first for first, _ in bounds], device=x.device)
    lengths = torch.tensor([stop - first for first, stop in bounds], device=x.device)
    place = torch.arange(-(-num_frames // num_segments), device=x.device)
    index = starts[:, None] + torch.minimum(place, lengths[:, None] - 1)
    return x[:, index], place < lengths[:, None]


def segment_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Average over the frames of each segment: (B, S, d, ...) -> (B, S, ...), in fp32, returned in the type of x.

    Args:
        x: (B, S, d, ...).
        valid: (B, S, d) or (S, d) bool; frames to count. None counts all. At least one of each segment.

    Example:
        >>> segment_mean(torch.tensor([[[2.0, 4.0, 9.0]]]), torch.tensor([[True, True, False]])).tolist()
        [[3.0]]
    """
    working = x.to(torch.promote_types(x.dtype, torch.float32))
    if valid is None:
        return working.mean(2).to(x.dtype)
    weights = valid.to(working.dtype).expand(x.shape[:3])
    weights = (weights / weights.sum(-1, keepdim=True)).view(*x.shape[:3], *[1] * (x.dim() - 3))
    # Frames that do not count may hold anything, NaN among it.
    return (working.masked_fill(weights == 0, 0) * weights).sum(2).to(x.dtype)


def shift_channels(x: Tensor, share: float = 0.125) -> Tensor:
    """Replace a share of the channels by those of the next frame, and as many by those of the frame before.

    The first channels come from the next frame, the following ones from the one before; zeros at the two ends.

    Args:
        x: (B, T, ..., C).
        share: Share of the channels for each direction, above 0 and at most 0.5.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: ``share`` is out of range.

    Source:
        Lin et al., "TSM", ICCV 2019; Zhang et al., "Token Shift Transformer", ACM MM 2021.

    Example:
        >>> shift_channels(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), 0.5).tolist()
        [[[3.0, 0.0], [5.0, 2.0], [0.0, 4.0]]]
    """
    if not 0 < share <= 0.5:
        raise ValueError(f'share must lie above 0 and at most at 0.5, got {share}')
    fold = int(x.shape[-1] * share)
    ahead, behind, rest = x[..., :fold], x[..., fold : 2 * fold], x[..., 2 * fold :]
    zero = torch.zeros_like(x[:, :1, ..., :fold])
    return torch.cat([torch.cat([ahead[:, 1:], zero], 1), torch.cat([zero, behind[:, :-1]], 1), rest], -1)


def sparse_token_index(num_tokens: int, num_kept: int, batch: int, random: bool, device: torch.device) -> Tensor:
    """Return (batch, K) one token of each of K equal spans of N tokens: the middle, or one at random.

    The middle of span i is floor(tick / 2 + i * tick) with tick = N / K in floating point.

    Args:
        num_tokens: N.
        num_kept: K, 1 <= K <= N.
        batch: Rows; each draws its own when ``random``.
        random: One at random, from torch's generator, as dropout draws.
        device: Where.

    Raises:
        ValueError: K is out of range.

    Source:
        Zhao et al., "CenterCLIP", SIGIR 2022: the middles are those of the authors' code.

        **Differs from the authors' code** (mzhaoshuai/CenterCLIP) when ``random``: their spans are N // K tokens long
        from the start, so that the last N mod K tokens are never drawn (108 of 588 for K = 160), and all videos of a
        batch draw alike; here the spans cover all tokens and each row draws its own.

    Example:
        >>> sparse_token_index(12, 3, 1, False, torch.device('cpu')).tolist()
        [[2, 6, 10]]
        >>> sparse_token_index(13, 12, 1, False, torch.device('cpu')).tolist()
        [[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]]
    """
    if not 1 <= num_kept <= num_tokens:
        raise ValueError(
            f'num_clusters must lie between 1 and the number of tokens, {num_tokens}, got {num_kept}; ask for fewer'
        )
    if not random:
        # Numbers of Python and not a kernel: a fused multiplication and addition may round to the token before.
        tick = num_tokens / num_kept
        index = [int(tick / 2 + tick * number) for number in range(num_kept)]
        return torch.tensor(index, device=device).expand(batch, -1)
    edges = torch.arange(num_kept + 1, device=device) * num_tokens // num_kept
    lengths = edges[1:] - edges[:-1]
    drawn = (torch.rand(batch, num_kept, device=device, dtype=torch.float32) * lengths).long()
    return edges[:-1] + torch.minimum(drawn, lengths - 1)
