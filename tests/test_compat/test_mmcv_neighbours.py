# SPDX-License-Identifier: Apache-2.0
"""Sampling and neighbors on the CPU against plain loops that do what mmcv's CUDA kernels do, one point at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

pytest.importorskip('mmcv.ops', exc_type=ImportError)

from mmcv.ops import ball_query, furthest_point_sample, furthest_point_sample_with_dist, knn, three_nn

from clusterplug import compat
from clusterplug.compat.mmcv import (
    _cpu_kernel,
    ball_query as ball_query_patch,
    furthest_points,
    knn as knn_patch,
    three_nn as three_nn_patch,
)

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 6))


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()
    yield
    compat.apply_all()


def grid_points(seed, *shape):
    """Small integers: many points at the same place and many equal distances, all of them exact."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (*shape, 3))).float()


def square_distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def furthest_by_threads(distance, num_points, num_samples):
    """The CUDA kernel as it runs: strided threads, each keeping its first best, then a tree of comparisons."""
    threads = max(min(1 << int(math.log(num_points) / math.log(2.0)), 1024), 1)
    closest, sampled = [1e10] * num_points, [0]
    for _ in range(num_samples - 1):
        best, index = [-1.0] * threads, [0] * threads
        for thread in range(threads):
            for k in range(thread, num_points, threads):
                d = distance(sampled[-1], k)
                closest[k] = closest[k] if math.isnan(d) else min(d, closest[k])
                if closest[k] > best[thread]:
                    best[thread], index[thread] = closest[k], k
        half = threads // 2
        while half:
            for thread in range(half):
                if best[thread + half] > best[thread]:
                    best[thread], index[thread] = best[thread + half], index[thread + half]
            half //= 2
        sampled.append(index[0])
    return sampled[:num_samples]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_points=st.integers(1, 70), num_samples=st.integers(0, 20))
def test_furthest_points_are_those_of_the_cuda_kernel_also_among_equals(seed, num_points, num_samples):
    points = grid_points(seed, 2, num_points)
    found = furthest_point_sample(points, num_samples)
    assert found.dtype == torch.int32
    for scene, indices in zip(points.tolist(), found.tolist(), strict=True):
        expected = furthest_by_threads(lambda i, k: square_distance(scene[i], scene[k]), num_points, num_samples)  # noqa: B023
        assert indices == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), num_points=st.integers(1, 40))
def test_furthest_points_with_distances(seed, num_points):
    distances = torch.from_numpy(np.random.default_rng(seed).integers(0, 5, (2, num_points, num_points))).float()
    found = furthest_point_sample_with_dist(distances, 8)
    for scene, indices in zip(distances.tolist(), found.tolist(), strict=True):
        assert indices == furthest_by_threads(lambda i, k: scene[i][k], num_points, 8)  # noqa: B023


def test_more_points_than_threads():
    """1100 equal points in 1024 threads: the order of threads decides, not that of indices."""
    points = torch.zeros(1, 1100, 3)
    points[0, [3, 6, 1024 + 5]] = 1.0  # thread 5 is odd, thread 6 even
    assert furthest_point_sample(points, 2).tolist() == [[0, 6]]
    points[0, 6] = 0.0
    assert furthest_point_sample(points, 2).tolist() == [[0, 1029]]  # 5 = 101 backwards 101, 3 = 011 backwards 110


def test_furthest_points_by_hand():
    line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [9, 0, 0], [5, 0, 0]]])
    assert furthest_point_sample(line, 4).tolist() == [[0, 2, 3, 1]]
    assert furthest_point_sample(line, 6).tolist()[0][:4] == [0, 2, 3, 1]  # then points repeat


def test_a_point_without_coordinates_stays_the_furthest():
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [float('nan'), 0, 0]]])
    assert furthest_point_sample(points, 3).tolist() == [[0, 2, 2]]


def ball_by_loop(center, points, low, high, num_samples):
    inside = []
    for k, point in enumerate(points):
        distance = square_distance(center, point)
        if distance == 0 or low**2 <= distance < high**2:
            inside.append(k)
    inside = inside[:num_samples]
    return inside + inside[:1] * (num_samples - len(inside)) if inside else [0] * num_samples


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=SIZES, radii=st.sampled_from([(0, 1), (0, 2), (1, 3), (2, 2.5)]))
def test_points_in_balls(seed, sizes, radii):
    num_points, num_centers, num_samples = sizes
    points, centers = grid_points(seed, 2, num_points), grid_points(seed + 1, 2, num_centers) + 0.0
    found = ball_query(*radii, num_samples, points, centers)
    assert found.dtype == torch.int32
    for scene in range(2):
        for center, indices in zip(centers[scene].tolist(), found[scene].tolist(), strict=True):
            assert indices == ball_by_loop(center, points[scene].tolist(), *radii, num_samples)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), point_sizes=st.lists(st.integers(0, 20), min_size=1, max_size=3))
def test_points_in_balls_of_stacked_scenes(seed, point_sizes):
    sizes = [3] * len(point_sizes)
    points, centers = grid_points(seed, sum(point_sizes)), grid_points(seed + 1, sum(sizes))
    counts = [torch.tensor(size, dtype=torch.int32) for size in (point_sizes, sizes)]
    found = ball_query(0, 1.5, 4, points, centers, *counts)
    scenes = zip(points.split(point_sizes), centers.split(sizes), found.split(sizes), strict=True)
    for scene, scene_centers, indices in scenes:
        for center, row in zip(scene_centers.tolist(), indices.tolist(), strict=True):
            nothing = not any(square_distance(center, point) < 1.5**2 for point in scene.tolist())
            assert row == ([-1, 0, 0, 0] if nothing else ball_by_loop(center, scene.tolist(), 0, 1.5, 4))


def nearest_by_loop(center, points, k):
    order = sorted(range(len(points)), key=lambda i: (square_distance(center, points[i]), i))
    return order[:k] + [0] * (k - len(order))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=SIZES)
def test_nearest_points(seed, sizes):
    num_points, num_centers, k = sizes
    points, centers = grid_points(seed, 2, num_points), grid_points(seed + 1, 2, num_centers)
    found = knn(k, points, centers, False)
    assert found.shape == (2, k, num_centers)
    assert found.dtype == torch.int32
    transposed = knn(k, points.transpose(1, 2).contiguous(), centers.transpose(1, 2).contiguous(), True)
    assert torch.equal(found, transposed)
    for scene in range(2):
        for number, center in enumerate(centers[scene].tolist()):
            assert found[scene, :, number].tolist() == nearest_by_loop(center, points[scene].tolist(), k)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_points=st.integers(0, 20), num_targets=st.integers(1, 20))
def test_three_nearest_points(seed, num_points, num_targets):
    points, targets = grid_points(seed, 2, num_points), grid_points(seed + 1, 2, num_targets)
    distances, found = three_nn(targets, points)
    for scene in range(2):
        for number, target in enumerate(targets[scene].tolist()):
            expected = nearest_by_loop(target, points[scene].tolist(), 3)
            assert found[scene, number].tolist() == expected
            for place, index in enumerate(expected):
                distance = float(distances[scene, number, place])
                if place < num_points:
                    assert distance == pytest.approx(math.dist(target, points[scene, index].tolist()))
                else:
                    assert distance == math.inf


def test_several_blocks_of_distances_equal_one(monkeypatch):
    points, centers = torch.randn(2, 500, 3), torch.randn(2, 40, 3)

    def everything():
        return (
            knn(7, points, centers, False), *three_nn(centers, points), ball_query(0, 0.7, 9, points, centers),
        )  # fmt: skip

    expected = everything()
    monkeypatch.setattr(_cpu_kernel, '_ENTRIES', 1500)
    for ours, wanted in zip(everything(), expected, strict=True):
        assert torch.equal(ours, wanted)


def test_neighbours_of_wide_features_are_those_of_the_cuda_kernel():
    """It knows three coordinates, and reads a (N, C) table as if it were (N, 3)."""
    features = torch.randn(2, 30, 8)
    read = torch.stack([features.flatten()[90 * scene : 90 * (scene + 1)].view(30, 3) for scene in range(2)])
    assert torch.equal(knn(5, features, features, False), knn(5, read, read, False))


def test_bad_coordinates_are_nobodys_neighbours():
    points = torch.tensor([[[0.0, 0, 0], [float('nan'), 0, 0], [1, 0, 0], [float('inf'), 0, 0], [1e6, 0, 0]]])
    assert knn(4, points, points[:, :1].contiguous(), False)[0, :, 0].tolist() == [0, 2, 0, 0]  # 1e12 is too far
    distances, indices = three_nn(points[:, :1].contiguous(), points[:, :4].contiguous())
    assert indices.tolist() == [[[0, 2, 0]]]
    assert distances.tolist() == [[[0, 1, math.inf]]]
    assert ball_query(0, 5.0, 3, points, points[:, :1].contiguous()).tolist() == [[[0, 2, 0]]]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: furthest_point_sample(torch.zeros(1, 0, 3), 2), 'needs at least one point, got 0'),
        (lambda: furthest_point_sample(torch.zeros(1, 4, 2), 2), r'points must be \(B, N, 3\), got \(1, 4, 2\)'),
        (lambda: furthest_point_sample(torch.zeros(1, 4, 3), -1), 'must be at least 0, got -1'),
        (lambda: furthest_point_sample_with_dist(torch.zeros(1, 4, 3), 2), r'distances must be \(B, N, N\)'),
        (lambda: knn(100, torch.zeros(1, 4, 3)), 'k of knn must be from 1 to 99, got 100'),
        (lambda: knn(2, torch.zeros(1, 4, 2)), r'at least three coordinates, got \(1, 4, 2\)'),
        (lambda: three_nn(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)), r'three_nn needs points \(B, N, 3\)'),
        (lambda: ball_query(0, 1, 2, torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)), 'the last of size 3'),
        (
            lambda: ball_query(
                0, 1, 2, torch.zeros(4, 3), torch.zeros(2, 3), torch.tensor([3]).int(), torch.tensor([2]).int()
            ),
            r'add up to 2 centers and 4 points, got \[2\], \[3\]',
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


CALLS = {
    furthest_points: lambda x: furthest_point_sample(x, 2),
    ball_query_patch: lambda x: ball_query(0, 1, 2, x, x),
    knn_patch: lambda x: knn(2, x, x, False),
    three_nn_patch: lambda x: three_nn(x, x),
}


@pytest.mark.parametrize('module', CALLS, ids=lambda module: module.__name__.rpartition('.')[2])
def test_needed_because_mmcv_has_no_kernel_for_the_cpu(module):
    if torch.cuda.is_available():
        pytest.skip('with a CUDA device mmcv fails elsewhere')
    module.WORKAROUND.remove()
    with pytest.raises((RuntimeError, AssertionError, TypeError)):
        CALLS[module](torch.zeros(1, 4, 3))


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        (ball_query_patch, 'ball_query_forward'), (ball_query_patch, 'stack_ball_query_forward'),
        (three_nn_patch, 'three_nn_forward'),
    ],
)  # fmt: skip
def test_other_devices_go_to_mmcv_unchanged(monkeypatch, module, name):
    import mmcv._ext

    module.WORKAROUND.remove()
    calls = []
    monkeypatch.setattr(mmcv._ext, name, lambda *args, **kwargs: calls.append((args, kwargs)))
    module.WORKAROUND.apply()
    x = torch.empty(3, device='meta')
    getattr(mmcv._ext, name)(x, x, 1, b=2)
    assert calls == [((x, x, 1), dict(b=2))]
    module.WORKAROUND.remove()


@pytest.mark.parametrize(('module', 'function'), [(furthest_points, 'FurthestPointSampling'), (knn_patch, 'KNN')])
def test_other_devices_go_to_the_functions_of_mmcv(monkeypatch, module, function):
    import mmcv.ops

    host = getattr(mmcv.ops.furthest_point_sample if function != 'KNN' else mmcv.ops.knn, '__self__', None)
    module.WORKAROUND.remove()
    calls = []
    monkeypatch.setattr(host, 'forward', staticmethod(lambda ctx, *args: calls.append(args)))
    module.WORKAROUND.apply()
    x = torch.empty(1, 3, 3, device='meta')
    host.forward(None, *((x, 2) if function != 'KNN' else (2, x, x, False)))
    assert len(calls) == 1
    module.WORKAROUND.remove()
