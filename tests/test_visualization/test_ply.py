# SPDX-License-Identifier: Apache-2.0
"""PLY files: read back by hand and by Open3D."""

import numpy as np
import pytest

from clusterplug.visualization import save_ply


def _cloud(num_points=50):
    rng = np.random.default_rng(0)
    return rng.standard_normal((num_points, 4)).astype(np.float32), rng.integers(0, 256, (num_points, 3))


def test_open3d_reads_what_was_written(tmp_path):
    open3d = pytest.importorskip('open3d')
    points, colors = _cloud()
    save_ply(tmp_path / 'a' / 'scan.ply', points, colors)
    cloud = open3d.io.read_point_cloud(str(tmp_path / 'a' / 'scan.ply'))
    np.testing.assert_allclose(np.asarray(cloud.points), points[:, :3], rtol=1e-6)
    np.testing.assert_array_equal(np.rint(np.asarray(cloud.colors) * 255), colors)


def test_bytes_of_one_point(tmp_path):
    save_ply(tmp_path / 'one.ply', np.array([[1.0, 2.0, 3.0]]), np.array([[4, 5, 6]]))
    header, body = (tmp_path / 'one.ply').read_bytes().split(b'end_header\n')
    assert b'element vertex 1\n' in header
    assert body == np.array([1, 2, 3], '<f4').tobytes() + bytes([4, 5, 6])


def test_no_points(tmp_path):
    save_ply(tmp_path / 'none.ply', np.zeros((0, 3)), np.zeros((0, 3)))
    assert b'element vertex 0\n' in (tmp_path / 'none.ply').read_bytes()


def test_shapes_that_do_not_fit(tmp_path):
    points, colors = _cloud()
    with pytest.raises(ValueError, match=r'colors must have shape \(50, 3\), got \(49, 3\)'):
        save_ply(tmp_path / 'x.ply', points, colors[1:])
    with pytest.raises(ValueError, match=r'points must be \(N, 3 or more\), got \(50, 2\)'):
        save_ply(tmp_path / 'x.ply', points[:, :2], colors)
    assert list(tmp_path.iterdir()) == []
