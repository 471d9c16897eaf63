# SPDX-License-Identifier: Apache-2.0
"""Buildings. The front looks towards -y, its foot line is the x axis, the body extends to +y."""

from __future__ import annotations

import numpy as np

from clusterplug.datasets.lidar_city.meshes.mesh import Mesh, boxes, facade, merge, quads

FOOT = -0.8  # walls start below the ground so that no slope opens a gap


def _front(width: float, floors: int, floor_height: float, bays: int, wall: str, glass: str, **form) -> Mesh:
    """A wall with a regular grid of windows.

    Args:
        form: ``window`` (share of a bay's width), ``sill`` and ``head`` (shares of a floor's height), ``recess``
            (meters) and ``ground`` (glass share of a shop's ground floor, 0 for none).
    """
    window, sill, head, recess = form['window'], form['sill'], form['head'], form['recess']
    bay = width / bays
    middles = -width / 2 + bay * (np.arange(bays) + 0.5)
    columns = np.concatenate(
        [[-width / 2], np.stack([middles - bay * window / 2, middles + bay * window / 2], axis=1).ravel(), [width / 2]]
    )
    levels = floor_height * np.arange(floors)[:, None]
    rows = np.concatenate([[FOOT], (levels + floor_height * np.array([[sill, head]])).ravel(), [floors * floor_height]])
    opening = np.zeros((len(columns) - 1, len(rows) - 1), dtype=bool)
    opening[1::2, 1::2] = True
    depth = np.where(opening, recess, 0.0)
    return facade(columns, rows, depth, opening, wall, glass)


def _block(front: Mesh, side: Mesh, width: float, depth: float, height: float, wall: str, roof: str) -> Mesh:
    """Front, two flanks like ``side``, a plain back and a flat roof."""
    left = side.moved(x=-width / 2, y=depth / 2, yaw=-np.pi / 2)
    right = side.moved(x=width / 2, y=depth / 2, yaw=np.pi / 2)
    w, d = width / 2, depth
    back = quads([[[-w, d, FOOT], [w, d, FOOT], [w, d, height], [-w, d, height]]], wall)
    top = quads([[[-w, 0, height], [w, 0, height], [w, d, height], [-w, d, height]]], roof)
    return merge(front, left, right, back, top)


def _gable_roof(width: float, depth: float, eaves: float, rise: float, wall: str) -> Mesh:
    w, d, over = width / 2, depth, 0.4
    drop = rise * over / (d / 2)
    ridge = eaves + rise
    slopes = quads(
        [
            [
                [-w - over, -over, eaves - drop],
                [w + over, -over, eaves - drop],
                [w + over, d / 2, ridge],
                [-w - over, d / 2, ridge],
            ],
            [
                [-w - over, d + over, eaves - drop],
                [w + over, d + over, eaves - drop],
                [w + over, d / 2, ridge],
                [-w - over, d / 2, ridge],
            ],
        ],
        'roof_tile',
    )
    gables = quads([[[x, 0, eaves], [x, d, eaves], [x, d / 2, ridge], [x, d / 2, ridge]] for x in (-w, w)], wall)
    return merge(slopes, gables)


def gabled_house(rng: np.random.Generator, width: float, depth: float) -> Mesh:
    """Detached house: small windows, pitched roof, chimney."""
    floors, wall = int(rng.integers(1, 3)), str(rng.choice(['brick', 'plaster', 'wood']))
    height = 2.8 * floors + 0.4
    form = {'window': 0.42, 'sill': 0.35, 'head': 0.8, 'recess': 0.12}
    front = _front(width, floors, height / floors, max(2, int(width / 3)), wall, 'window', **form)
    side = _front(depth, floors, height / floors, max(2, int(depth / 4)), wall, 'window', **form)
    rise = rng.uniform(2.2, 4.0)
    chimney = boxes([[0.6, 0.6, rise + 1.2]], [[width * rng.uniform(-0.3, 0.3), depth * 0.6, height]], 'brick')
    porch = boxes([[1.6, 1.0, 0.15], [1.2, 0.06, 2.1]], [[0, -0.4, 2.35], [0, -0.03, 0.0]], 'wood')
    house = _block(front, side, width, depth, height, wall, 'roof_tile')
    return merge(house, _gable_roof(width, depth, height, rise, wall), chimney, porch)


def apartment_block(rng: np.random.Generator, width: float, depth: float) -> Mesh:
    """Several floors of flats with balconies in front."""
    floors, bays = int(rng.integers(3, 7)), max(3, int(width / 3.4))
    height = 2.9 * floors
    form = {'window': 0.5, 'sill': 0.3, 'head': 0.82, 'recess': 0.18}
    front = _front(width, floors, 2.9, bays, 'plaster', 'window', **form)
    side = _front(depth, floors, 2.9, 3, 'plaster', 'window', **form)
    middles = -width / 2 + width / bays * (np.arange(bays) + 0.5)
    spots = [(x, 2.9 * f) for x in middles[:: int(rng.integers(1, 3))] for f in range(1, floors)]
    x, z = np.array(spots).T
    floor = boxes([[width / bays * 0.85, 1.3, 0.18]], np.stack([x, np.full_like(x, -0.65), z - 0.1], 1), 'concrete')
    rail = boxes([[width / bays * 0.85, 0.06, 0.95]], np.stack([x, np.full_like(x, -1.28), z + 0.05], 1), 'plaster')
    return merge(_block(front, side, width, depth, height, 'plaster', 'concrete'), floor, rail)


def glass_office(rng: np.random.Generator, width: float, depth: float) -> Mesh:
    """Curtain wall: wide glass bands between slim slabs and fins."""
    floors, bays = int(rng.integers(4, 8)), max(4, int(width / 2.2))
    height = 3.4 * floors
    form = {'window': 0.9, 'sill': 0.12, 'head': 0.92, 'recess': 0.08}
    front = _front(width, floors, 3.4, bays, 'steel', 'window', **form)
    side = _front(depth, floors, 3.4, max(3, int(depth / 2.2)), 'steel', 'window', **form)
    fins_x = np.linspace(-width / 2, width / 2, bays + 1)
    fins = boxes([[0.12, 0.35, height]], np.c_[fins_x, np.full(bays + 1, -0.15), np.zeros(bays + 1)], 'steel')
    canopy = boxes([[5.0, 2.2, 0.25]], [[0, -1.0, 3.2]], 'concrete')
    return merge(_block(front, side, width, depth, height, 'concrete', 'concrete'), fins, canopy)


def shop(rng: np.random.Generator, width: float, depth: float) -> Mesh:
    """Terraced house with large shop windows and awnings at the ground floor."""
    floors, bays = int(rng.integers(2, 5)), max(2, int(width / 4.5))
    wall = str(rng.choice(['stone', 'brick', 'plaster']))
    height = 3.6 + 3.1 * (floors - 1)
    ground = _front(width, 1, 3.6, bays, 'stone', 'window', window=0.82, sill=0.1, head=0.8, recess=0.45)
    form = {'window': 0.36, 'sill': 0.28, 'head': 0.85, 'recess': 0.2}
    upper = _front(width, floors - 1, 3.1, bays * 2, wall, 'window', **form).moved(z=3.6)
    side = _front(depth, floors, height / floors, 3, wall, 'window', **form)
    cornice = boxes([[width, 0.35, 0.3]], [[0, -0.15, 3.5]], 'stone')
    w = width / bays
    middles = -width / 2 + w * (np.arange(bays) + 0.5)
    awnings = quads(
        [
            [[x - 0.4 * w, -0.05, 3.1], [x + 0.4 * w, -0.05, 3.1], [x + 0.4 * w, -1.4, 2.5], [x - 0.4 * w, -1.4, 2.5]]
            for x in middles
        ],
        'cloth',
    )
    body = _block(merge(ground, upper), side, width, depth, height, wall, 'concrete')
    return merge(body, cornice, awnings, _gable_roof(width, depth, height, rng.uniform(2.0, 3.5), wall))


def garage(rng: np.random.Generator, width: float, depth: float) -> Mesh:
    """Low flat building with recessed gates."""
    height, bays = rng.uniform(2.5, 3.2), max(1, int(width / 3.0))
    form = {'window': 0.86, 'sill': 0.0, 'head': 0.8, 'recess': 0.25}
    front = _front(width, 1, height, bays, 'concrete', 'steel', **form)
    side = _front(depth, 1, height, 1, 'concrete', 'steel', window=0.1, sill=0.6, head=0.8, recess=0.05)
    parapet = boxes([[width + 0.3, 0.3, 0.25]], [[0, -0.1, height]], 'concrete')
    return merge(_block(front, side, width, depth, height, 'concrete', 'concrete'), parapet)
