# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes from primitives, in plain numpy.

Local frame of every object: x forward, y left, z up, origin on the ground below the middle, meters. Builders return
open or overlapping surfaces freely: a lidar sees the first surface only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from clusterplug.datasets.lidar_city.scanner.materials import MATERIAL_ID


@dataclass
class Mesh:
    """A triangle soup with a material per triangle.

    Attributes:
        vertices: (V, 3) float64, meters.
        triangles: (T, 3) int64, rows of ``vertices``.
        material: (T,) int64, rows of the material table.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    material: np.ndarray

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0, scale: float = 1.0) -> Mesh:
        """The mesh scaled, turned by ``yaw`` (radians, counter-clockwise) and then shifted."""
        c, s = np.cos(yaw) * scale, np.sin(yaw) * scale
        turn = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, scale]])
        return Mesh(self.vertices @ turn + np.array([x, y, z]), self.triangles, self.material)


def merge(*meshes: Mesh) -> Mesh:
    """One mesh from several."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.triangles + start for mesh, start in zip(meshes, starts)]),
        np.concatenate([mesh.material for mesh in meshes]),
    )


def _mesh(vertices: np.ndarray, triangles: np.ndarray, material: str) -> Mesh:
    triangles = np.asarray(triangles, dtype=np.int64)
    return Mesh(np.asarray(vertices, dtype=np.float64), triangles, np.full(len(triangles), MATERIAL_ID[material]))


def quads(corners: np.ndarray, material: str) -> Mesh:
    """Quads from corners (Q, 4, 3) given around each quad."""
    corners = np.asarray(corners, dtype=np.float64).reshape(-1, 4, 3)
    first = 4 * np.arange(len(corners))[:, None]
    triangles = np.concatenate([first + [0, 1, 2], first + [0, 2, 3]])
    return _mesh(corners.reshape(-1, 3), triangles, material)


_BOX_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0.0, 1.0)])
_BOX_FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [1, 5, 7, 3], [0, 2, 6, 4]])


def box(size, at=(0.0, 0.0, 0.0), material: str = 'paint') -> Mesh:
    """A box of ``size`` (x, y, z) standing on ``at`` (the middle of its floor)."""
    return quads((_BOX_CORNERS * np.asarray(size) + np.asarray(at))[_BOX_FACES], material)


def boxes(sizes, ats, material: str) -> Mesh:
    """Many boxes at once: ``sizes`` and ``ats`` are (B, 3)."""
    sizes, ats = np.broadcast_arrays(np.asarray(sizes, dtype=np.float64), np.asarray(ats, dtype=np.float64))
    corners = _BOX_CORNERS[None] * sizes[:, None] + ats[:, None]
    return quads(corners[:, _BOX_FACES], material)


@cache
def _tube_triangles(rings: int, sides: int, capped: bool) -> np.ndarray:
    """Triangles of a tube over vertices numbered ring by ring: the walls, then both caps as fans."""
    here = np.arange(sides)
    after = np.roll(here, -1)
    start = sides * np.arange(rings - 1)[:, None]
    walls = np.stack([start + here, start + after, start + sides + after, start + sides + here], axis=-1).reshape(-1, 4)
    parts = [walls[:, [0, 1, 2]], walls[:, [0, 2, 3]]]
    if capped:
        spokes = np.arange(1, sides - 1)
        cap = np.stack([np.zeros_like(spokes), spokes, spokes + 1], axis=1)
        parts += [cap, cap + sides * (rings - 1)]
    return np.concatenate(parts)


@cache
def _circle(sides: int) -> tuple[np.ndarray, np.ndarray]:
    angle = 2 * np.pi * np.arange(sides) / sides
    return np.cos(angle)[:, None], np.sin(angle)[:, None]


def _across(along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors square to a direction; plain numbers, because a street has thousands of tubes."""
    x, y, z = along.tolist()
    length = math.sqrt(x * x + y * y + z * z)
    x, y, z = x / length, y / length, z / length
    if abs(z) > 0.8:  # x-y-z cross the x axis, else cross the z axis
        a, b, c = 0.0, z, -y
    else:
        a, b, c = y, -x, 0.0
    length = math.sqrt(a * a + b * b + c * c)
    a, b, c = a / length, b / length, c / length
    return np.array([a, b, c]), np.array([b * z - c * y, c * x - a * z, a * y - b * x])


def tube(points, radii, material: str, sides: int = 8, capped: bool = True) -> Mesh:
    """A round tube along ``points`` (P, 3) with one radius per point."""
    points = np.asarray(points, dtype=np.float64)
    count = len(points)
    radii = [float(radii)] * count if np.isscalar(radii) else [float(radius) for radius in radii]
    cos, sin = _circle(sides)
    vertices = np.empty((count, sides, 3))
    for index in range(count):
        along = points[min(index + 1, count - 1)] - points[max(index - 1, 0)]
        if index == 0 or count > 2:
            across, up = _across(along)
            ring = cos * across + sin * up
        vertices[index] = points[index] + radii[index] * ring
    return _mesh(vertices.reshape(-1, 3), _tube_triangles(count, sides, capped), material)


def fan(outline, material: str) -> Mesh:
    """A convex polygon with outline (P, 3)."""
    outline = np.asarray(outline, dtype=np.float64)
    spokes = np.arange(1, len(outline) - 1)
    return _mesh(outline, np.stack([np.zeros_like(spokes), spokes, spokes + 1], axis=1), material)


def disc(center, radius: float, material: str, sides: int = 12, phase: float = 0.0) -> Mesh:
    """A regular polygon in the y-z plane (it faces along x)."""
    angle = phase + 2 * np.pi * np.arange(sides) / sides
    outline = np.stack([np.zeros(sides), radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return fan(outline + np.asarray(center), material)


def wheel(at, radius: float, width: float, material: str = 'rubber', sides: int = 10) -> Mesh:
    """A wheel whose axle lies along y and whose hub is at ``at``."""
    half = np.array([0.0, width / 2, 0.0])
    return tube(np.stack([np.asarray(at) - half, np.asarray(at) + half]), radius, material, sides)


def ellipsoid(center, radii, material: str, rows: int = 5, sides: int = 8) -> Mesh:
    """An ellipsoid with half axes ``radii``."""
    polar = np.pi * np.arange(rows + 1) / rows
    angle = 2 * np.pi * np.arange(sides) / sides
    unit = np.stack(
        [
            np.sin(polar)[:, None] * np.cos(angle),
            np.sin(polar)[:, None] * np.sin(angle),
            np.repeat(np.cos(polar)[:, None], sides, axis=1),
        ],
        axis=-1,
    )
    grid = unit * np.asarray(radii) + np.asarray(center)
    following = np.roll(grid, -1, axis=1)
    return quads(np.stack([grid[:-1], following[:-1], following[1:], grid[1:]], axis=2), material)


@cache
def _loft_triangles(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of a loft of ``count`` four-cornered sections, and 0 (flank), 1 (top) or 2 (end) for each."""
    start = 4 * np.arange(count - 1)
    faces, kinds = [], []
    for a, b, kind in ((0, 1, 0), (1, 2, 0), (2, 3, 1), (3, 0, 0)):
        faces.append(np.stack([start + a, start + b, start + 4 + b, start + 4 + a], axis=1))
        kinds.append(np.full(count - 1, kind))
    faces.append(np.array([[0, 1, 2, 3], [4 * count - 4, 4 * count - 3, 4 * count - 2, 4 * count - 1]]))
    kinds.append(np.full(2, 2))
    faces, kinds = np.concatenate(faces), np.concatenate(kinds)
    return np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]]), np.tile(kinds, 2)


def loft(stations, sides: str = 'paint', top: str | None = None, ends: str | None = None) -> Mesh:
    """A hull through cross sections.

    Args:
        stations: (P, 5) rows ``x, half width below, half width above, z below, z above``.
        sides: material of the flanks (and the underside).
        top: material of the upper side; ``sides`` by default.
        ends: material of front and back; ``sides`` by default.
    """
    x, below, above, low, high = np.asarray(stations, dtype=np.float64).T
    ring = np.stack(
        [
            np.stack([x, -below, low], axis=1),
            np.stack([x, below, low], axis=1),
            np.stack([x, above, high], axis=1),
            np.stack([x, -above, high], axis=1),
        ],
        axis=1,
    )
    triangles, kinds = _loft_triangles(len(x))
    palette = np.array([MATERIAL_ID[sides], MATERIAL_ID[top or sides], MATERIAL_ID[ends or sides]])
    return Mesh(ring.reshape(-1, 3), triangles, palette[kinds])


def scatter(centers, size, rng: np.random.Generator, material: str, flat: float = 0.0) -> Mesh:
    """Randomly turned triangles (leaves, grass blades, needles) at ``centers`` (L, 3).

    Args:
        size: edge length in meters, a number or (L,).
        flat: 0 for any direction, towards 1 for leaves lying flat.
    """
    count = len(centers)
    turn = rng.normal(size=(count, 2, 3))
    turn[:, :, 2] *= 1.0 - flat
    first = turn[:, 0] / np.linalg.norm(turn[:, 0], axis=1, keepdims=True)
    second = turn[:, 1] - (turn[:, 1] * first).sum(axis=1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    size = np.broadcast_to(np.asarray(size, dtype=np.float64), count)[:, None]
    corners = np.stack([centers - 0.5 * size * first, centers + 0.5 * size * first, centers + 0.9 * size * second], 1)
    return _mesh(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), material)


def facade(columns: np.ndarray, rows: np.ndarray, depth: np.ndarray, opening: np.ndarray, wall: str, glass: str):
    """A wall in the x-z plane with recessed openings; it looks towards -y.

    Args:
        columns: (U + 1,) x of the vertical lines, ascending, meters.
        rows: (V + 1,) z of the horizontal lines, ascending, meters.
        depth: (U, V) how far a cell lies behind the wall (negative: in front, such as a balcony).
        opening: (U, V) bool, cells of ``glass``.
    """
    u0, u1 = np.broadcast_arrays(columns[:-1, None], depth)[0], np.broadcast_arrays(columns[1:, None], depth)[0]
    v0, v1 = np.broadcast_arrays(rows[None, :-1], depth)[0], np.broadcast_arrays(rows[None, 1:], depth)[0]

    def cells(pick):
        a, b, c, d, y = (value[pick] for value in (u0, u1, v0, v1, depth))
        return np.stack([np.stack(p, axis=1) for p in ((a, y, c), (b, y, c), (b, y, d), (a, y, d))], axis=1)

    parts = [quads(cells(~opening), wall)]
    if opening.any():
        parts.append(quads(cells(opening), glass))
    step = np.abs(np.diff(depth, axis=0)) > 1e-6
    if step.any():
        x, low, high, near, far = u1[:-1][step], v0[:-1][step], v1[:-1][step], depth[:-1][step], depth[1:][step]
        sides = ((x, near, low), (x, far, low), (x, far, high), (x, near, high))
        parts.append(quads(np.stack([np.stack(p, axis=1) for p in sides], axis=1), wall))
    step = np.abs(np.diff(depth, axis=1)) > 1e-6
    if step.any():
        z, left, right = v1[:, :-1][step], u0[:, :-1][step], u1[:, :-1][step]
        near, far = depth[:, :-1][step], depth[:, 1:][step]
        sills = ((left, near, z), (right, near, z), (right, far, z), (left, far, z))
        parts.append(quads(np.stack([np.stack(p, axis=1) for p in sills], axis=1), wall))
    return merge(*parts)
