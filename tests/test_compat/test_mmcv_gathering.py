# SPDX-License-Identifier: Apache-2.0
"""Grouping, interpolation, kernel assembly and voxel sums on the CPU: against plain loops, gradients by differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

pytest.importorskip('mmcv.ops', exc_type=ImportError)

from mmcv.ops import assign_score_withk, dynamic_scatter, gather_points, grouping_operation, three_interpolate

from clusterplug import compat
from clusterplug.compat.mmcv import (
    _cpu_kernel,
    assign_score,
    dynamic_scatter as scatter_patch,
    gather_points as gather_patch,
    group_points,
    three_interpolate as interpolate_patch,
)

SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()
    yield
    compat.apply_all()


def random_indices(seed, size, *shape, dtype=np.int32):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, size, shape).astype(dtype))


def random_features(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, num_points=st.integers(1, 9), num_channels=st.integers(1, 4), num_groups=st.integers(1, 5))
def test_groups_and_gathered_points(seed, num_points, num_channels, num_groups):
    features = random_features(seed, 2, num_channels, num_points)
    groups, picks = (random_indices(seed, num_points, 2, *shape) for shape in ((num_groups, 3), (num_groups,)))
    grouped, gathered = grouping_operation(features, groups), gather_points(features, picks)
    for b in range(2):
        for c in range(num_channels):
            for g in range(num_groups):
                assert gathered[b, c, g] == features[b, c, picks[b, g]]
                for s in range(3):
                    assert grouped[b, c, g, s] == features[b, c, groups[b, g, s]]
    torch.autograd.gradcheck(lambda x: (grouping_operation(x, groups), gather_points(x, picks)), features)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=3))
def test_groups_of_stacked_scenes(seed, sizes):
    feature_sizes, group_sizes = (list(part) for part in zip(*sizes, strict=True))
    features = random_features(seed, sum(feature_sizes), 3)
    groups = torch.cat([random_indices(seed + i, n, m, 2) for i, (n, m) in enumerate(sizes)])
    counts = [torch.tensor(part, dtype=torch.int32) for part in (feature_sizes, group_sizes)]

    def run(x):
        return grouping_operation(x, groups, *counts)

    found = run(features)
    assert found.shape == (sum(group_sizes), 3, 2)
    row, start = 0, 0
    for n, m in sizes:
        for g in range(row, row + m):
            for s in range(2):
                assert torch.equal(found[g, :, s], features[start + groups[g, s]])
        row, start = row + m, start + n
    if len(groups):
        torch.autograd.gradcheck(run, features)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, num_points=st.integers(1, 9), num_targets=st.integers(1, 6))
def test_interpolation(seed, num_points, num_targets):
    features = random_features(seed, 2, 3, num_points)
    indices = random_indices(seed, num_points, 2, num_targets, 3)
    weights = torch.rand(2, num_targets, 3, dtype=torch.float64)
    found = three_interpolate(features, indices, weights)
    for b in range(2):
        for n in range(num_targets):
            expected = sum(features[b, :, indices[b, n, k]] * weights[b, n, k] for k in range(3))
            torch.testing.assert_close(found[b, :, n], expected)
    torch.autograd.gradcheck(lambda x: three_interpolate(x, indices, weights), features)


def assembled_by_loop(scores, points, centers, indices):
    batch, num_groups, k, num_kernels = scores.shape
    result = torch.zeros(batch, points.shape[3], num_groups, k, dtype=points.dtype)
    for b in range(batch):
        for n in range(num_groups):
            for j in range(k):
                if 0 <= indices[b, n, j] < points.shape[1]:
                    for m in range(num_kernels):
                        offset = points[b, indices[b, n, j], m] - centers[b, indices[b, n, 0], m]
                        result[b, :, n, j] += scores[b, n, j, m] * offset
    return result


@pytest.mark.parametrize('entries', [1 << 20, 60])
@pytest.mark.parametrize('outside', [False, True])
def test_assembled_kernels(monkeypatch, entries, outside):
    monkeypatch.setattr(_cpu_kernel, '_ENTRIES', entries)  # 60: more than one block of groups
    scores = random_features(0, 2, 5, 3, 2)
    points, centers = random_features(1, 2, 6, 2, 4), random_features(2, 2, 6, 2, 4)
    indices = random_indices(3, 6, 2, 5, 3, dtype=np.int64)
    if outside:
        indices[0, 1, 2], indices[1, 0, 1] = 6, -1  # no such neighbors
    found = assign_score_withk(scores, points, centers, indices, 'sum')
    torch.testing.assert_close(found, assembled_by_loop(scores, points, centers, indices))
    if outside:
        assert not found[0, :, 1, 2].any()
        assert not found[1, :, 0, 1].any()

    def run(*inputs):
        return assign_score_withk(*inputs, indices, 'sum')

    torch.autograd.gradcheck(run, (scores, points, centers))


def voxels_by_loop(features, coordinates, reduction):
    voxels = sorted({tuple(c) for c in coordinates.tolist() if min(c) >= 0})
    groups = [[i for i, c in enumerate(coordinates.tolist()) if tuple(c) == voxel] for voxel in voxels]
    function = {'sum': lambda x: x.sum(0), 'mean': lambda x: x.mean(0), 'max': lambda x: x.amax(0)}[reduction]
    rows = [function(features[group]) for group in groups]
    return voxels, groups, torch.stack(rows) if rows else features[:0]


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS, num_points=st.integers(0, 20), num_axes=st.sampled_from([3, 4]), low=st.sampled_from([0, -1]),
    reduction=st.sampled_from(['sum', 'mean', 'max']),
)  # fmt: skip
def test_points_in_voxels(seed, num_points, num_axes, low, reduction):
    coordinates = torch.from_numpy(np.random.default_rng(seed).integers(low, 3, (num_points, num_axes))).int()
    features = random_features(seed, num_points, 3)
    found, voxels = dynamic_scatter(features, coordinates, reduction)
    expected_voxels, _, expected = voxels_by_loop(features, coordinates, reduction)
    assert voxels.dtype == torch.int32
    assert [tuple(voxel) for voxel in voxels.tolist()] == expected_voxels
    torch.testing.assert_close(found, expected)
    if num_points:
        grad = torch.randn_like(found)
        (ours,) = torch.autograd.grad(found, features, grad)
        wanted = torch.autograd.grad(expected, features, grad)[0] if expected_voxels else torch.zeros_like(features)
        torch.testing.assert_close(ours, wanted)


def test_the_first_of_equal_maxima_gets_the_gradient():
    features = torch.tensor([[1.0, 5], [2, 5], [2, 3]]).requires_grad_()
    found, _ = dynamic_scatter(features, torch.zeros(3, 3, dtype=torch.int32), 'max')
    assert found.tolist() == [[2, 5]]
    found.backward(torch.tensor([[10.0, 20.0]]))
    assert features.grad.tolist() == [[0, 20], [10, 0], [0, 0]]


def test_nan_is_no_maximum():
    features = torch.tensor([[float('nan')], [2.0], [float('nan')]]).requires_grad_()
    found, _ = dynamic_scatter(features, torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0]]).int(), 'max')
    assert found.tolist() == [[2], [-torch.inf]]
    found.sum().backward()
    assert features.grad.tolist() == [[0], [1], [0]]


def test_map_of_points_to_voxels():
    voxelize = pytest.importorskip('mmdet3d.models.data_preprocessors.voxelize')
    coordinates = torch.tensor([[5, 0, 1], [0, 2, 2], [-1, 0, 0], [5, 0, 1]]).int()
    features, voxels, rows = voxelize.dynamic_scatter_3d(torch.eye(4), coordinates, 'mean', True)
    assert voxels.tolist() == [[0, 2, 2], [5, 0, 1]]
    assert rows.tolist() == [1, 0, -1, 1]
    assert features.tolist() == [[0, 1, 0, 0], [0.5, 0, 0, 0.5]]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_results_come_back_in_the_type_of_the_features(dtype):
    features = random_features(0, 1, 3, 4, dtype=dtype)
    indices = random_indices(0, 4, 1, 5, 3)
    weights = torch.rand(1, 5, 3)
    for result in (
        grouping_operation(features, indices), gather_points(features, indices[..., 0].contiguous()),
        three_interpolate(features, indices, weights), dynamic_scatter(features[0].T, indices[0, :4], 'max')[0],
    ):  # fmt: skip
        assert result.dtype == dtype
        result.sum().backward()
        assert features.grad.dtype == dtype
        assert features.grad.isfinite().all()


BAD = torch.tensor([[[0, 4, 1]]], dtype=torch.int32)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: grouping_operation(torch.zeros(1, 2, 4), BAD), 'group_points must be from 0 to 3, got 0 to 4'),
        (lambda: gather_points(torch.zeros(1, 2, 4), BAD[0]), 'gather_points must be from 0 to 3, got 0 to 4'),
        (
            lambda: three_interpolate(torch.zeros(1, 2, 4), BAD, torch.zeros(1, 1, 3)),
            'three_interpolate must be from 0 to 3',
        ),
        (
            lambda: grouping_operation(torch.zeros(4, 2), BAD[0], *torch.tensor([[4], [1]]).int()),
            'group_points must be from 0 to 3',
        ),
        (
            lambda: grouping_operation(torch.zeros(4, 2), BAD[0], *torch.tensor([[4], [2]]).int()),
            r'add up to 1 groups in as many scenes, got \[2\] groups',
        ),
        (
            lambda: assign_score_withk(
                torch.zeros(1, 1, 2, 1), torch.zeros(1, 4, 1, 3), torch.zeros(1, 4, 1, 3), torch.tensor([[[4, 0]]])
            ),
            'the centers of assign_score_withk must be from 0 to 3, got 4 to 4',
        ),
        (
            lambda: dynamic_scatter(torch.zeros(2, 3), torch.zeros(2, 3).int(), 'min'),
            r"one of \('sum', 'mean', 'max'\), got 'min'",
        ),
        (lambda: dynamic_scatter(torch.zeros(2, 3), torch.zeros(4, 3).int(), 'sum'), r'same N, got \(2, 3\), \(4, 3\)'),
        (
            lambda: dynamic_scatter(torch.zeros(1, 3), torch.full((1, 3), 2**31 - 2).int(), 'sum'),
            r'fewer than 2\^62 voxels',
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


CALLS = {
    group_points: lambda: grouping_operation(torch.zeros(1, 2, 4), BAD * 0),
    gather_patch: lambda: gather_points(torch.zeros(1, 2, 4), BAD[0] * 0),
    interpolate_patch: lambda: three_interpolate(torch.zeros(1, 2, 4), BAD * 0, torch.zeros(1, 1, 3)),
    assign_score: lambda: assign_score_withk(
        torch.zeros(1, 1, 2, 1), torch.zeros(1, 4, 1, 3), torch.zeros(1, 4, 1, 3), torch.zeros(1, 1, 2).long()
    ),
    scatter_patch: lambda: dynamic_scatter(torch.zeros(2, 3), torch.zeros(2, 3).int(), 'sum'),
}


@pytest.mark.parametrize('module', CALLS, ids=lambda module: module.__name__.rpartition('.')[2])
def test_needed_because_mmcv_has_no_kernel_for_the_cpu(module):
    module.WORKAROUND.remove()
    with pytest.raises(RuntimeError, match='implementation for device cpu not found'):
        CALLS[module]()


@pytest.mark.parametrize('module', CALLS, ids=lambda module: module.__name__.rpartition('.')[2])
def test_other_devices_go_to_mmcv_unchanged(monkeypatch, module):
    import mmcv._ext

    names = [name for _, name, _ in module.WORKAROUND.patch(mmcv._ext)]
    assert names
    module.WORKAROUND.remove()
    calls = []
    for name in names:
        monkeypatch.setattr(mmcv._ext, name, lambda *args, name=name, **kwargs: calls.append((name, args, kwargs)))
    module.WORKAROUND.apply()
    x = torch.empty(3, device='meta')
    for name in names:
        getattr(mmcv._ext, name)(x, 1, b=2)
        assert calls.pop() == (name, (x, 1), dict(b=2))
    module.WORKAROUND.remove()
