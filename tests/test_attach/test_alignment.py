# SPDX-License-Identifier: Apache-2.0
"""Which label belongs to which row of a tapped feature, for dense and sparse features of any stride."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.attach.alignment import align, coarse_rows
from clusterplug.attach.taps import Rows
from clusterplug.testing import count_host_syncs


def _voxels(seed, num_voxels, extent, batch_size=2):
    """Distinct voxel coordinates (N, 4), batch index first, that reach the end of every axis."""
    g = torch.Generator().manual_seed(seed)
    coords = torch.stack([torch.randint(0, n, (num_voxels,), generator=g) for n in (batch_size, *extent)], 1)
    coords[0, 1:] = torch.tensor(extent) - 1
    return coords.unique(dim=0)[torch.randperm(len(coords.unique(dim=0)), generator=g)].int()


def _coarse(coords, stride, extent, seed=0):
    """The occupied cells of a grid coarser by ``stride``, in any order; cells cut off at the end are dropped."""
    stride = torch.tensor(stride)
    shape = tuple((torch.tensor(extent) // stride).tolist())
    cells = torch.cat([coords[:, :1], coords[:, 1:] // stride], 1).unique(dim=0)
    cells = cells[(cells[:, 1:] < torch.tensor(shape)).all(1)]
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))
    return Rows(torch.zeros(len(cells), 3), cells[order].int(), shape)


def _by_loop(rows, coords, stride):
    table = {tuple(cell): i for i, cell in enumerate(rows.indices.tolist())}
    return [table.get((b, x // stride[0], y // stride[1], z // stride[2]), -1) for b, x, y, z in coords.tolist()]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), num_voxels=st.integers(1, 60), stride=st.sampled_from([1, 2, 4, 8]),
    extent=st.tuples(st.integers(32, 70), st.integers(32, 70), st.integers(8, 40)),
)  # fmt: skip
def test_label_goes_with_the_voxel_that_contains_its_own(seed, num_voxels, stride, extent):
    coords = _voxels(seed, num_voxels, extent)
    rows = _coarse(coords, (stride,) * 3, extent)
    assert coarse_rows(rows, coords).tolist() == _by_loop(rows, coords, (stride,) * 3)


@pytest.mark.parametrize('stride', [(2, 2, 1), (4, 4, 1), (8, 8, 4), (1, 1, 2)])
def test_axes_may_have_strides_of_their_own(stride):
    """Cylinder3D keeps the height in its deeper stages."""
    extent = (64, 56, 32)
    coords = _voxels(3, 300, extent)
    rows = _coarse(coords, stride, extent)
    assert coarse_rows(rows, coords).tolist() == _by_loop(rows, coords, stride)


@pytest.mark.parametrize('kernel', [dict(kernel_size=2, stride=2), dict(kernel_size=3, stride=2, padding=1)])
@pytest.mark.parametrize('levels', [1, 2])
def test_sparse_convolutions_of_spconv(kernel, levels):
    spconv = pytest.importorskip('spconv.pytorch')
    extent = (37, 22, 13)
    coords = _voxels(5, 200, extent)
    tensor = spconv.SparseConvTensor(torch.zeros(len(coords), 2), coords, extent, batch_size=2)
    for level in range(levels):
        tensor = spconv.SparseConv3d(2, 2, indice_key=str(level), **kernel)(tensor)
    rows = Rows(tensor.features, tensor.indices, tuple(tensor.spatial_shape))
    found = coarse_rows(rows, coords)
    assert found.tolist() == _by_loop(rows, coords, (2**levels,) * 3)
    assert (found >= 0).float().mean() > 0.8


def test_no_host_synchronisation():
    coords = _voxels(1, 100, (40, 40, 16))
    rows = _coarse(coords, (2, 2, 2), (40, 40, 16))
    assert count_host_syncs(lambda: coarse_rows(rows, coords)).total() == 0


def test_same_number_of_rows_is_one_to_one():
    voxel, point = torch.zeros(7), torch.zeros(20)
    labels = {'voxel': voxel, 'point': point}
    assert align(Rows(torch.zeros(7, 3)), labels, None, 'x') == ('voxel', None)
    assert align(Rows(torch.zeros(20, 3)), labels, None, 'x') == ('point', None)


@pytest.mark.parametrize('kind', ['voxel', 'point'])
def test_coarse_feature_goes_with_the_labels_that_have_the_coordinates(kind):
    """Where voxels are made inside the model, ``coors`` has one row per point."""
    extent = (40, 40, 16)
    coords = _voxels(2, 120, extent)
    rows = _coarse(coords, (4, 4, 4), extent)
    labels = {'voxel': torch.zeros(90), 'point': torch.zeros(150)}
    labels[kind] = torch.zeros(len(coords))
    found, index = align(rows, labels, coords, 'x')
    assert found == kind
    assert index.tolist() == _by_loop(rows, coords, (4, 4, 4))


@pytest.mark.parametrize(
    ('rows', 'labels', 'message'),
    [
        (Rows(torch.zeros(5, 3)), {'voxel': torch.zeros(9), 'point': torch.zeros(20)},
         "layer 'a.b' has 5 rows, which cannot be aligned with 9 voxel labels, 20 point labels"),
        (Rows(torch.zeros(5, 3)), {}, 'cannot be aligned with no labels'),
        (Rows(torch.zeros(5, 3), torch.zeros(5, 4), (4, 4, 4)), {'voxel': torch.zeros(9)}, '5 rows.*9 voxel labels'),
    ],
)  # fmt: skip
def test_what_cannot_be_aligned(rows, labels, message):
    with pytest.raises(ValueError, match=message):
        align(rows, labels, None, 'a.b')
