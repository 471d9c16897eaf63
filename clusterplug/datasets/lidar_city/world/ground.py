# SPDX-License-Identifier: Apache-2.0
"""The street's course and the ground: patches of road, sidewalk, parking and terrain with curbs between them.

Places are given in street coordinates: ``s`` meters along the center line, ``d`` meters to its left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clusterplug.datasets.lidar_city.meshes.mesh import Mesh, merge, quads

HALF_WIDTH = 62.0  # how far the ground reaches to either side, meters
NO_MARKING, LANES, CROSS_LANES, ZEBRA, BAYS = range(5)


class Course:
    """A gently winding center line on rolling ground.

    Args:
        rng: source of the course's shape.
        start, end: range of ``s``, meters.
    """

    def __init__(self, rng: np.random.Generator, start: float, end: float):
        self.start, self.end = start, end
        self._s = np.arange(start - 2.0, end + 2.5, 0.5)
        wave = 2 * np.pi / rng.uniform(180.0, 320.0)
        swing, phase = rng.uniform(0.05, 0.25), rng.uniform(0, 2 * np.pi)
        self._heading = rng.uniform(-np.pi, np.pi) + swing * np.sin(wave * self._s + phase)
        self._x = np.concatenate([[0.0], np.cumsum(0.5 * np.cos(self._heading[:-1]))])
        self._y = np.concatenate([[0.0], np.cumsum(0.5 * np.sin(self._heading[:-1]))])
        self._hills = [
            (2 * np.pi / rng.uniform(low, high), rng.uniform(-0.5, 0.5), rng.uniform(0, 2 * np.pi), height)
            for low, high, height in ((120.0, 260.0, 0.9), (40.0, 80.0, 0.18), (14.0, 30.0, 0.04))
        ]
        self._bumps = [(rng.normal(size=2) * 2 * np.pi / length, rng.uniform(0, 6.28)) for length in (7.0, 4.0, 2.5)]

    def heading(self, s) -> np.ndarray:
        """Direction of the street at ``s``, radians."""
        return np.interp(s, self._s, self._heading)

    def place(self, s, d) -> tuple[np.ndarray, np.ndarray]:
        """World x and y of street coordinates."""
        heading = self.heading(s)
        x = np.interp(s, self._s, self._x) - np.asarray(d) * np.sin(heading)
        y = np.interp(s, self._s, self._y) + np.asarray(d) * np.cos(heading)
        return x, y

    def height(self, s, d) -> np.ndarray:
        """Rolling ground without curbs: hills along the street, a crowned road."""
        s, d = np.broadcast_arrays(np.asarray(s, dtype=np.float64), np.asarray(d, dtype=np.float64))
        total = -0.02 * np.minimum(np.abs(d), 4.0)
        for wave, slant, phase, height in self._hills:
            total = total + height * np.sin(wave * (s + slant * d) + phase)
        return total

    def bumps(self, s, d) -> np.ndarray:
        """Unevenness of about unit size with wavelengths of a few meters."""
        return sum(np.sin(wave[0] * s + wave[1] * d + phase) for wave, phase in self._bumps) / 2.0


@dataclass
class Patch:
    """A rectangle of ground in street coordinates; later patches cover earlier ones.

    Attributes:
        s0, s1, d0, d1: extent, meters.
        class_name, subtype: what it is.
        material: name of its surface.
        lift: height above the rolling ground, meters (0.13 for a sidewalk).
        bump: size of its unevenness, meters.
        rise: slope away from the street, meters a meter (embankments).
        marking: kind of paint on it, one of the constants of this module.
        marking_width: half width of the road, or pitch of the bays, meters.
        marking_origin: ``s`` or ``d`` that the paint starts from.
        instance, paint_instance: instance ids, given when the street is put together.
    """

    s0: float
    s1: float
    d0: float
    d1: float
    class_name: str
    subtype: str
    material: str
    lift: float = 0.0
    bump: float = 0.01
    rise: float = 0.0
    marking: int = NO_MARKING
    marking_width: float = 0.0
    marking_origin: float = 0.0
    instance: int = 0
    paint_instance: int = 0


def _lines(edges: np.ndarray, regular: np.ndarray) -> np.ndarray:
    """Sorted grid lines: every edge, and the regular lines that are not closer than 0.3 m to an edge."""
    edges = np.unique(np.round(edges, 4))
    distance = np.abs(regular[:, None] - edges[None]).min(axis=1)
    return np.union1d(edges, regular[distance > 0.3])


class Ground:
    """The ground as one mesh.

    Attributes:
        mesh: triangles of all patches and of the steps (curbs) between them.
        patch: (T,) the patch that a triangle belongs to.
        street_coordinates: (V, 2) ``s`` and ``d`` of every vertex.
    """

    def __init__(self, course: Course, patches: list[Patch]):
        self.course, self.patches = course, patches
        s_edges = np.clip(np.array([[p.s0, p.s1] for p in patches]).ravel(), course.start, course.end)
        d_edges = np.clip(np.array([[p.d0, p.d1] for p in patches]).ravel(), -HALF_WIDTH, HALF_WIDTH)
        near, far = np.arange(-15.0, 15.5, 1.0), np.arange(18.0, HALF_WIDTH, 3.5)
        self.s = _lines(s_edges, np.arange(course.start, course.end, 1.5))
        self.d = _lines(d_edges, np.concatenate([-far, near, far]))
        middle_s, middle_d = (self.s[:-1] + self.s[1:]) / 2, (self.d[:-1] + self.d[1:]) / 2
        self.owner = np.zeros((len(middle_s), len(middle_d)), dtype=np.int64)
        for index, p in enumerate(patches):
            rows = slice(*np.searchsorted(middle_s, [p.s0, p.s1]))
            self.owner[rows, slice(*np.searchsorted(middle_d, [p.d0, p.d1]))] = index
        self._columns()
        self._build()

    def _columns(self) -> None:
        self._lift, self._bump, self._rise = (
            np.array([getattr(p, name) for p in self.patches]) for name in ('lift', 'bump', 'rise')
        )
        self._inner = np.array([min(abs(p.d0), abs(p.d1)) for p in self.patches])

    def _height(self, s, d, patch) -> np.ndarray:
        climb = np.minimum(self._rise[patch] * np.maximum(np.abs(d) - self._inner[patch], 0.0), 3.0)
        bumps = self._bump[patch] * self.course.bumps(s, d)
        return self.course.height(s, d) + self._lift[patch] + climb + bumps

    def surface(self, s, d) -> np.ndarray:
        """Height of the ground at street coordinates, meters."""
        row = np.clip(np.searchsorted(self.s, s) - 1, 0, len(self.s) - 2)
        column = np.clip(np.searchsorted(self.d, d) - 1, 0, len(self.d) - 2)
        return self._height(np.asarray(s), np.asarray(d), self.owner[row, column])

    def _build(self) -> None:
        s, d = np.stack([self.s[:-1], self.s[1:]], 1), np.stack([self.d[:-1], self.d[1:]], 1)
        shape = (*self.owner.shape, 2, 2)
        s_corner = np.broadcast_to(s[:, None, :, None], shape)
        d_corner = np.broadcast_to(d[None, :, None, :], shape)
        z = self._height(s_corner, d_corner, self.owner[:, :, None, None])
        grid = np.stack([s_corner, d_corner, z], axis=-1)
        tops = np.stack([grid[:, :, 0, 0], grid[:, :, 1, 0], grid[:, :, 1, 1], grid[:, :, 0, 1]], axis=2)
        pieces, owners = [tops.reshape(-1, 4, 3)], [self.owner.ravel()]
        for low, high, one, other in (
            (grid[:-1, :, 1], grid[1:, :, 0], self.owner[:-1], self.owner[1:]),
            (grid[:, :-1, :, 1], grid[:, 1:, :, 0], self.owner[:, :-1], self.owner[:, 1:]),
        ):
            gap = high[..., 2] - low[..., 2]
            step = np.abs(gap).max(axis=-1) > 0.004
            pieces.append(np.stack([low[step][:, 0], low[step][:, 1], high[step][:, 1], high[step][:, 0]], axis=1))
            owners.append(np.where(gap[step].mean(axis=-1) > 0, other[step], one[step]))
        corners = np.concatenate(pieces)
        owner = np.concatenate(owners)
        curb = np.arange(len(owner)) >= len(pieces[0])
        self._mesh(corners, owner, curb)

    def _mesh(self, corners: np.ndarray, owner: np.ndarray, curb: np.ndarray) -> None:
        from clusterplug.datasets.lidar_city.scanner.materials import MATERIAL_ID

        x, y = self.course.place(corners[..., 0], corners[..., 1])
        mesh = quads(np.stack([x, y, corners[..., 2]], axis=-1), 'soil')
        surface = np.array([MATERIAL_ID[p.material] for p in self.patches])
        paved = np.array([p.class_name in ('sidewalk', 'other-ground') for p in self.patches])
        material = np.where(curb & paved[owner], MATERIAL_ID['curb'], surface[owner])
        mesh.material = np.tile(material, 2)
        self.mesh: Mesh = merge(mesh)
        self.patch = np.tile(np.where(curb, -1, owner), 2)
        self.instance = np.tile(np.array([p.instance for p in self.patches])[owner], 2)
        self.street_coordinates = corners[..., :2].reshape(-1, 2)


def painted(kind, width, origin, s, d) -> np.ndarray:
    """Whether ground points lie on paint (lane lines, zebra stripes, bay lines).

    Args:
        kind, width, origin: (N,) the marking of each point's patch.
        s, d: (N,) street coordinates.

    Returns:
        (N,) bool.
    """
    side = np.abs(d)
    dashes = (side < 0.07) & (np.mod(s, 6.0) < 3.0)
    lanes = dashes | (np.abs(side - width + 0.25) < 0.07)
    across = s - origin
    cross = ((np.abs(across) < 0.07) & (np.mod(d, 6.0) < 3.0)) | (np.abs(np.abs(across) - width + 0.25) < 0.07)
    zebra = np.mod(d, 1.0) < 0.5
    bays = np.mod(s - origin, np.maximum(width, 0.5)) < 0.12
    return np.select(
        [kind == LANES, kind == CROSS_LANES, kind == ZEBRA, kind == BAYS], [lanes, cross, zebra, bays], False
    )
