"""One turn of the sensor: cast the rays, then noise, drop-out and remission."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .catalogue import LANE_MARKING, OUTLIER
from .ground import painted
from .materials import BASE, FUZZ, LOST, MATERIAL_ID, POROUS, detection_probability, echo_strength, remission
from .mesh import merge
from .sensor import MAX_RANGE, MIN_RANGE, RANGE_NOISE, SENSOR_HEIGHT, beam_directions, rotation
from .street import EGO_SPEED, LANE, Street, brightness

OUTLIER_SHARE = 2e-4
SIGHT = 95.0  # moving things farther away than this are left out, metres


class Scan(NamedTuple):
    """Points of one turn in the sensor's frame.

    Attributes:
        points: (N, 4) float32 x forward, y left, z up (metres), remission.
        labels: (N,) uint32, raw label in the lower and instance in the upper 16 bits.
    """

    points: np.ndarray
    labels: np.ndarray


def import_open3d():
    """Open3D, or an error that says how to get it."""
    try:
        import open3d
    except ImportError as error:
        raise ImportError(
            'the LiDAR city casts its rays with Open3D, which is not installed; run: pip install open3d==0.19.0'
        ) from error
    return open3d


def sensor_pose(street: Street, seed: int, sequence: int, frame: int, spacing: float) -> np.ndarray:
    """Pose of the sensor in the street's world at one scan.

    Args:
        frame: number of the scan in its sequence.
        spacing: metres driven between two scans.

    Returns:
        (4, 4) float64, sensor to world.
    """
    rng = np.random.default_rng([seed, sequence, 1, frame])
    s = frame * spacing
    d = -LANE + 0.15 * np.sin(s / 17.0)
    x, y = street.course.place(s, d)
    heading = street.course.heading(s) + 0.15 * np.cos(s / 17.0) / 17.0
    front, back, left, right = street.ground.surface(
        np.array([s + 1.35, s - 1.35, s, s]), np.array([d, d, d + 0.75, d - 0.75])
    )
    pitch = -np.arctan2(front - back, 2.7) + rng.normal(0.0, 0.003)
    roll = np.arctan2(left - right, 1.5) + rng.normal(0.0, 0.003)
    pose = np.eye(4)
    pose[:3, :3] = rotation(heading, pitch, roll)
    pose[:3, 3] = [x, y, (front + back) / 2 + SENSOR_HEIGHT]
    return pose


class Caster:
    """The ray caster of one street; the triangles that stand still are indexed once.

    Args:
        street: a finished street.
        threads: threads for one cast.
    """

    def __init__(self, street: Street, threads: int = 1):
        self._o3d = import_open3d()
        self.street, self._threads = street, threads
        self._still = self._scene(street.vertices, street.triangles)

    def _scene(self, vertices: np.ndarray, triangles: np.ndarray):
        core = self._o3d.core
        scene = self._o3d.t.geometry.RaycastingScene(nthreads=self._threads)
        scene.add_triangles(
            core.Tensor(np.ascontiguousarray(vertices, dtype=np.float32)),
            core.Tensor(np.ascontiguousarray(triangles, dtype=np.uint32)),
        )
        return scene

    def _cast(self, scene, rays: np.ndarray):
        answer = scene.cast_rays(self._o3d.core.Tensor(rays), nthreads=self._threads)
        keys = ('t_hit', 'primitive_ids', 'primitive_normals', 'primitive_uvs')
        return tuple(answer[key].numpy() for key in keys)

    def _moving(self, time: float, origin: np.ndarray):
        """Triangles of everything that moves and is in sight, at a time in seconds."""
        street, meshes, instances = self.street, [], []
        for mover in street.movers:
            s = mover.s0 + mover.speed * time
            if not street.course.start + 1 < s < street.course.end - 1:
                continue
            x, y = street.course.place(s, mover.d)
            if np.hypot(x - origin[0], y - origin[1]) > SIGHT:
                continue
            yaw = street.course.heading(s) + (np.pi if mover.speed < 0 else 0.0)
            mesh = mover.mesh.moved(x, y, float(street.ground.surface(s, mover.d)) - 0.02, yaw)
            meshes.append(mesh)
            instances.append(np.full(len(mesh.triangles), mover.instance))
        return (merge(*meshes), np.concatenate(instances)) if meshes else (None, None)

    def first_hits(self, rays: np.ndarray, moving, moving_scene):
        """Nearest hit of still and moving triangles: distance, material, instance, cosine, painted flag."""
        street = self.street
        distance, triangle, normal, uv = self._cast(self._still, rays)
        hit = np.isfinite(distance)
        safe = np.where(hit, triangle, 0)
        material, instance, patch = street.material[safe], street.instance[safe], street.patch[safe]
        if moving_scene is not None:
            mesh, owners = moving
            other, other_triangle, other_normal, _ = self._cast(moving_scene, rays)
            nearer = other < distance
            index = other_triangle[nearer]
            distance = np.where(nearer, other, distance)
            normal = np.where(nearer[:, None], other_normal, normal)
            material[nearer], instance[nearer], patch[nearer] = mesh.material[index], owners[index], -1
        cosine = np.abs(np.einsum('nd,nd->n', normal, rays[:, 3:]))
        on_ground = np.flatnonzero((patch >= 0) & np.isfinite(distance))
        paint = self._paint(patch[on_ground], safe[on_ground], uv[on_ground])
        on_paint = on_ground[paint]
        instance[on_paint] = self._paint_instance[patch[on_paint]]
        material[on_paint] = MATERIAL_ID['marking']
        return distance, material, instance, cosine

    def _paint(self, patch: np.ndarray, triangle: np.ndarray, uv: np.ndarray) -> np.ndarray:
        patches = self.street.ground.patches
        if not hasattr(self, '_paint_instance'):
            self._paint_instance = np.array([p.paint_instance for p in patches])
            self._paint_form = np.array([[p.marking, p.marking_width, p.marking_origin] for p in patches])
        kind, width, origin = self._paint_form[patch].T
        corner = self.street.ground.street_coordinates[self.street.triangles[triangle]]
        place = corner[:, 0] + uv[:, :1] * (corner[:, 1] - corner[:, 0]) + uv[:, 1:] * (corner[:, 2] - corner[:, 0])
        return painted(kind, width, origin, place[:, 0], place[:, 1])

    def scan(self, pose: np.ndarray, time: float, columns: int, rng: np.random.Generator) -> Scan:
        """One turn of the sensor.

        Args:
            pose: (4, 4) sensor to world.
            time: seconds since the first scan of the street.
            columns: firings in a turn.
            rng: source of noise and drop-out.
        """
        directions = beam_directions(columns, rng.random()).reshape(-1, 3)
        rays = np.empty((len(directions), 6), dtype=np.float32)
        rays[:, :3] = pose[:3, 3]
        rays[:, 3:] = directions @ pose[:3, :3].T.astype(np.float32)
        moving = self._moving(time, pose[:3, 3])
        moving_scene = None if moving[0] is None else self._scene(moving[0].vertices, moving[0].triangles)
        distance, material, instance, cosine = self.first_hits(rays, moving, moving_scene)
        through = np.flatnonzero(
            (rng.random(len(rays), dtype=np.float32) < POROUS[material])
            & np.isfinite(distance)
            & (distance < MAX_RANGE)
        )
        if len(through):
            onward = rays[through].copy()
            start = distance[through] + 0.02
            onward[:, :3] += start[:, None] * onward[:, 3:]
            behind = self.first_hits(onward, moving, moving_scene)
            distance[through] = start + behind[0]
            material[through], instance[through], cosine[through] = behind[1:]
        return self._echo(directions, distance, material, instance, cosine, rng)

    def _echo(self, directions, distance, material, instance, cosine, rng: np.random.Generator) -> Scan:
        """Drop-out, range noise and remission of the hits."""
        count = len(distance)
        gain = brightness(material, self.street.gain[instance])
        with np.errstate(over='ignore', invalid='ignore'):
            strength = echo_strength(BASE[material] * gain, cosine, distance)
        counted = (
            np.isfinite(distance)
            & (rng.random(count, dtype=np.float32) < detection_probability(strength))
            & (rng.random(count, dtype=np.float32) >= LOST[material] * (1.0 - 0.7 * cosine))
        )
        fuzz = FUZZ[material] * rng.random(count, dtype=np.float32) ** 2
        noise = RANGE_NOISE * rng.standard_normal(count, dtype=np.float32)
        measured = distance - np.minimum(fuzz / np.maximum(cosine, 0.08), 2.5) + noise
        stray = rng.random(count, dtype=np.float32) < OUTLIER_SHARE
        measured = np.where(stray, MIN_RANGE + measured * rng.random(count, dtype=np.float32), measured)
        kept = np.flatnonzero(counted & (measured > MIN_RANGE) & (measured < MAX_RANGE))
        echo = remission(material[kept], gain[kept], cosine[kept], measured[kept], rng)
        points = np.empty((len(kept), 4), dtype=np.float32)
        points[:, :3] = directions[kept] * measured[kept, None]
        points[:, 3] = echo
        label = self.street.label[instance[kept]].astype(np.uint32)
        labels = label | (instance[kept].astype(np.uint32) << np.uint32(16))
        labels[stray[kept]] = OUTLIER
        return Scan(points, labels)


def time_of(frame: int, spacing: float) -> float:
    """Seconds since the first scan of the sequence."""
    return frame * spacing / EGO_SPEED


__all__ = ['LANE_MARKING', 'Caster', 'Scan', 'import_open3d', 'sensor_pose', 'time_of']
