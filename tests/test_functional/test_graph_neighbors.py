# SPDX-License-Identifier: Apache-2.0
"""knn_graph and affinity: plain loops, scikit-learn, masks, duplicates, types, bad input."""

import math

import pytest
import torch

from clusterplug.functional import affinity, knn_graph, pairwise_distances


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain_neighbors(x, count):
    rows = []
    for n, point in enumerate(x):
        others = sorted((float((point - other).norm()), m) for m, other in enumerate(x) if m != n)
        rows.append([m for _, m in others[:count]])
    return torch.tensor(rows)


def test_by_hand():
    graph = knn_graph(torch.tensor([[0.0], [1.0], [3.0]]), 2, mode='distance')
    assert graph.indices.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert graph.weights.tolist() == [[1, 3], [1, 2], [2, 3]]


@pytest.mark.parametrize('blocks', [256 * 2**20, 1])
def test_equals_plain_loop_in_any_blocks(blocks):
    x = randn(3, 23, 4, dtype=torch.float64)
    graph = knn_graph(x, 5, max_bytes=blocks)
    for number in range(3):
        assert torch.equal(graph.indices[number], plain_neighbors(x[number], 5))
    assert graph.weights.eq(1).all()


@pytest.mark.parametrize('count', [1, 2, 5])
def test_sets_that_exceed_a_cached_block_are_each_as_alone(count):
    x = randn(40, 90, 6)  # 40 x 90 x 90 distances are more than a megabyte
    found = knn_graph(x, count, mode='distance')
    for number in (0, 17, 39):
        alone = knn_graph(x[number], count, mode='distance')
        assert torch.equal(found.indices[number], alone.indices)
        torch.testing.assert_close(found.weights[number], alone.weights)
    assert torch.equal(found.indices[39], plain_neighbors(x[39], count))


def test_equals_scikit_learn():
    neighbors = pytest.importorskip('sklearn.neighbors')
    x = randn(200, 8)
    expected = neighbors.kneighbors_graph(x.numpy(), 6, mode='distance').toarray()
    graph = knn_graph(x, 6, mode='distance')
    found = torch.zeros(200, 200).scatter_(1, graph.indices, graph.weights)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


def test_heat_weights():
    x = randn(30, 3, dtype=torch.float64)
    graph, distance = knn_graph(x, 4, mode='heat', sigma=0.7), knn_graph(x, 4, mode='distance').weights
    torch.testing.assert_close(graph.weights, (-distance.square() / (2 * 0.49)).exp())
    local = knn_graph(x, 4, mode='heat')
    width = knn_graph(x, 7, mode='distance').weights[:, -1]
    expected = (-distance.square() / (width[:, None] * width[local.indices])).exp()
    torch.testing.assert_close(local.weights, expected)
    dense = affinity(x)
    torch.testing.assert_close(dense.gather(1, local.indices), local.weights)
    assert dense.diagonal().eq(0).all()
    assert torch.equal(dense, dense.mT)


def test_repeated_points_are_neighbors_and_never_oneself():
    x = torch.zeros(6, 2)
    graph = knn_graph(x, 3, mode='heat')
    assert (graph.indices != torch.arange(6)[:, None]).all()
    assert graph.weights.eq(1).all()
    assert affinity(x).sum() == 30


def test_masked_points_are_nobodys_neighbors():
    x, mask = randn(2, 12, 3), torch.ones(2, 12, dtype=torch.bool)
    mask[0, 4:] = False
    x[0, 5] = math.nan
    graph = knn_graph(x, 5, mask=mask)
    alone = knn_graph(x[:1, :4], 3)
    assert torch.equal(graph.indices[0, :4, :3], alone.indices[0])
    assert graph.weights[0, :4].tolist() == [[1, 1, 1, 0, 0]] * 4
    assert graph.weights[0, 4:].eq(0).all()
    assert graph.weights[1].eq(1).all()
    assert affinity(x, mask=mask)[0, 4:].eq(0).all()


def test_far_from_the_origin_and_narrow_types():
    x = randn(40, 6, dtype=torch.float64)
    expected = knn_graph(x, 3).indices
    assert torch.equal(knn_graph((x + 1000).float(), 3).indices, knn_graph((x + 1000).float().double(), 3).indices)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = knn_graph(x.to(dtype), 3, mode='distance')
        assert narrow.weights.dtype == torch.float32
        assert torch.equal(narrow.indices, knn_graph(x.to(dtype).double(), 3).indices)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(knn_graph(x.float(), 3).indices, expected)


def test_empty_batch():
    graph = knn_graph(torch.zeros(0, 5, 2), 3)
    assert graph.indices.shape == graph.weights.shape == (0, 5, 3)


@pytest.mark.parametrize(('options', 'error', 'message'), [
    ({'num_neighbors': 5}, ValueError, 'num_neighbors must be at most N - 1 = 4, got 5'),
    ({'num_neighbors': 0}, ValueError, 'num_neighbors must be at least 1'),
    ({'num_neighbors': 2, 'mode': 'knn'}, ValueError, 'mode must be one of'),
    ({'num_neighbors': 2, 'mode': 'heat', 'sigma': 0.0}, ValueError, 'sigma must be'),
    ({'num_neighbors': 2, 'mode': 'heat', 'sigma': 'auto'}, ValueError, 'sigma must be'),
    ({'num_neighbors': 2, 'metric': 'l7'}, ValueError, 'metric must be'),
])  # fmt: skip
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        knn_graph(randn(5, 2), **options)


def test_bad_points():
    x = randn(5, 2)
    x[3] = math.inf
    with pytest.raises(ValueError, match='x must be finite'):
        knn_graph(x, 2)
    with pytest.raises(TypeError, match='x must have a floating dtype'):
        knn_graph(torch.ones(5, 2, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match='sigma must be'):
        affinity(randn(5, 2), sigma=-1.0)


def test_memory_holds_no_square_matrix():
    x = randn(3000, 2)
    largest = 0
    original = torch.Tensor.topk

    def topk(self, *args, **options):
        nonlocal largest
        largest = max(largest, self.numel())
        return original(self, *args, **options)

    torch.Tensor.topk = topk
    try:
        knn_graph(x, 3, max_bytes=2**20)
    finally:
        torch.Tensor.topk = original
    assert 0 < largest < 3000 * 100


def test_distances_are_those_of_pairwise_distances():
    x = randn(20, 3)
    graph = knn_graph(x, 2, mode='distance', metric='manhattan')
    torch.testing.assert_close(graph.weights, pairwise_distances(x, metric='manhattan').gather(1, graph.indices))
