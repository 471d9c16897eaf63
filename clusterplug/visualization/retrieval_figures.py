# SPDX-License-Identifier: Apache-2.0
"""Pictures of retrieval: kept tokens on frames, segment strips, sheets of answers, similarity maps."""

import os
from collections.abc import Sequence

import numpy as np

from clusterplug.visualization._figures import save_figure
from clusterplug.visualization._text import PLAIN, plain


def save_kept_tokens(
    path: str | os.PathLike,
    frames: np.ndarray,
    places: np.ndarray,
    grid: tuple[int, int],
    segments: Sequence[tuple[int, int]],
    title: str = '',
) -> None:
    """Draw the frames of a video, segment by segment, with all patches darkened that were not kept.

    Args:
        path: PNG to write, whole or not at all.
        frames: (T, H, W, 3) uint8.
        places: (S, K) kept tokens, frame * n + patch (``SegmentTokens.places``).
        grid: (rows, columns) of patches, n = rows * columns.
        segments: (first frame, frame behind the last) of each segment.
        title: Above all.

    Raises:
        ValueError: A shape does not fit the others.
        ModuleNotFoundError: matplotlib is missing.
    """
    frames, places = np.asarray(frames), np.asarray(places)
    number = grid[0] * grid[1]
    _check_frames(frames)
    if places.ndim != 2 or len(places) != len(segments) or places.min() < 0 or places.max() >= len(frames) * number:
        raise ValueError(
            f'places must have shape (segments, kept) = ({len(segments)}, K) with numbers below frames * patches = '
            f'{len(frames) * number}, got {places.shape}'
        )
    kept = np.zeros(len(frames) * number, bool)
    kept[places.ravel()] = True
    kept = kept.reshape(len(frames), *grid)
    columns = max(stop - first for first, stop in segments)
    figure, axes = _grid(len(segments), columns, 1.7, 1.9, title)
    for row, (first, stop) in enumerate(segments):
        for column in range(columns):
            axis = axes[row][column]
            axis.axis('off')
            if first + column >= stop:
                continue
            index = first + column
            axis.imshow(_darkened(frames[index], kept[index]))
            axis.set_title(f'frame {index}: {int(kept[index].sum())} of {number}', fontsize=8)
        style = dict(transform=axes[row][0].transAxes, rotation=90, va='center', ha='right', fontsize=9)
        axes[row][0].text(-0.06, 0.5, f'segment {row}', **style)
    figure.tight_layout()
    save_figure(figure, path)


def save_segment_strip(
    path: str | os.PathLike, frames: np.ndarray, segments: Sequence[tuple[int, int]], mask: np.ndarray | None = None
) -> None:
    """Draw all frames in one row with a colored bar under each segment; frames that only fill up are pale.

    Args:
        path: PNG to write.
        frames: (T, H, W, 3) uint8.
        segments: As :func:`save_kept_tokens`.
        mask: (T,) bool, True = a frame of the video.

    Raises:
        ValueError: A shape does not fit the others.
        ModuleNotFoundError: matplotlib is missing.
    """
    frames = np.asarray(frames)
    _check_frames(frames)
    if [i for first, stop in segments for i in range(first, stop)] != list(range(len(frames))):
        raise ValueError(f'segments must cover the {len(frames)} frames one after another, got {list(segments)}')
    mask = np.ones(len(frames), bool) if mask is None else np.asarray(mask, bool)
    figure, axes = _grid(1, len(frames), 1.15, 1.5, '')
    for segment, (first, stop) in enumerate(segments):
        for index in range(first, stop):
            axis = axes[0][index]
            axis.axis('off')
            axis.imshow(frames[index], alpha=1.0 if mask[index] else 0.25)
            color = f'C{segment % 10}' if mask[index] else '0.85'
            axis.plot([-0.02, 1.02], [-0.08, -0.08], color=color, lw=6, transform=axis.transAxes, clip_on=False)
            axis.set_title(str(index), fontsize=7)
        axes[0][first].text(0, -0.2, f'segment {segment}', transform=axes[0][first].transAxes, fontsize=8, va='top')
    figure.tight_layout()
    save_figure(figure, path)


def save_contact_sheet(
    path: str | os.PathLike,
    queries: Sequence[str],
    answers: Sequence[Sequence[tuple[str, float, np.ndarray]]],
    correct: Sequence[str | None] | None = None,
) -> None:
    """Draw the answers to each query in a row: picture, id, score; the right one with a green frame.

    Args:
        path: PNG to write.
        queries: Sentences.
        answers: For each query (video id, score, (H, W, 3) uint8 picture), best first.
        correct: The right video of each query, where it is known.

    Raises:
        ValueError: Not as many answers as queries, or a query without an answer.
        ModuleNotFoundError: matplotlib is missing.
    """
    if len(queries) != len(answers) or not len(queries) or any(not row for row in answers):
        raise ValueError(
            f'answers must hold at least one answer for each of the {len(queries)} queries, got '
            f'{[len(row) for row in answers]}'
        )
    correct = [None] * len(queries) if correct is None else correct
    figure, axes = _grid(len(queries), max(map(len, answers)), 2.0, 2.15, '')
    for row, (query, found, right) in enumerate(zip(queries, answers, correct)):
        for column, axis in enumerate(axes[row]):
            axis.set_xticks([])
            axis.set_yticks([])
            if column >= len(found):
                axis.axis('off')
                continue
            video_id, score, picture = found[column]
            axis.imshow(picture)
            hit = right is not None and video_id == right
            axis.set_xlabel(
                f'{plain(video_id, 18)}  {score:.3f}', fontsize=7.5, color='green' if hit else 'black', **PLAIN
            )
            for spine in axis.spines.values():
                spine.set_color('limegreen' if hit else '0.7')
                spine.set_linewidth(4 if hit else 0.8)
        axes[row][0].set_title(plain(query), fontsize=9, loc='left', pad=5, **PLAIN)
    figure.tight_layout()
    save_figure(figure, path)


def save_similarity_map(
    path: str | os.PathLike, scores: np.ndarray, title: str = 'cosine similarity', ranks: np.ndarray | None = None
) -> None:
    """Draw the scores of texts (rows) and videos (columns) as a heat map; the right pairs lie on the diagonal.

    Args:
        path: PNG to write.
        scores: (Q, G).
        title: Above.
        ranks: (Q,) ranks of the right videos; a histogram of them is drawn beside.

    Raises:
        ValueError: ``scores`` is no matrix, or ranks do not fit it.
        ModuleNotFoundError: matplotlib is missing.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f'scores must have shape (texts, videos), got {scores.shape}')
    if ranks is not None and np.shape(ranks) != (len(scores),):
        raise ValueError(f'ranks must have shape ({len(scores)},), got {np.shape(ranks)}')
    figure, axes = _grid(1, 1 if ranks is None else 2, 5.2, 4.6, '')
    image = axes[0][0].imshow(scores, cmap='viridis', aspect='auto', interpolation='nearest')
    axes[0][0].set(xlabel='video', ylabel='text')
    axes[0][0].set_title(plain(title), **PLAIN)
    figure.colorbar(image, ax=axes[0][0], fraction=0.046)
    if ranks is not None:
        ranks = np.asarray(ranks)
        edges = np.unique(np.round(np.geomspace(1, scores.shape[1] + 1, 24)))
        axes[0][1].hist(ranks, bins=edges, color='C0')
        axes[0][1].set_xscale('log')
        hits = ', '.join(f'R@{k} {100 * (ranks <= k).mean():.1f}' for k in (1, 5, 10))
        axes[0][1].set(xlabel='rank of the right video', ylabel='texts', title=hits)
    figure.tight_layout()
    save_figure(figure, path)


def _darkened(frame: np.ndarray, kept: np.ndarray) -> np.ndarray:
    rows = np.arange(frame.shape[0]) * kept.shape[0] // frame.shape[0]
    columns = np.arange(frame.shape[1]) * kept.shape[1] // frame.shape[1]
    visible = kept[rows][:, columns, None]
    return np.where(visible, frame, (0.18 * frame + 28).astype(np.uint8))


def _check_frames(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f'frames must be uint8 of shape (T, H, W, 3), got {frames.dtype} {frames.shape}')


def _grid(rows: int, columns: int, width: float, height: float, title: str):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width + 0.3, rows * height + (0.4 if title else 0.1)), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    if title:
        figure.suptitle(plain(title), fontsize=10, **PLAIN)
    return figure, axes
