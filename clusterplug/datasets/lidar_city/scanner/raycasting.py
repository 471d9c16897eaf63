# SPDX-License-Identifier: Apache-2.0
"""First hits of rays with what stands still and what moves, on Open3D's ray-casting scenes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clusterplug.datasets.lidar_city.world.plan import Mover
from clusterplug.datasets.lidar_city.world.street import Street

SIGHT = 80.0  # moving things farther away than the sensor reaches are left out, meters


def import_open3d():
    """Open3D, or an error that says how to get it."""
    try:
        import open3d
    except ImportError as error:
        raise ImportError(
            'the LiDAR city casts its rays with Open3D, which is not installed; run: pip install open3d==0.19.0'
        ) from error
    return open3d


class Hits(NamedTuple):
    """Nearest hits of R rays.

    Attributes:
        distance: (R,) float32, meters; inf where nothing was hit.
        triangle: (R,) row of the triangles of the one object or street that was cast at; 0 where nothing was hit.
        cosine: (R,) float32, cosine of the angle between ray and surface normal, 0 to 1.
        place: (R, 2) float32, barycentric coordinates of the hit in its triangle.
    """

    distance: np.ndarray
    triangle: np.ndarray
    cosine: np.ndarray
    place: np.ndarray


class Scene:
    """Triangles indexed for ray casting.

    Args:
        vertices: (V, 3), meters.
        triangles: (T, 3).
        threads: threads for one cast.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray, threads: int = 1):
        open3d = import_open3d()
        self._tensor, self._threads = open3d.core.Tensor, threads
        self._scene = open3d.t.geometry.RaycastingScene(nthreads=threads)
        self._scene.add_triangles(
            self._tensor(np.ascontiguousarray(vertices, dtype=np.float32)),
            self._tensor(np.ascontiguousarray(triangles, dtype=np.uint32)),
        )

    def cast(self, rays: np.ndarray) -> Hits:
        """Nearest hits of (R, 6) float32 rays: origin and unit direction."""
        answer = self._scene.cast_rays(self._tensor(rays), nthreads=self._threads)
        distance = answer['t_hit'].numpy()
        triangle = answer['primitive_ids'].numpy().astype(np.int64)  # look-ups by int64 are three times as fast
        triangle[np.isinf(distance)] = 0
        x, y, z = answer['primitive_normals'].numpy().T
        cosine = np.abs(x * rays[:, 3] + y * rays[:, 4] + z * rays[:, 5])
        return Hits(distance, triangle, cosine, answer['primitive_uvs'].numpy())


class Stage(NamedTuple):
    """Where one moving thing is at one moment.

    Attributes:
        number: which of the moving things.
        position: (3,) of its origin in the world, meters.
        yaw: its heading, radians.
        direction, half_width: azimuth of its middle seen from the sensor and half the angle it can cover, radians.
        lowest: sine of the lowest elevation at which a ray from the sensor can hit it.
        nearest: meters from the sensor that no part of it comes closer than.
    """

    number: int
    position: np.ndarray
    yaw: float
    direction: float
    half_width: float
    lowest: float
    nearest: float

    def candidates(self, azimuth: np.ndarray, rise: np.ndarray, reached: np.ndarray) -> np.ndarray:
        """Rays that point towards the thing; the others need not be cast at it.

        Args:
            azimuth: (R,) of the rays in the world, radians.
            rise: (R,) vertical part of their unit directions.
            reached: (R,) how far from the sensor they hit something else, meters.
        """
        offset = np.abs(azimuth - np.float32(self.direction))
        offset = np.minimum(offset, np.float32(2 * np.pi) - offset)
        towards = (offset <= np.float32(self.half_width + 1e-3)) & (rise >= np.float32(self.lowest))
        return np.flatnonzero(towards & (reached > np.float32(self.nearest)))

    def to_local(self, rays: np.ndarray) -> np.ndarray:
        """Rays in the frame of the thing: turning the rays is cheaper than indexing turned triangles anew."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
        return np.concatenate([(rays[:, :3] - self.position.astype(np.float32)) @ turn, rays[:, 3:] @ turn], axis=1)


class Traffic:
    """Everything that moves in a street, each thing indexed once."""

    def __init__(self, street: Street, threads: int = 1):
        self._street = street
        self.movers: list[Mover] = street.movers
        self._scenes = [Scene(mover.mesh.vertices, mover.mesh.triangles, threads) for mover in self.movers]
        self._reach = [np.hypot(*mover.mesh.vertices[:, :2].T).max() for mover in self.movers]

    def at(self, time: float, origin: np.ndarray) -> list[Stage]:
        """The things within sight of ``origin`` (3,), ``time`` seconds after the first scan."""
        course, ground, stages = self._street.course, self._street.ground, []
        for number, (mover, reach) in enumerate(zip(self.movers, self._reach)):
            s = mover.s0 + mover.speed * time
            if not course.start + 1 < s < course.end - 1:
                continue
            x, y = course.place(s, mover.d)
            distance = np.hypot(x - origin[0], y - origin[1])
            if distance > SIGHT:
                continue
            half_width = np.arcsin(reach / distance) if distance > reach else np.pi
            yaw = course.heading(s) + (np.pi if mover.speed < 0 else 0.0)
            position = np.array([x, y, ground.surface(s, mover.d) - 0.02])
            below, away = position[2] - 0.2 - origin[2], distance - reach
            lowest = below / np.hypot(below, away) if away > 0.1 and below < 0 else -1.0
            direction = np.arctan2(y - origin[1], x - origin[0])
            stages.append(Stage(number, position, yaw, direction, half_width, lowest, max(away - 0.01, 0.0)))
        return stages

    def cast(self, stage: Stage, rays: np.ndarray) -> Hits:
        """Nearest hits of world rays with one thing."""
        return self._scenes[stage.number].cast(stage.to_local(rays))
