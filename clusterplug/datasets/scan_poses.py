# SPDX-License-Identifier: Apache-2.0
"""Where the laser stood at each scan of a SemanticKITTI sequence."""

from pathlib import Path

import numpy as np


def read_poses(path: str | Path, calib: str | Path | None = None) -> np.ndarray:
    r"""Poses of the laser: (K, 4, 4) float64, from the coordinates of each scan to those of the sequence.

    KITTI's odometry gives the pose :math:`P_k` of the camera; with :math:`T` from the laser to the camera (``Tr`` of
    the calibration) the laser's is :math:`T^{-1} P_k T`.

    Args:
        path: text file with 12 numbers a line, rows of a 3 x 4 matrix; line k (from 0) belongs to scan k.
        calib: calibration file with a line ``Tr: `` and 12 numbers, or None: the poses are those of the laser.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that does not hold 12 numbers, with its number; no ``Tr``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / 'poses.txt'
        >>> _ = path.write_text('1 0 0 0 0 1 0 0 0 0 1 0\\n1 0 0 5 0 1 0 0 0 0 1 0\\n')
        >>> read_poses(path)[1, :3, 3].tolist()
        [5.0, 0.0, 0.0]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: the poses of the scans, 12 numbers a line, one line a scan')
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    poses = np.stack([_matrix(line, f'{path}:{n}') for n, line in enumerate(lines, 1)] or np.zeros((0, 4, 4)))
    if calib is None:
        return poses
    calib = Path(calib)
    if not calib.is_file():
        raise FileNotFoundError(
            f'{calib} is missing: its line Tr leads from the laser to the camera; set calib=None if the poses in '
            f'{path.name} are those of the laser'
        )
    for number, line in enumerate(calib.read_text().splitlines(), 1):
        name, _, values = line.partition(':')
        if name.strip() == 'Tr':
            to_camera = _matrix(values, f'{calib}:{number}')
            return np.linalg.inv(to_camera) @ poses @ to_camera
    raise ValueError(f'{calib} has no line Tr with the 12 numbers that lead from the laser to the camera')


def _matrix(text: str, place: str) -> np.ndarray:
    try:
        numbers = [float(field) for field in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != 12 or not np.isfinite(numbers).all():
        raise ValueError(f'{place} must hold 12 numbers, rows of a 3 x 4 matrix, got {text.strip()[:60]!r}')
    return np.append(np.reshape(numbers, (3, 4)), [[0, 0, 0, 1.0]], 0)
