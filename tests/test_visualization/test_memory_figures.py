# SPDX-License-Identifier: Apache-2.0
"""Figures of a memory: they are written, and change with what they show."""

import numpy as np
import pytest

from clusterplug.visualization import save_center_map, save_curves, save_sizes
from clusterplug.visualization.memory_figures import principal_plane

image_module = pytest.importorskip('PIL.Image')
pytest.importorskip('matplotlib')


def _memory():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 6, 8)), rng.uniform(1, 5, (4, 6)), rng.random((4, 6)) > 0.2


def _pixels(path):
    return np.asarray(image_module.open(path).convert('RGB')).astype(int)


def test_plane_keeps_distances_of_flat_data():
    rng = np.random.default_rng(1)
    flat = rng.standard_normal((20, 2)) @ np.linalg.qr(rng.standard_normal((7, 2)))[0].T + 3
    plane, explained = principal_plane(flat)
    np.testing.assert_allclose(
        np.linalg.norm(plane[:, None] - plane, axis=2), np.linalg.norm(flat[:, None] - flat, axis=2), atol=1e-9
    )
    assert explained.sum() == pytest.approx(1)
    assert explained[0] >= explained[1]


@pytest.mark.parametrize('rows', [0, 1, 2])
def test_plane_of_few_rows(rows):
    plane, explained = principal_plane(np.ones((rows, 3)))
    assert plane.shape == (rows, 2)
    assert np.isfinite(plane).all()
    assert np.isfinite(explained).all()


def test_sizes_show_balance(tmp_path):
    in_use = np.ones((1, 4), bool)
    save_sizes(tmp_path / 'even.png', np.ones((1, 4)), in_use, ['car'])
    save_sizes(tmp_path / 'uneven.png', np.array([[9, 0.1, 0.1, 0.1]]), in_use, ['car'])
    even, uneven = _pixels(tmp_path / 'even.png'), _pixels(tmp_path / 'uneven.png')
    assert even.shape == uneven.shape
    assert (even != uneven).any(2).mean() > 0.05


def test_a_memory_that_has_seen_nothing(tmp_path):
    centers, sizes, in_use = _memory()
    save_sizes(tmp_path / 'sizes.png', sizes * 0, in_use & False)
    save_center_map(tmp_path / 'map.png', centers * 0, sizes * 0, in_use & False)
    assert _pixels(tmp_path / 'map.png').size > 0


def test_center_map_has_a_colour_for_each_class(tmp_path):
    centers, sizes, in_use = _memory()
    save_center_map(tmp_path / 'map.png', centers, sizes, in_use, ['a', 'b', 'c', 'd'])
    save_center_map(tmp_path / 'one.png', centers[:1], sizes[:1], in_use[:1], ['a'])
    colors = [len(np.unique(_pixels(tmp_path / name).reshape(-1, 3), axis=0)) for name in ('map.png', 'one.png')]
    assert colors[0] > colors[1]


def test_curves(tmp_path):
    save_curves(tmp_path / 'curves.png', {'drift': ([1, 2, 3], [0.1, 0.2, 0.1]), 'used': ([1, 2], [1, 1])})
    assert _pixels(tmp_path / 'curves.png').std() > 5
    with pytest.raises(ValueError, match="'drift' has 3 steps but 2 values"):
        save_curves(tmp_path / 'x.png', {'drift': ([1, 2, 3], [1, 2])})
    with pytest.raises(ValueError, match='at least one'):
        save_curves(tmp_path / 'x.png', {})
    assert not (tmp_path / 'x.png').exists()


def test_shapes_that_do_not_fit(tmp_path):
    centers, sizes, in_use = _memory()
    with pytest.raises(ValueError, match=r'in_use must be \(C, K\)'):
        save_sizes(tmp_path / 'x.png', sizes, in_use[1:])
    with pytest.raises(ValueError, match='class_names must be 4 names, got 1'):
        save_sizes(tmp_path / 'x.png', sizes, in_use, ['car'])
    with pytest.raises(ValueError, match=r'centers must be \(C, K, D\)'):
        save_center_map(tmp_path / 'x.png', centers[1:], sizes, in_use)
