# SPDX-License-Identifier: Apache-2.0
"""Tiny frames in KITTI's 3D detection layout: a road with cars, pedestrians and cyclists before the camera."""

from pathlib import Path

import numpy as np

SIZES = {'Car': (1.5, 1.6, 3.9), 'Pedestrian': (1.75, 0.6, 0.8), 'Cyclist': (1.75, 0.6, 1.8)}  # height, width, length
IMAGE = (400, 120)
FOCAL = 200.0
_GROUND = -1.7
# camera x, y, z = right, down, forward; laser x, y, z = forward, left, up; both in one place
VELO_TO_CAM = np.array([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])


def write_tiny_kitti(
    root: str | Path, num_frames: int = 4, num_points: int = 4000, seed: int = 0, radius: float = 20.0
) -> Path:
    """Write frames 000000 ... with two cars, a pedestrian, a cyclist, an empty far car and a DontCare region each.

    Args:
        root: folder to write into.
        num_frames: frames; the last two are for validation, if there are more than two.
        num_points: points of a frame, a fourth of them on objects.
        seed: same seed, same bytes.
        radius: objects stand up to so many meters away.

    Returns:
        ``root``.

    Example:
        >>> import tempfile
        >>> root = write_tiny_kitti(tempfile.mkdtemp(), num_frames=1, num_points=400)
        >>> (root / 'training/velodyne/000000.bin').stat().st_size
        6400
    """
    from PIL import Image

    root = Path(root)
    for name in ('velodyne', 'image_2', 'calib', 'label_2'):
        (root / 'training' / name).mkdir(parents=True, exist_ok=True)
    for number in range(num_frames):
        rng = np.random.default_rng([seed, number])
        objects = _objects(rng, radius)
        points = _points(rng, objects, num_points, radius)
        files = {name: root / 'training' / name / f'{number:06d}' for name in ('velodyne', 'image_2', 'calib')}
        points.astype('<f4').tofile(f'{files["velodyne"]}.bin')
        picture = rng.integers(90, 110, (IMAGE[1], IMAGE[0], 3), dtype=np.uint8)
        Image.fromarray(picture).save(f'{files["image_2"]}.png')
        Path(f'{files["calib"]}.txt').write_text(_calibration())
        lines = [_line(*each) for each in objects]
        lines.append('DontCare -1 -1 -10 5.00 5.00 40.00 30.00 -1 -1 -1 -1000 -1000 -1000 -10')
        (root / 'training/label_2' / f'{number:06d}.txt').write_text(''.join(f'{line}\n' for line in lines))
    names = [f'{number:06d}' for number in range(num_frames)]
    split = num_frames - 2 if num_frames > 2 else num_frames
    (root / 'ImageSets').mkdir(exist_ok=True)
    (root / 'ImageSets/train.txt').write_text('\n'.join(names[:split]))
    (root / 'ImageSets/val.txt').write_text('\n'.join(names[split:]))
    return root


def _objects(rng: np.random.Generator, radius: float) -> list[tuple[str, np.ndarray, float, bool]]:
    """(class, bottom centre in laser coordinates, yaw, whether it has points); apart from each other."""
    slots = rng.permutation([(0.4, -0.25), (0.4, 0.25), (0.75, -0.3), (0.75, 0.3), (0.95, 0.0)])[:4] * radius
    names = ['Car', 'Car', 'Pedestrian', 'Cyclist']
    found = [
        (name, np.array([x, y, _GROUND]) + [*rng.uniform(-0.5, 0.5, 2), 0.0], rng.uniform(-np.pi, np.pi), True)
        for name, (x, y) in zip(names, slots, strict=True)
    ]
    return [*found, ('Car', np.array([radius * 1.3, radius * 0.1, _GROUND]), 0.3, False)]


def _points(rng: np.random.Generator, objects, num_points: int, radius: float) -> np.ndarray:
    share = num_points // 16
    parts = []
    for number, (name, base, yaw, seen) in enumerate(objects):
        if seen:
            height, width, length = SIZES[name]
            local = rng.uniform(-0.48, 0.48, (share, 3)) * [length, width, height]
            side = rng.integers(0, 2, share)  # on a long or a short side
            local[np.arange(share), 1 - side] = 0.48 * np.array([width, length])[side] * rng.choice([-1, 1], share)
            cos, sin = np.cos(yaw), np.sin(yaw)
            x, y = cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1]
            z = local[:, 2] + height / 2
            parts.append(np.stack([x, y, z, np.full(share, 0.2 + 0.15 * number)], 1) + [*base, 0])
    rest = num_points - sum(map(len, parts))
    ground = np.stack([
        rng.uniform(2, radius * 1.25, rest), rng.uniform(-radius, radius, rest),
        rng.normal(_GROUND - 0.05, 0.01, rest), rng.uniform(0, 0.1, rest),
    ], 1)  # fmt: skip
    return rng.permutation(np.concatenate([*parts, ground]))


def _line(name: str, base: np.ndarray, yaw: float, _) -> str:
    height, width, length = SIZES[name]
    camera = VELO_TO_CAM[:, :3] @ base
    rotation = (-yaw - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    alpha = (rotation - np.arctan2(camera[0], camera[2]) + np.pi) % (2 * np.pi) - np.pi
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)]) * [length, width, height]
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = corners @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + base
    u, v, depth = _projection() @ np.append(turned @ VELO_TO_CAM[:, :3].T, np.ones((8, 1)), 1).T
    left, right = np.clip([(u / depth).min(), (u / depth).max()], 0, IMAGE[0] - 1)
    top, bottom = np.clip([(v / depth).min(), (v / depth).max()], 0, IMAGE[1] - 1)
    numbers = [alpha, left, top, right, bottom, height, width, length, *camera, rotation]
    return f'{name} 0.00 0 ' + ' '.join(f'{number:.2f}' for number in numbers)


def _projection() -> np.ndarray:
    return np.array([[FOCAL, 0, IMAGE[0] / 2, 0], [0, FOCAL, IMAGE[1] / 3, 0], [0, 0, 1.0, 0]])


def _calibration() -> str:
    rows = {f'P{camera}': _projection() for camera in range(4)}
    rows |= {'R0_rect': np.eye(3), 'Tr_velo_to_cam': VELO_TO_CAM, 'Tr_imu_to_velo': np.eye(4)[:3]}
    return ''.join(f'{name}: ' + ' '.join(f'{v:.12e}' for v in matrix.ravel()) + '\n' for name, matrix in rows.items())
