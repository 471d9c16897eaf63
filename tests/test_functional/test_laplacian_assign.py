# SPDX-License-Identifier: Apache-2.0
"""laplacian_assign: plain loop, descent, limits, known labels, batches, oscillation, bad input."""

import math

import pytest
import torch

from clusterplug.functional import knn_graph, laplacian_assign


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_of(graph):
    size = graph.indices.shape[-2]
    return torch.zeros(size, size, dtype=torch.float64).scatter_(1, graph.indices, graph.weights.double())


def plain_loop(cost, graph, strength, fixed=None, iterations=600):
    """Row by row; known rows are set again after every iteration."""
    z = torch.stack([(-row).softmax(0) for row in cost])
    for number in range(iterations + 1):
        if number:
            pulled = [strength * (graph[p, :, None] * z).sum(0) for p in range(len(z))]
            z = torch.stack([(pulled[p] - cost[p]).softmax(0) for p in range(len(z))])
        for p, label in enumerate(fixed if fixed is not None else []):
            if label >= 0:
                z[p] = torch.eye(cost.shape[1], dtype=torch.float64)[label]
    return z


def test_equals_a_plain_loop_in_every_form():
    cost, graph = randn(15, 3).abs(), knn_graph(randn(15, 2, seed=1), 2)
    fixed = torch.full((15,), -1)
    fixed[:3] = torch.arange(3)
    expected = plain_loop(cost, dense_of(graph), 0.7, fixed.tolist(), 60)
    dense = dense_of(graph)
    for form in (graph, dense, dense.to_sparse_coo(), dense.to_sparse_csr()):
        found = laplacian_assign(cost, form, strength=0.7, fixed=fixed, tol=1e-14)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.equal(found[:3], torch.eye(3, dtype=torch.float64))
    free = laplacian_assign(cost, graph, strength=0.7, tol=1e-14)
    torch.testing.assert_close(free, plain_loop(cost, dense, 0.7, None, 60), atol=1e-6, rtol=0)


def test_without_a_graph_it_is_a_softmax():
    cost = randn(8, 3)
    result = laplacian_assign(cost, torch.zeros(8, 8), strength=2.0, full_output=True)
    torch.testing.assert_close(result.memberships, (-cost).softmax(1))
    assert int(result.num_iters) <= 3
    torch.testing.assert_close(laplacian_assign(cost, torch.ones(8, 8), strength=0.0), (-cost).softmax(1))


@pytest.mark.parametrize('strength', [0.7, 1.5, 4.0])
def test_energy_never_rises_on_a_shifted_symmetric_graph(strength):
    cost = randn(100, 20, 4).abs()
    graph = knn_graph(randn(100, 20, 3, seed=1), 3)
    energies = torch.stack([
        laplacian_assign(cost, graph, strength=strength, concave=True, num_iters=count, tol=0, full_output=True).energy
        for count in (1, 2, 3, 4, 6, 9, 15)
    ])  # fmt: skip
    assert (energies.diff(dim=0) <= 1e-9).all()


def test_concave_does_not_oscillate():
    # two points that only look at each other and prefer different classes swap for ever
    cost = torch.tensor([[0.0, 0.1], [0.1, 0.0]], dtype=torch.float64)
    pair = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    start = {'strength': 50.0, 'tol': 0.0, 'full_output': True}
    swapping = [laplacian_assign(cost, pair, num_iters=count, **start).memberships for count in (100, 101)]
    assert (swapping[0] - swapping[1]).abs().max() > 0.9
    settled = [laplacian_assign(cost, pair, concave=True, num_iters=count, **start).memberships for count in (100, 101)]
    torch.testing.assert_close(settled[0], settled[1])


def test_strong_graphs_spread_labels_and_leave_isolated_points():
    line = torch.arange(10)
    indices = torch.stack([(line - 1).clamp(min=0), (line + 1).clamp(max=8)], 1)
    weights = torch.ones(10, 2, dtype=torch.float64)
    weights[9] = 0.0  # isolated, and nobody looks at it
    indices[8] = 7
    fixed = torch.full((10,), -1)
    fixed[0] = 1
    cost = torch.zeros(10, 2, dtype=torch.float64)
    z = laplacian_assign(cost, (indices, weights), strength=100.0, fixed=fixed)
    assert (z[:9].argmax(1) == 1).all()
    torch.testing.assert_close(z[9], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_one_far_point_does_not_stop_the_others():
    cost, graph = randn(12, 3), knn_graph(randn(12, 2, seed=1), 2)
    far = cost.clone()
    far[5] += 1e9
    torch.testing.assert_close(
        laplacian_assign(far, graph, strength=1.0), laplacian_assign(cost, graph, strength=1.0), atol=1e-6, rtol=0
    )
    z = (-cost).softmax(1)
    energy = laplacian_assign(cost, graph, strength=0.0, full_output=True).energy
    torch.testing.assert_close(energy, (z * z.log() + z * cost).sum())


def test_equivariance():
    cost, x = randn(12, 3), randn(12, 2, seed=1)
    order, classes = torch.randperm(12, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1])
    plain = laplacian_assign(cost, knn_graph(x, 2), strength=1.0)
    moved = laplacian_assign(cost[order][:, classes], knn_graph(x[order], 2), strength=1.0)
    torch.testing.assert_close(moved, plain[order][:, classes])


def test_a_batch_is_its_problems():
    cost, x = randn(4, 12, 3), randn(4, 12, 2, seed=1)
    fixed = torch.full((4, 12), -1)
    fixed[:, :3] = torch.arange(3)
    for concave in (False, True):
        options = {'strength': 1.5, 'concave': concave, 'full_output': True}
        together = laplacian_assign(cost, knn_graph(x, 2), fixed=fixed, **options)
        for number in range(4):
            alone = laplacian_assign(cost[number], knn_graph(x[number], 2), fixed=fixed[number], **options)
            torch.testing.assert_close(together.memberships[number], alone.memberships)
            assert together.num_iters[number] == alone.num_iters
    assert laplacian_assign(cost[:0], knn_graph(x[:0], 2), strength=1.0).shape == (0, 12, 3)


@pytest.mark.parametrize('num_iters', [1, 3, 600])
def test_problems_leave_a_batch_as_they_are(num_iters):
    # the batch of lists drops what has stopped, the same graph as dense matrices keeps it
    cost = randn(40, 12, 3) * torch.logspace(-2, 1, 40, dtype=torch.float64)[:, None, None]
    graph = knn_graph(randn(40, 12, 2, seed=1), 2, mode='distance')
    dense = torch.zeros(40, 12, 12, dtype=torch.float64).scatter_(2, graph.indices, graph.weights)
    fixed = torch.full((40, 12), -1)
    fixed[:, 0] = 2
    options = {'strength': 0.9, 'fixed': fixed, 'num_iters': num_iters, 'full_output': True}
    lists, matrices = laplacian_assign(cost, graph, **options), laplacian_assign(cost, dense, **options)
    for mine, other in zip(lists, matrices, strict=True):
        torch.testing.assert_close(mine, other)
    z = lists.memberships
    pulled = dense @ z
    energy = (torch.xlogy(z, z) + z * (cost - 0.45 * pulled)).sum((1, 2))
    torch.testing.assert_close(lists.energy, energy)
    if num_iters == 600:
        assert len(lists.num_iters.unique()) > 3
    assert (z[:, 0] == torch.tensor([0.0, 0.0, 1.0])).all()


@pytest.mark.parametrize('lead', [(), (3,), (2, 2)])
def test_tolerance_zero_runs_all_iterations(lead):
    cost = randn(*lead, 9, 3, dtype=torch.float32)
    graph = knn_graph(randn(*lead, 9, 2, seed=1), 2)
    found = laplacian_assign(cost, graph, strength=0.1, tol=0, num_iters=77, full_output=True)
    assert found.num_iters.tolist() == torch.full(lead, 77).tolist()
    weighted = type(graph)(graph.indices, 0.5 * graph.weights)  # weights that are all 1 are skipped, these are not
    expected = laplacian_assign(cost, weighted, strength=0.2)
    torch.testing.assert_close(laplacian_assign(cost, graph, strength=0.1), expected)


def test_types():
    cost, graph = randn(12, 3, dtype=torch.float32), knn_graph(randn(12, 2), 2)
    exact = laplacian_assign(cost.half().double(), graph, strength=1.0)
    with torch.autocast('cpu', torch.bfloat16):
        narrow = laplacian_assign(cost.half(), graph, strength=1.0)
    assert narrow.dtype == torch.float16
    torch.testing.assert_close(narrow.double(), exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize(('change', 'error', 'message'), [
    ({'strength': -0.1}, ValueError, 'strength must be'), ({'num_iters': 0}, ValueError, 'num_iters must be'),
    ({'fixed': torch.zeros(6)}, TypeError, 'fixed must be an int64'),
    ({'fixed': torch.full((6,), 3)}, ValueError, 'fixed must hold classes'),
    ({'fixed': torch.full((6,), -2)}, ValueError, 'fixed must hold classes'),
    ({'fixed': torch.zeros(5, dtype=torch.int64)}, ValueError, 'fixed must have shape'),
    ({'graph': torch.ones(5, 5)}, ValueError, 'graph must be of the 6 points'),
    ({'distances': torch.full((6, 3), math.nan)}, ValueError, 'distances must be finite'),
])  # fmt: skip
def test_bad_input(change, error, message):
    options = {'distances': randn(6, 3), 'graph': torch.ones(6, 6), 'strength': 1.0, **change}
    with pytest.raises(error, match=message):
        laplacian_assign(options.pop('distances'), options.pop('graph'), **options)
