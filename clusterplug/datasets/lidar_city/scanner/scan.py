# SPDX-License-Identifier: Apache-2.0
"""One turn of the sensor: cast the rays, then noise, drop-out and remission."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clusterplug.datasets.lidar_city.scanner.materials import (
    BASE,
    FUZZ,
    LOST,
    MATERIAL_ID,
    POROUS,
    detection_probability,
    echo_strength,
    remission,
)
from clusterplug.datasets.lidar_city.scanner.raycasting import Scene, Stage, Traffic
from clusterplug.datasets.lidar_city.scanner.sensor import (
    MAX_RANGE,
    MIN_RANGE,
    NUM_BEAMS,
    RANGE_NOISE,
    SENSOR_HEIGHT,
    beam_directions,
    rotation,
)
from clusterplug.datasets.lidar_city.scanner.weather import clutter, weakened
from clusterplug.datasets.lidar_city.world.catalogue import OUTLIER
from clusterplug.datasets.lidar_city.world.ground import painted
from clusterplug.datasets.lidar_city.world.scene_settings import Weather
from clusterplug.datasets.lidar_city.world.street import EGO_SPEED, LANE, Street, brightness

OUTLIER_SHARE = 2e-4


class Scan(NamedTuple):
    """Points of one turn in the sensor's frame.

    Attributes:
        points: (N, 4) float32 x forward, y left, z up (meters), remission.
        labels: (N,) uint32, raw label in the lower and instance in the upper 16 bits.
    """

    points: np.ndarray
    labels: np.ndarray


def sensor_pose(
    street: Street, seed: int, sequence: int, frame: int, spacing: float, height: float = SENSOR_HEIGHT
) -> np.ndarray:
    """Pose of the sensor in the street's world at one scan.

    Args:
        frame: number of the scan in its sequence.
        spacing: meters driven between two scans.
        height: of the sensor over the ground, meters.

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
    pose[:3, 3] = [x, y, (front + back) / 2 + height]
    return pose


class Surface(NamedTuple):
    """What R rays met: distance in meters (inf for nothing), material, instance, cosine of the incidence."""

    distance: np.ndarray
    material: np.ndarray
    instance: np.ndarray
    cosine: np.ndarray


class Caster:
    """The sensor in one street; the triangles are indexed once.

    Args:
        street: a finished street.
        threads: threads for one cast.
        weather: what the air does to the echoes; None is clear.
        beams: how many of the 64 beams are used, every second, every fourth ...
    """

    def __init__(self, street: Street, threads: int = 1, weather: Weather | None = None, beams: int = NUM_BEAMS):
        self.street, self.weather, self._every = street, weather, NUM_BEAMS // beams
        self._still = Scene(street.vertices, street.triangles, threads)
        self._traffic = Traffic(street, threads)
        patches = street.ground.patches
        self._paint_instance = np.array([p.paint_instance for p in patches])
        self._paint_form = np.array([[p.marking, p.marking_width, p.marking_origin] for p in patches], dtype=np.float32)
        corner = street.ground.street_coordinates[street.triangles[: len(street.ground.patch)].astype(np.int64)]
        edges = corner[:, 1:] - corner[:, :1]
        self._plane = np.concatenate([corner[:, 0], edges[:, 0], edges[:, 1]], axis=1).astype(np.float32)
        can_be_painted = np.append(self._paint_form[:, 0] > 0, False)
        self._patch = np.where(can_be_painted[street.patch], street.patch, -1)

    def first_surface(self, rays: np.ndarray, stages: list[Stage], start=0.0) -> Surface:
        """What rays (R, 6) that begin ``start`` meters from the sensor meet first, be it still or moving."""
        street = self.street
        hits = self._still.cast(rays)
        distance, cosine = hits.distance.copy(), hits.cosine
        material, instance, patch = (
            values.take(hits.triangle) for values in (street.material, street.instance, self._patch)
        )
        on_ground = np.flatnonzero((patch >= 0) & np.isfinite(distance))
        on_paint = on_ground[self._paint(patch[on_ground], hits.triangle[on_ground], hits.place[on_ground])]
        instance[on_paint] = self._paint_instance[patch[on_paint]]
        material[on_paint] = MATERIAL_ID['marking']
        azimuth = np.arctan2(rays[:, 4], rays[:, 3]) if stages else None
        for stage in stages:
            near = stage.candidates(azimuth, rays[:, 5], distance + start)
            if not len(near):
                continue
            other = self._traffic.cast(stage, rays[near])
            won = other.distance < distance[near]
            nearer, mover = near[won], self._traffic.movers[stage.number]
            distance[nearer], cosine[nearer] = other.distance[won], other.cosine[won]
            material[nearer], instance[nearer] = mover.mesh.material[other.triangle[won]], mover.instance
        return Surface(distance, material, instance, cosine)

    def _paint(self, patch: np.ndarray, triangle: np.ndarray, uv: np.ndarray) -> np.ndarray:
        kind, width, origin = self._paint_form.take(patch, axis=0).T
        s, d, s_along, d_along, s_across, d_across = self._plane.take(triangle, axis=0).T
        along, across = uv.T
        return painted(
            kind, width, origin, s + along * s_along + across * s_across, d + along * d_along + across * d_across
        )

    def scan(self, pose: np.ndarray, time: float, columns: int, rng: np.random.Generator) -> Scan:
        """One turn of the sensor.

        Args:
            pose: (4, 4) sensor to world.
            time: seconds since the first scan of the street.
            columns: firings in a turn.
            rng: source of noise and drop-out.
        """
        directions = beam_directions(columns, rng.random())[:: self._every].reshape(-1, 3)
        rays = np.empty((len(directions), 6), dtype=np.float32)
        rays[:, :3] = pose[:3, 3]
        rays[:, 3:] = directions @ pose[:3, :3].T.astype(np.float32)
        stages = self._traffic.at(time, pose[:3, 3])
        surface = self.first_surface(rays, stages)
        passes = rng.random(len(rays), dtype=np.float32) < POROUS.take(surface.material)
        through = np.flatnonzero(passes & (surface.distance < MAX_RANGE))
        if len(through):  # the part that goes on through wire mesh, windows, twigs
            onward = rays[through].copy()
            start = surface.distance[through] + 0.02
            onward[:, :3] += start[:, None] * onward[:, 3:]
            behind = self.first_surface(onward, stages, start)
            surface.distance[through] = start + behind.distance
            for mine, theirs in zip(surface[1:], behind[1:]):
                mine[through] = theirs
        return self._echo(directions, surface, rng)

    def _echo(self, directions: np.ndarray, surface: Surface, rng: np.random.Generator) -> Scan:
        """Drop-out, range noise and remission of the hits."""
        distance, material, instance, cosine = surface
        count = len(distance)
        gain = brightness(material, self.street.gain.take(instance))
        with np.errstate(over='ignore', invalid='ignore'):
            strength = echo_strength(BASE.take(material) * gain, cosine, distance)
            if self.weather is not None:
                strength = weakened(strength, distance, directions[:, 2], self.weather)
        counted = (
            np.isfinite(distance)
            & (rng.random(count, dtype=np.float32) < detection_probability(strength))
            & (rng.random(count, dtype=np.float32) >= LOST.take(material) * (1.0 - 0.7 * cosine))
        )
        fuzz = FUZZ.take(material) * rng.random(count, dtype=np.float32) ** 2
        noise = RANGE_NOISE * rng.standard_normal(count, dtype=np.float32)
        measured = distance - np.minimum(fuzz / np.maximum(cosine, 0.08), 2.5) + noise
        stray = rng.random(count, dtype=np.float32) < OUTLIER_SHARE
        measured = np.where(stray, MIN_RANGE + measured * rng.random(count, dtype=np.float32), measured)
        if self.weather is not None:
            drop, shown = clutter(measured, counted, self.weather, rng)
            measured, counted, stray = np.where(drop, shown, measured), counted | drop, stray | drop
            cosine = np.where(drop, np.float32(0.2), cosine)
        kept = np.flatnonzero(counted & (measured > MIN_RANGE) & (measured < MAX_RANGE))
        material, instance, gain, cosine, measured = (
            values.take(kept) for values in (material, instance, gain, cosine, measured)
        )
        points = np.empty((len(kept), 4), dtype=np.float32)
        for axis in range(3):  # one column at a time: ten times as fast as rows of three
            np.multiply(directions[:, axis].take(kept), measured, out=points[:, axis])
        points[:, 3] = remission(material, gain, cosine, measured, rng)
        label = self.street.label.take(instance).astype(np.uint32)
        labels = label | (instance.astype(np.uint32) << np.uint32(16))
        labels[stray[kept]] = OUTLIER
        return Scan(points, labels)


def time_of(frame: int, spacing: float) -> float:
    """Seconds since the first scan of the sequence."""
    return frame * spacing / EGO_SPEED
