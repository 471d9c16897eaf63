# SPDX-License-Identifier: Apache-2.0
"""Kernel maps by sorting against spconv's hash table."""

import pytest
import torch

ops = pytest.importorskip('spconv.pytorch.ops')

from spconv.core import ConvAlgo  # noqa: E402

from clusterplug.compat.spconv import spconv_kernel_map  # noqa: E402
from clusterplug.compat.spconv.spconv_kernel_map import submanifold_pairs  # noqa: E402


@pytest.fixture(autouse=True)
def removed_afterwards():
    was_active = spconv_kernel_map.WORKAROUND.active
    yield
    if was_active:
        spconv_kernel_map.WORKAROUND.apply()
    else:
        spconv_kernel_map.WORKAROUND.remove()


def voxels(shape, num_points, batch_size=2, shuffled=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, size, (num_points,), generator=generator) for size in (batch_size, *shape)]
    unique = torch.unique(torch.stack(columns, 1), dim=0).int()
    return unique[torch.randperm(len(unique), generator=generator)].contiguous() if shuffled else unique


def from_spconv(indices, shape, kernel_size):
    dims = len(shape)
    ones, zeros, half = [1] * dims, [0] * dims, [k // 2 for k in kernel_size]
    return ops.get_indice_pairs(indices, 2, shape, ConvAlgo.Native, kernel_size, ones, half, ones, zeros, True, False)


def as_sets(pairs, counts):
    last = len(counts) - 1
    sizes = [int(counts[min(k, last - k)]) for k in range(last + 1)]
    return [set(zip(*pairs[:, k, :size].tolist())) for k, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ('shape', 'kernel_size'), [([5, 6, 4], [3, 3, 3]), ([3, 9, 7], [3, 1, 5]), ([12, 2, 2], [5, 3, 3])]
)
@pytest.mark.parametrize('num_points', [1, 60, 400])
@pytest.mark.parametrize('shuffled', [True, False])
def test_the_pairs_are_those_of_spconv(shape, kernel_size, num_points, shuffled):
    spconv_kernel_map.WORKAROUND.remove()
    indices = voxels(shape, num_points, shuffled=shuffled)
    pairs, counts = submanifold_pairs(indices, shape, kernel_size)
    same, wanted_pairs, wanted_counts = from_spconv(indices, shape, kernel_size)
    assert torch.equal(same, indices)
    assert pairs.shape == wanted_pairs.shape
    assert pairs.dtype == wanted_pairs.dtype == counts.dtype == wanted_counts.dtype == torch.int32
    assert torch.equal(counts, wanted_counts)
    assert as_sets(pairs, counts) == as_sets(wanted_pairs, wanted_counts)


def test_voxels_that_occur_twice_are_left_to_spconv(monkeypatch):
    indices = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.int32)
    assert submanifold_pairs(indices, [3, 3, 3], [3, 3, 3]) is None
    spconv_kernel_map.WORKAROUND.remove()
    monkeypatch.setattr(ops, 'get_indice_pairs', lambda *args, **kwargs: 'spconv')
    spconv_kernel_map.WORKAROUND.apply()
    assert from_spconv(indices, [3, 3, 3], [3, 3, 3]) == 'spconv'
    spconv_kernel_map.WORKAROUND.remove()


@pytest.mark.parametrize(
    ('device', 'ksize', 'dilation', 'subm'),
    [('meta', [3], [1], True), ('cpu', [2], [1], True), ('cpu', [3], [2], True), ('cpu', [3], [1], False)],
)
def test_everything_else_is_left_to_spconv(monkeypatch, device, ksize, dilation, subm):
    spconv_kernel_map.WORKAROUND.remove()
    calls = []
    monkeypatch.setattr(ops, 'get_indice_pairs', lambda *args, **kwargs: calls.append((args, kwargs)))
    spconv_kernel_map.WORKAROUND.apply()
    arguments = (torch.zeros(1, 2, dtype=torch.int32, device=device), 1, [4], 'a', ksize, [1], [1], dilation, [0], subm)
    ops.get_indice_pairs(*arguments, True, num_out_act_bound=-1)
    assert calls == [((*arguments, True), dict(num_out_act_bound=-1))]
    spconv_kernel_map.WORKAROUND.remove()
