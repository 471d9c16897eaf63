# SPDX-License-Identifier: Apache-2.0
"""Files of a city in the SemanticKITTI layout, each written whole or not at all."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np

from clusterplug.core.files import write_bytes
from clusterplug.datasets.lidar_city.scanner.scan import Scan
from clusterplug.datasets.lidar_city.world.catalogue import SUBTYPES
from clusterplug.datasets.lidar_city.world.plan import Instance

# From the sensor's frame (x forward, y left, z up) to the left camera's (x right, y down, z forward); the camera sits
# 27 cm in front of and 8 cm below the sensor, as on the KITTI car.
LIDAR_TO_CAMERA = np.array(
    [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -0.08], [1.0, 0.0, 0.0, -0.27], [0.0, 0.0, 0.0, 1.0]]
)
_FOCAL, _MIDDLE, _BASELINES = 720.0, (620.0, 188.0), (0.0, 0.54, -0.06, 0.48)


def sequence_folder(out_dir: Path, sequence: int) -> Path:
    """``out_dir/sequences/NN``."""
    return out_dir / 'sequences' / f'{sequence:02d}'


def scan_paths(out_dir: Path, sequence: int, frame: int) -> tuple[Path, Path]:
    """The .bin and the .label file of one scan."""
    folder = sequence_folder(out_dir, sequence)
    return folder / 'velodyne' / f'{frame:06d}.bin', folder / 'labels' / f'{frame:06d}.label'


def write_scan(out_dir: Path, sequence: int, frame: int, scan: Scan) -> None:
    """Points first, labels second: a scan with a label file is a finished scan."""
    points, labels = scan_paths(out_dir, sequence, frame)
    write_bytes(points, np.ascontiguousarray(scan.points, dtype='<f4').tobytes())
    write_bytes(labels, np.ascontiguousarray(scan.labels, dtype='<u4').tobytes())


def _numbers(values: np.ndarray) -> str:
    return ' '.join(f'{value + 0.0:.12e}' for value in np.asarray(values).ravel())


def calibration_text() -> str:
    """calib.txt: projection matrices of four rectified cameras and ``Tr``, lidar to left camera."""
    lines = []
    for index, baseline in enumerate(_BASELINES):
        projection = np.array([[_FOCAL, 0, _MIDDLE[0], -_FOCAL * baseline], [0, _FOCAL, _MIDDLE[1], 0], [0, 0, 1, 0]])
        lines.append(f'P{index}: {_numbers(projection)}')
    return '\n'.join([*lines, f'Tr: {_numbers(LIDAR_TO_CAMERA[:3])}']) + '\n'


def poses_text(sensor_to_world: np.ndarray) -> str:
    """poses.txt: poses of the left camera in the frame of the left camera at the first scan.

    Args:
        sensor_to_world: (F, 4, 4) poses of the lidar.
    """
    relative = np.linalg.inv(sensor_to_world[0]) @ sensor_to_world
    camera = LIDAR_TO_CAMERA @ relative @ np.linalg.inv(LIDAR_TO_CAMERA)
    return ''.join(f'{_numbers(pose[:3])}\n' for pose in camera)


def subtypes_text(instances: list[Instance]) -> str:
    """subtypes.json: class and hidden sub-type of every instance of a sequence."""
    content = {
        'subtypes': [{'id': entry.id, 'class': entry.class_name, 'name': entry.name} for entry in SUBTYPES],
        'instances': {
            str(number): {
                'label': entry.label,
                'class': entry.class_name,
                'subtype': entry.subtype,
                'subtype_id': entry.subtype_id,
            }
            for number, entry in enumerate(instances, start=1)
        },
    }
    return json.dumps(content, indent=1) + '\n'


def write_sequence_files(out_dir: Path, sequence: int, poses: np.ndarray, times, instances: list[Instance]) -> None:
    """calib.txt, poses.txt, times.txt and subtypes.json of one sequence; what is there already is kept."""
    contents = {
        'calib.txt': calibration_text(),
        'poses.txt': poses_text(poses),
        'times.txt': ''.join(f'{time:.6e}\n' for time in times),
        'subtypes.json': subtypes_text(instances),
    }
    for name, text in contents.items():
        path = sequence_folder(out_dir, sequence) / name
        if not path.exists():
            write_bytes(path, text.encode())


SEQUENCE_FILES = ('calib.txt', 'poses.txt', 'times.txt', 'subtypes.json')


def info_bytes(scans: list[tuple[int, int]]) -> bytes:
    """An info file of mmdet3d for (sequence, frame) pairs: what its SemanticKITTI converter writes.

    Source: mmdet3d 1.4, ``tools/dataset_converters/semantickitti_converter.py`` (Apache 2.0), for the field names.
    """
    data_list = [
        {
            'lidar_points': {'lidar_path': f'sequences/{s:02d}/velodyne/{f:06d}.bin', 'num_pts_feats': 4},
            'pts_semantic_mask_path': f'sequences/{s:02d}/labels/{f:06d}.label',
            'sample_id': f'{s}{f}',
        }
        for s, f in scans
    ]
    return pickle.dumps({'metainfo': {'DATASET': 'SemanticKITTI'}, 'data_list': data_list}, protocol=2)
