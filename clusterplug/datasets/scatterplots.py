# SPDX-License-Identifier: Apache-2.0
"""Generated scatterplots of blobs, curves and shapes that may touch, with raters who disagree where they do."""

from typing import NamedTuple

import numpy as np

from clusterplug.core.checks import check_choice, check_count

__all__ = ['FAMILIES', 'Scatterplot', 'make_scatterplot']

FAMILIES = ('blobs', 'moons', 'circles', 'curves', 'many', 'touching', 'shapes')


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
            ``'many'``: 5 to 8 blobs. ``'touching'``: 2 to 6 long or round blobs of very different density, each 1.6 to
            3.5 joint deviations from its nearest, so tails overlap. ``'shapes'``: 1 to 6 discs, bars, lines, arcs,
            rings and blobs of any size with 0.04 to 0.2 of the plot between them, in every second plot with up to 8 %
            of points in between, which are labeled as their nearest shape.
        num_points: N, at least 8.
        num_raters: R raters. Each joins blobs whose gap, in deviations, is below a threshold of its own (1.5 to 4.5;
            of touching blobs 1.2 to 2.2), sees one cluster in the other families with probability 0.05, and moves one
            point in fifty at random.
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
    gaps, joining = None, (1.5, 4.5)
    if family in ('blobs', 'many'):
        points, labels, gaps = _blobs(rng, num_points, *((1, 5) if family == 'blobs' else (5, 8)))
    elif family == 'touching':
        (points, labels, gaps), joining = _touching(rng, num_points), (1.2, 2.2)
    else:
        draw = {'moons': _moons, 'circles': _circles, 'curves': _curves, 'shapes': _shapes}[family]
        points, labels = draw(rng, num_points)
    angle, order = rng.uniform(0, 2 * np.pi), rng.permutation(num_points)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    labels = labels[order]
    raters = [_rate(rng, labels, gaps, joining) for _ in range(num_raters)]
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


def _touching(rng, num_points):
    """Gaussians that grow from each other: distances in deviations along the line between two centers."""
    number, means, factors = int(rng.integers(2, 7)), [np.zeros(2)], []
    for _ in range(number):
        angle, size, long = rng.uniform(0, np.pi), rng.uniform(0.5, 1.5), rng.uniform(1, 4)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        factors.append(turn * (size * np.array([np.sqrt(long), 1 / np.sqrt(long)])))
    for label in range(1, number):
        for _ in range(64):
            other, angle = int(rng.integers(label)), rng.uniform(0, 2 * np.pi)
            way = np.array([np.cos(angle), np.sin(angle)])
            reach = sum(np.linalg.norm(way @ factors[each]) for each in (label, other))
            means.append(means[other] + way * reach * rng.uniform(1.6, 3.5))
            if all(_gap(means, factors, label, each) >= 1.6 for each in range(label)):
                break
            means.pop()
        else:  # no room: the ones there are
            factors = factors[:label]
            break
    number, points, labels = len(means), [], []
    for label, count in enumerate(_sizes(rng, num_points, number)):
        points.append(means[label] + rng.standard_normal((count, 2)) @ factors[label].T)
        labels += [label] * count
    gaps = np.array([[_gap(means, factors, one, other) for other in range(number)] for one in range(number)])
    return np.concatenate(points), np.array(labels), gaps


def _gap(means, factors, one, other):
    way = means[one] - means[other]
    distance = np.linalg.norm(way)
    if distance == 0:
        return 0.0
    return distance / sum(np.linalg.norm(way / distance @ factors[each]) for each in (one, other))


def _shapes(rng, num_points):
    number, strays = int(rng.integers(1, 7)), int(num_points * rng.choice([0, rng.uniform(0, 0.08)]))
    gap, points, labels = rng.uniform(0.04, 0.2), np.empty((0, 2)), []
    for label, count in enumerate(_sizes(rng, num_points - strays, number)):
        for trial in range(64):  # farther out with every trial
            shape = _shape(rng, count) + rng.uniform(-0.5, 0.5, 2) * (1 + trial / 16)
            distances = np.linalg.norm(shape[:, None] - points[None], axis=-1)
            if not len(points) or distances.min() >= gap:
                break
        else:
            shape = shape + np.array([points[:, 0].max() - shape[:, 0].min() + gap, 0])
        points, labels = np.concatenate([points, shape]), labels + [label] * count
    if strays:
        between = rng.uniform(points.min(0), points.max(0), (strays, 2))
        nearest = np.linalg.norm(between[:, None] - points[None], axis=-1).argmin(1)
        points, labels = np.concatenate([points, between]), labels + np.array(labels)[nearest].tolist()
    return points, np.array(labels)


def _shape(rng, count):
    kind = rng.choice(['blob', 'disc', 'bar', 'line', 'arc', 'ring'])
    size, angle = rng.uniform(0.08, 0.35), rng.uniform(0, 2 * np.pi)
    if kind == 'blob':
        points = rng.standard_normal((count, 2)) * rng.uniform(0.15, 0.5, 2)
    elif kind in ('disc', 'arc', 'ring'):
        turn = rng.uniform(0, 2 * np.pi if kind != 'arc' else rng.uniform(1.5, 4.5), count)
        radius = np.sqrt(rng.uniform(0, 1, count)) if kind == 'disc' else 1 + 0.05 * rng.standard_normal(count)
        points = radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    else:
        points = rng.uniform(-1, 1, (count, 2)) * [1, rng.uniform(0.3, 1) if kind == 'bar' else 0.05]
    return size * points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


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


def _rate(rng, labels, gaps, joining):
    number = int(labels.max()) + 1
    parent = np.arange(number)
    if gaps is None:
        parent = np.zeros(number, int) if rng.random() < 0.05 else parent
    else:
        near = gaps < rng.uniform(*joining)
        for _ in range(number):  # the least label spreads over all that are joined
            parent = np.where(near, parent[None], number).min(1)
    rated = parent[labels]
    moved = rng.random(len(labels)) < 0.02
    return np.where(moved, rated[rng.integers(0, len(labels), len(labels))], rated)
