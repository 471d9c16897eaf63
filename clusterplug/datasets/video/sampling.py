# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video to take."""

import operator

import numpy as np


def sample_frames(
    num_frames: int, count: int, random: bool = False, generator: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the frame in the middle of each of T equal spans of the video, or one of each span at random.

    The frame in the middle of span i is floor(tick / 2 + i * tick) with tick = num_frames / T in floating point: the
    rule of CenterCLIP's evaluation, frame by frame.

    Args:
        num_frames: Frames there are, at least 1.
        count: T, frames to take.
        random: One at random from each span (for training).
        generator: Where randomness comes from; by default numpy's global state, which mm seeds for each worker.

    Returns:
        Indices (T,) int64, rising, and (T,) bool, False where a video of fewer than T frames repeats its last one.

    Raises:
        TypeError: A number is no whole number.
        ValueError: A number is below 1.

    Source:
        Wang et al., "Temporal Segment Networks", ECCV 2016; Zhao et al., "CenterCLIP", SIGIR 2022.

        **Differs from the authors' code** (mzhaoshuai/CenterCLIP) when ``random``: their spans are num_frames // T
        frames long from the start, so the last num_frames mod T frames are never drawn; here the spans cover the whole
        video. CLIP4Clip takes other frames: linspace(0, num_frames - 1, T), from the very first to the very last.

    Example:
        >>> [part.tolist() for part in sample_frames(30, 3)]
        [[5, 15, 25], [True, True, True]]
        >>> [part.tolist() for part in sample_frames(2, 3)]
        [[0, 1, 1], [True, True, False]]
    """
    num_frames, count = (_whole(value, name) for value, name in ((num_frames, 'num_frames'), (count, 'count')))
    if num_frames < 1 or count < 1:
        raise ValueError(f'num_frames and count must be at least 1, got {num_frames} and {count}')
    if num_frames < count:
        place = np.arange(count)
        return np.minimum(place, num_frames - 1), place < num_frames
    if not random:
        tick = num_frames / count
        return (tick / 2 + np.arange(count) * tick).astype(np.int64), np.ones(count, bool)
    edges = np.arange(count + 1) * num_frames // count
    draw = np.random.random if generator is None else generator.random
    return edges[:-1] + (draw(count) * np.diff(edges)).astype(np.int64), np.ones(count, bool)


def _whole(value: int, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f'{name} must be a whole number, got {value!r}') from error
