# SPDX-License-Identifier: Apache-2.0
"""Trees, bushes and hedges. Trunk and crown are separate meshes: they are separate classes."""

from __future__ import annotations

import numpy as np

from clusterplug.datasets.lidar_city.meshes.mesh import Mesh, boxes, merge, scatter, tube


def _in_ball(count: int, rng: np.random.Generator) -> np.ndarray:
    """Points spread over the outer part of a unit ball: leaves sit outside."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * rng.uniform(0.15, 1.0, (count, 1)) ** (1.0 / 3.0)


def slim_trunk(rng: np.random.Generator, height: float) -> Mesh:
    """Young straight stem."""
    radius = rng.uniform(0.07, 0.12)
    return tube([[0, 0, 0], [0, 0, height]], [radius, radius * 0.75], 'bark', 8)


def thick_trunk(rng: np.random.Generator, height: float) -> Mesh:
    """Old stem with a flare at the roots."""
    radius = rng.uniform(0.25, 0.42)
    sway = rng.normal(0.0, 0.04, 2)
    points = [[0, 0, 0], [0, 0, 0.5], [sway[0], sway[1], height * 0.6], [sway[0], sway[1], height]]
    return tube(points, [radius * 1.6, radius, radius * 0.85, radius * 0.75], 'bark', 10)


def forked_trunk(rng: np.random.Generator, height: float) -> Mesh:
    """A stem that splits into three close to the ground."""
    radius, fork = rng.uniform(0.12, 0.2), height * rng.uniform(0.2, 0.35)
    parts = [tube([[0, 0, 0], [0, 0, fork]], [radius * 1.2, radius], 'bark', 8)]
    for angle in rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3:
        reach = rng.uniform(0.35, 0.6)
        tip = [reach * np.cos(angle), reach * np.sin(angle), height]
        parts.append(tube([[0, 0, fork], tip], [radius * 0.75, radius * 0.5], 'bark', 7))
    return merge(*parts)


def leaning_trunk(rng: np.random.Generator, height: float) -> Mesh:
    """A pale stem (birch) that leans and bends."""
    angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.22) * height
    aside = np.array([np.cos(angle), np.sin(angle), 0.0])
    points = [aside * lean * t**1.6 + np.array([0, 0, height * t]) for t in (0.0, 0.35, 0.7, 1.0)]
    radius = rng.uniform(0.1, 0.16)
    return tube(points, np.linspace(radius, radius * 0.7, 4), 'birch_bark', 8)


def broadleaf_crown(rng: np.random.Generator, base: float, detail: float = 1.0) -> Mesh:
    """Round crown of leaf clumps; ``base`` is the height of the first branches.

    ``detail`` below 1 makes fewer, larger leaves of the same total area (for trees far away)."""
    radius, height = rng.uniform(1.6, 3.0), rng.uniform(3.0, 5.5)
    clumps = int(rng.integers(9, 15))
    middle = _in_ball(clumps, rng) * [radius * 0.75, radius * 0.75, height / 2 * 0.8]
    count = int(62 * radius * height * detail)
    owner = rng.integers(0, clumps, count)
    leaves = middle[owner] + _in_ball(count, rng) * (0.42 * radius)
    branches = [
        tube([[0, 0, -height / 2 - 0.1], m * [0.8, 0.8, 0.8]], [0.06, 0.025], 'bark', 4, capped=False)
        for m in middle[: clumps // 2]
    ]
    return merge(scatter(leaves, rng.uniform(0.22, 0.4, count) / np.sqrt(detail), rng, 'leaf', 0.3), *branches).moved(
        z=base + height / 2
    )


def conifer_crown(rng: np.random.Generator, base: float, detail: float = 1.0) -> Mesh:
    """Cone of drooping tiers; ``detail`` as for :func:`broadleaf_crown`."""
    radius, height = rng.uniform(1.2, 2.2), rng.uniform(5.0, 9.0)
    count = int(75 * radius * height * detail)
    level = 1.0 - np.sqrt(rng.uniform(0, 1, count))
    tier = (level * 9) % 1.0
    spread = radius * (1.0 - level) * (0.62 + 0.38 * (1.0 - tier))
    angle, out = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.35, 1.0, count) ** 0.5
    needles = np.stack([spread * out * np.cos(angle), spread * out * np.sin(angle), level * height], axis=1)
    stem = tube([[0, 0, 0], [0, 0, height]], [0.1, 0.02], 'bark', 5, capped=False)
    return merge(scatter(needles, rng.uniform(0.2, 0.36, count) / np.sqrt(detail), rng, 'needle', 0.6), stem).moved(
        z=base
    )


def bush(rng: np.random.Generator) -> Mesh:
    """Low irregular shrub down to the ground."""
    radius, height = rng.uniform(0.6, 1.4), rng.uniform(0.8, 2.0)
    count = int(330 * radius * height)
    points = _in_ball(count, rng) * [radius, radius * rng.uniform(0.7, 1.1), height * 0.55]
    points[:, 2] = np.abs(points[:, 2] + height * 0.45)
    points[:, :2] *= 1.0 + 0.25 * np.sin(5 * np.arctan2(points[:, 1], points[:, 0]))[:, None]
    return scatter(points, rng.uniform(0.1, 0.2, count), rng, 'twig')


def hedge(rng: np.random.Generator, length: float) -> Mesh:
    """Clipped hedge: a dense leafy block along x."""
    height, width = rng.uniform(1.0, 2.3), rng.uniform(0.6, 1.1)
    core = boxes([[length - 0.2, width - 0.35, height - 0.2]], [[0, 0, 0.0]], 'twig')
    area = length * (2 * height + width)
    count = int(28 * area)
    side = rng.uniform(0, 2 * height + width, count)
    x = rng.uniform(-length / 2, length / 2, count)
    y = np.where(side < height, -width / 2, np.where(side < 2 * height, width / 2, side - 2 * height - width / 2))
    z = np.where(side < height, side, np.where(side < 2 * height, side - height, height))
    shell = np.stack([x, y, z], axis=1) + rng.normal(0, 0.09, (count, 3))
    shell[:, 2] = np.abs(shell[:, 2])
    return merge(core, scatter(shell, rng.uniform(0.08, 0.16, count), rng, 'leaf'))
