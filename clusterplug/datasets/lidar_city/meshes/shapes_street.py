# SPDX-License-Identifier: Apache-2.0
"""Poles, traffic signs, fences and street furniture. Builders take a random generator; fronts face +x."""

from __future__ import annotations

import numpy as np

from clusterplug.datasets.lidar_city.meshes.mesh import Mesh, box, boxes, disc, ellipsoid, loft, merge, quads, tube


def street_lamp(rng: np.random.Generator) -> Mesh:
    """Tall tapered mast with an arm and a flat lamp (the arm reaches towards +x)."""
    height, reach = rng.uniform(6.5, 9.0), rng.uniform(0.8, 2.0)
    return merge(
        tube([[0, 0, 0], [0, 0, 1.1]], 0.11, 'steel', 8),
        tube([[0, 0, 1.0], [0, 0, height], [0.3, 0, height + 0.3]], [0.08, 0.05, 0.04], 'steel', 8),
        tube([[0.25, 0, height + 0.28], [reach, 0, height + 0.4]], 0.035, 'steel', 6),
        box([0.7, 0.25, 0.1], [reach + 0.3, 0, height + 0.33], 'steel'),
    )


def signal_mast(rng: np.random.Generator) -> Mesh:
    """Traffic light: short thick mast with two lamp housings."""
    height = rng.uniform(3.2, 3.8)
    return merge(
        tube([[0, 0, 0], [0, 0, height]], 0.075, 'steel', 8),
        box([0.28, 0.32, 0.95], [0.2, 0, height - 1.0], 'rubber'),
        box([0.34, 0.5, 0.02], [0.2, 0, height - 0.05], 'rubber'),
        box([0.26, 0.28, 0.65], [0.0, 0.22, 1.9], 'rubber'),
        box([0.12, 0.16, 0.25], [0.08, 0, 1.0], 'marking'),
    )


def bollard(rng: np.random.Generator) -> Mesh:
    """Knee-high post with a round head."""
    height, radius = rng.uniform(0.75, 1.05), rng.uniform(0.06, 0.11)
    return merge(
        tube([[0, 0, 0], [0, 0, height]], radius, 'steel', 8),
        ellipsoid([0, 0, height], [radius, radius, 0.06], 'steel', rows=3),
        tube([[0, 0, height * 0.7], [0, 0, height * 0.7 + 0.1]], radius + 0.005, 'plate', 8, capped=False),
    )


def utility_pole(rng: np.random.Generator) -> Mesh:
    """Wooden pole with a cross bar and insulators."""
    height = rng.uniform(7.5, 9.5)
    arms = np.linspace(-0.9, 0.9, 4)
    return merge(
        tube([[0, 0, 0], [0, 0, height]], [0.16, 0.1], 'wood', 8),
        box([0.1, 2.1, 0.12], [0.1, 0, height - 0.7], 'wood'),
        boxes([[0.06, 0.06, 0.18]], np.c_[np.full(4, 0.1), arms, np.full(4, height - 0.58)], 'plate'),
        box([0.3, 0.3, 0.6], [0.2, 0, height - 2.2], 'steel'),
    )


def sign_post(rng: np.random.Generator, height: float = 2.6) -> Mesh:
    """Thin straight pipe that carries a sign."""
    return tube([[0, 0, 0], [0, 0, height]], rng.uniform(0.03, 0.04), 'steel', 6)


def _two_sided(face: Mesh, back: Mesh) -> Mesh:
    return merge(face.moved(x=0.05), back.moved(x=0.035))


def round_sign(rng: np.random.Generator) -> Mesh:
    """Round sign of 60 to 70 cm, middle at the origin."""
    radius = rng.uniform(0.3, 0.36)
    return _two_sided(disc((0, 0, 0), radius, 'sign_face', 16), disc((0, 0, 0), radius, 'steel', 16))


def triangle_sign(rng: np.random.Generator) -> Mesh:
    """Warning (tip up) or give-way (tip down) triangle."""
    radius, phase = rng.uniform(0.46, 0.55), np.pi / 2 * (1 if rng.random() < 0.5 else -1)
    return _two_sided(disc((0, 0, 0), radius, 'sign_face', 3, phase), disc((0, 0, 0), radius, 'steel', 3, phase))


def octagon_sign(rng: np.random.Generator) -> Mesh:
    """Stop sign of about 90 cm."""
    radius = rng.uniform(0.44, 0.5)
    return _two_sided(
        disc((0, 0, 0), radius, 'sign_face', 8, np.pi / 8), disc((0, 0, 0), radius, 'steel', 8, np.pi / 8)
    )


def rectangle_sign(rng: np.random.Generator) -> Mesh:
    """Direction board, wider than high."""
    width, height = rng.uniform(1.0, 2.0), rng.uniform(0.6, 1.0)
    return merge(
        box([0.02, width, height], [0.05, 0, -height / 2], 'sign_face'),
        box([0.02, width, height], [0.03, 0, -height / 2], 'steel'),
    )


def _upright(corners: np.ndarray, material: str) -> Mesh:
    return quads(corners, material)


def picket(rng: np.random.Generator, length: float) -> Mesh:
    """Wooden slats with gaps on two rails; runs along x, middle at the origin."""
    height, pitch = rng.uniform(0.9, 1.3), rng.uniform(0.13, 0.18)
    x = np.arange(-length / 2 + 0.05, length / 2 - 0.05, pitch)
    heights = height + 0.03 * rng.standard_normal(len(x))
    low, left, right = np.full(len(x), 0.08), x - 0.045, x + 0.045
    y = np.zeros(len(x))
    slats = np.stack(
        [np.stack(p, 1) for p in ((left, y, low), (right, y, low), (right, y, heights), (left, y, heights))], 1
    )
    rails = boxes([[length, 0.04, 0.07]] * 2, [[0, 0.04, 0.3], [0, 0.04, height - 0.3]], 'wood')
    posts_x = np.arange(-length / 2, length / 2 + 0.1, 2.2)
    posts = boxes(
        [[0.09, 0.09, height + 0.05]], np.c_[posts_x, np.full(len(posts_x), 0.08), np.zeros(len(posts_x))], 'wood'
    )
    return merge(_upright(slats, 'wood'), rails, posts)


def chain_link(rng: np.random.Generator, length: float) -> Mesh:
    """Wire mesh between thin posts: most pulses pass through."""
    height, half = rng.uniform(1.5, 2.0), length / 2
    mesh = quads([[[-half, 0, 0.05], [half, 0, 0.05], [half, 0, height], [-half, 0, height]]], 'wire')
    posts_x = np.arange(-half, half + 0.1, 2.5)
    posts = [tube([[x, 0, 0], [x, 0, height + 0.05]], 0.03, 'steel', 6) for x in posts_x]
    return merge(mesh, *posts, tube([[-half, 0, height], [half, 0, height]], 0.02, 'steel', 4))


def masonry_wall(rng: np.random.Generator, length: float) -> Mesh:
    """Garden wall with piers and a coping."""
    height, half = rng.uniform(0.8, 1.9), length / 2
    material = str(rng.choice(['brick', 'stone', 'plaster']))
    piers_x = np.arange(-half, half + 0.1, 3.0)
    return merge(
        box([length, 0.24, height], material=material),
        box([length, 0.34, 0.08], [0, 0, height], 'concrete'),
        boxes([[0.4, 0.4, height + 0.15]], np.c_[piers_x, np.zeros((len(piers_x), 2))], material),
    )


def metal_rail(rng: np.random.Generator, length: float) -> Mesh:
    """Railing: two or three horizontal bars on posts."""
    height, half = rng.uniform(0.75, 1.1), length / 2
    bars = int(rng.integers(2, 4))
    levels = np.linspace(0.35, height, bars)
    posts_x = np.arange(-half, half + 0.1, 1.8)
    return merge(
        *[tube([[-half, 0, z], [half, 0, z]], 0.035, 'steel', 5) for z in levels],
        boxes([[0.07, 0.07, height]], np.c_[posts_x, np.zeros((len(posts_x), 2))], 'steel'),
    )


def litter_bin(rng: np.random.Generator) -> Mesh:
    """Wheeled dustbin."""
    height = rng.uniform(0.95, 1.2)
    return merge(
        loft([[-0.3, 0.24, 0.29, 0.05, height], [0.3, 0.24, 0.29, 0.05, height - 0.05]], 'cloth'),
        box([0.7, 0.62, 0.06], [0, 0, height], 'cloth'),
    )


def bench(rng: np.random.Generator) -> Mesh:
    """Park bench with a back rest."""
    width = rng.uniform(1.5, 2.0)
    return merge(
        box([0.45, width, 0.06], [0, 0, 0.42], 'wood'),
        box([0.06, width, 0.4], [-0.25, 0, 0.5], 'wood'),
        boxes([[0.4, 0.08, 0.42]] * 2, [[0, -width / 2 + 0.2, 0], [0, width / 2 - 0.2, 0]], 'steel'),
    )


def cabinet(rng: np.random.Generator) -> Mesh:
    """Gray switch box."""
    return box([rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.4), rng.uniform(1.0, 1.5)], material='steel')
