"""Which frames of a video to take."""

import numpy as np


def sample_frames(
    num_frames: int, count: int, random: bool = False, generator: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose one frame in each of equal chunks: the middle one, or one at random.

    Args:
        num_frames: Frames there are, at least 1.
        count: T, frames to take.
        random: One at random from each chunk (for training).
        generator: Where randomness comes from; by default numpy's global state, which mm seeds for each worker.

    Returns:
        Indices (T,) int64, rising, and (T,) bool, False where a video of fewer than T frames repeats its last one.

    Raises:
        ValueError: A number is below 1.

    Source:
        Wang et al., "Temporal Segment Networks", ECCV 2016; as in CenterCLIP and CLIP4Clip.

    Example:
        >>> [part.tolist() for part in sample_frames(30, 3)]
        [[5, 15, 25], [True, True, True]]
        >>> [part.tolist() for part in sample_frames(2, 3)]
        [[0, 1, 1], [True, True, False]]
    """
    if num_frames < 1 or count < 1:
        raise ValueError(f'num_frames and count must be at least 1, got {num_frames} and {count}')
    if num_frames < count:
        place = np.arange(count)
        return np.minimum(place, num_frames - 1), place < num_frames
    edges = np.arange(count + 1) * num_frames // count
    if not random:
        indices = (edges[:-1] + edges[1:]) // 2
    else:
        draw = np.random.random if generator is None else generator.random
        indices = edges[:-1] + (draw(count) * np.diff(edges)).astype(np.int64)
    return indices.astype(np.int64), np.ones(count, bool)
