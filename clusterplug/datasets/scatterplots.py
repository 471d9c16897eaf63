# SPDX-License-Identifier: Apache-2.0
"""Generated scatterplots of blobs, moons and rings, with raters who disagree about clusters that nearly touch."""

from typing import NamedTuple

import numpy as np

from clusterplug.core.checks import check_choice, check_count

__all__ = ['FAMILIES', 'Scatterplot', 'make_scatterplot']

FAMILIES = ('blobs', 'moons', 'circles', 'curves', 'many')


class Scatterplot(NamedTuple):
    """One generated plot."""

    points: np.ndarray  # (N, 2) float64, of no particular unit
    labels: np.ndarray  # (N,) int64 clusters as generated
    raters: np.ndarray  # (R, N) int64 clusters as raters would draw them


def make_scatterplot(
    family: str, num_points: int = 64, num_raters: int = 0, rng: np.random.Generator | int = 0
) -> Scatterplot:
    """Draw one plot, turned by a random angle, in a random order of its points.

    Args:
        family: ``'blobs'``: 1 to 5 Gaussians of different shape (centers more than 0.32 apart, deviations 0.02 to
            0.07). ``'moons'``: two half rings that reach into each other (noise 0.05). ``'circles'``: a disc in a ring
            (radius 0.15 to 0.35 of the ring's, noise 0.05). ``'curves'``: 1 to 3 arcs and lines, side by side.
            ``'many'``: 5 to 8 blobs.
        num_points: N, at least 8.
        num_raters: R raters. Each joins blobs whose gap, in deviations, is below a threshold of its own (1.5 to 4.5),
            sees one cluster in moons, circles and curves with probability 0.05, and moves one point in fifty at random.
        rng: Generator or seed.

    Raises:
        TypeError, ValueError: An argument is out of its range.

    Example:
        >>> make_scatterplot('moons', 20).points.shape
        (20, 2)
    """
    check_choice(family, 'family', FAMILIES)
    num_points, num_raters = check_count(num_points, 'num_points', 8), check_count(num_raters, 'num_raters')
    rng = np.random.default_rng(rng)
    gaps = None
    if family in ('blobs', 'many'):
        points, labels, gaps = _blobs(rng, num_points, *((1, 5) if family == 'blobs' else (5, 8)))
    else:
        points, labels = {'moons': _moons, 'circles': _circles, 'curves': _curves}[family](rng, num_points)
    angle, order = rng.uniform(0, 2 * np.pi), rng.permutation(num_points)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    labels = labels[order]
    raters = [_rate(rng, labels, gaps) for _ in range(num_raters)]
    return Scatterplot(points[order] @ turn.T, labels, np.array(raters, dtype=np.int64).reshape(num_raters, num_points))


def _sizes(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """Random sizes of at least a third of an equal share."""
    shares = rng.dirichlet(np.full(parts, 4.0)) * 2 / 3 + 1 / (3 * parts)
    edges = np.rint(np.cumsum(shares) * total).astype(int)
    return np.diff(np.concatenate([[0], edges[:-1], [total]]))


def _blobs(rng, num_points, least, most):
    number = int(rng.integers(least, most + 1))
    apart, largest = (0.32, 0.07) if most <= 5 else (0.26, 0.05)
    centers = np.empty((0, 2))
    while len(centers) < number:
        candidates = rng.uniform(0, 1, (64, 2))
        centers = np.empty((0, 2))
        for candidate in candidates:
            if len(centers) < number and (np.linalg.norm(centers - candidate, axis=1) > apart).all():
                centers = np.vstack([centers, candidate])
    spreads = rng.uniform(0.02, largest, (number, 2))
    points, labels = [], []
    for label, count in enumerate(_sizes(rng, num_points, number)):
        angle = rng.uniform(0, np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points.append(centers[label] + (rng.standard_normal((count, 2)) * spreads[label]) @ turn.T)
        labels += [label] * count
    mean = spreads.mean(1)
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    return np.concatenate(points), np.array(labels), distances / (mean[:, None] + mean[None])


def _moons(rng, num_points):
    first = num_points // 2
    angles = np.pi * np.concatenate([rng.uniform(0, 1, first), rng.uniform(0, 1, num_points - first)])
    labels = (np.arange(num_points) >= first).astype(int)
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    points[labels == 1] = [1, 0.5] - points[labels == 1]
    return points + 0.05 * rng.standard_normal(points.shape), labels


def _circles(rng, num_points):
    first = num_points // 3
    labels = (np.arange(num_points) >= first).astype(int)
    radius = np.where(labels == 0, rng.uniform(0.15, 0.35) * np.sqrt(rng.uniform(0, 1, num_points)), 1.0)
    angles = rng.uniform(0, 2 * np.pi, num_points)
    points = radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return points + 0.05 * rng.standard_normal(points.shape), labels


def _curves(rng, num_points):
    number, points, labels = int(rng.integers(1, 4)), [], []
    bend, length, gap = rng.uniform(0, 1.5), rng.uniform(0.6, 1.4), rng.uniform(0.3, 0.5)
    for label, count in enumerate(_sizes(rng, num_points, number)):
        t = rng.uniform(-length, length, count)
        points.append(np.stack([t, bend * t**2 / length + gap * label], 1) + 0.04 * rng.standard_normal((count, 2)))
        labels += [label] * count
    return np.concatenate(points), np.array(labels)


def _rate(rng, labels, gaps):
    number = int(labels.max()) + 1
    parent = np.arange(number)
    if gaps is None:
        parent = np.zeros(number, int) if rng.random() < 0.05 else parent
    else:
        near = gaps < rng.uniform(1.5, 4.5)
        for _ in range(number):  # the least label spreads over all that are joined
            parent = np.where(near, parent[None], number).min(1)
    rated = parent[labels]
    moved = rng.random(len(labels)) < 0.02
    return np.where(moved, rated[rng.integers(0, len(labels), len(labels))], rated)
