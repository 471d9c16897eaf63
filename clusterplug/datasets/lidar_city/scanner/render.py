# SPDX-License-Identifier: Apache-2.0
"""Casting the scans of one street into files: what a worker does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clusterplug.datasets.lidar_city.scanner.scan import Caster, sensor_pose, time_of
from clusterplug.datasets.lidar_city.world.scene_settings import WEATHER, scene_settings
from clusterplug.datasets.lidar_city.world.street import Street, build_street
from clusterplug.datasets.lidar_city.write import (
    SEQUENCE_FILES,
    scan_paths,
    sequence_folder,
    write_scan,
    write_sequence_files,
)


class Job(NamedTuple):
    """Scans of one street that are still to be written.

    Attributes:
        out_dir: root folder of the city.
        seed: seed of the city.
        sequence: number of the street.
        length: number of scans that the whole street has.
        frames: those to be cast now.
        columns: firings in a turn.
        spacing: meters driven between two scans.
        describe: whether this job also writes calib.txt, poses.txt, times.txt and subtypes.json.
        scene: what was asked of the street, by the names of ``SceneSettings``.
    """

    out_dir: str
    seed: int
    sequence: int
    length: int
    frames: list[int]
    columns: int
    spacing: float
    describe: bool
    scene: dict | None = None


def missing_frames(out_dir: Path, sequence: int, length: int) -> list[int]:
    """Scans of a street that are not finished: a file is missing, or there are not as many labels as points."""
    pairs = ((frame, scan_paths(out_dir, sequence, frame)) for frame in range(length))
    return [frame for frame, paths in pairs if not _is_scan(*paths)]


def _is_scan(points: Path, labels: Path) -> bool:
    both = points.is_file() and labels.is_file()
    return both and points.stat().st_size == 4 * labels.stat().st_size > 0


def is_described(out_dir: Path, sequence: int) -> bool:
    """Whether the four text files of a street are there."""
    return all((sequence_folder(out_dir, sequence) / name).is_file() for name in SEQUENCE_FILES)


def run_job(job: Job, report: Callable[[], None]) -> None:
    """Cast and write the scans of a job; ``report`` is called after each scan.

    Every scan has its own stream of random numbers, so that its bytes depend on nothing but seed, street, frame and
    settings: not on the order of the work, nor on who does it.
    """
    out_dir, scene = Path(job.out_dir), scene_settings(job.scene or {})
    street: Street = build_street(job.seed, job.sequence, (job.length - 1) * job.spacing, scene)

    def pose_of(frame: int) -> np.ndarray:
        return sensor_pose(street, job.seed, job.sequence, frame, job.spacing, scene.sensor_height)

    if job.describe:
        poses = [pose_of(frame) for frame in range(job.length)]
        times = [time_of(frame, job.spacing) for frame in range(job.length)]
        write_sequence_files(out_dir, job.sequence, np.stack(poses), times, street.instances)
    if not job.frames:
        return
    caster = Caster(street, weather=WEATHER[scene.weather], beams=scene.beams)
    for frame in job.frames:
        pose = pose_of(frame)
        rng = np.random.default_rng([job.seed, job.sequence, 2, frame])
        write_scan(out_dir, job.sequence, frame, caster.scan(pose, time_of(frame, job.spacing), job.columns, rng))
        report()
