# SPDX-License-Identifier: Apache-2.0
"""semantic_transport: plain loop in float64, descent of the full objective, forms of the graph, bad input."""

import math

import pytest
import torch
from test_progressive_transport import log_probabilities, plain_scaling

from clusterplug.functional import knn_graph, progressive_transport, semantic_transport

OPTIONS = {'epsilon': 0.1, 'mass': 0.4, 'penalty': 1.0}


def features(n, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_of(graph):
    size = graph.indices.shape[-2]
    return torch.zeros(size, size, dtype=torch.float64).scatter_(1, graph.indices, graph.weights.double())


def test_equals_a_plain_loop():
    n, k, strength = 40, 4, 10.0
    scores, graph = log_probabilities(n, k, sharpness=5.0), knn_graph(features(n), 4, mode='heat', sigma=1.0)
    both = dense_of(graph)
    both = both + both.T
    plan = torch.full((n, k), 0.4 / (n * k), dtype=torch.float64)
    for _ in range(100):
        before, plan = plan, plain_scaling(scores + strength * both @ plan, 0.1, 0.4, 1.0, tol=1e-10)[0] / n
        if (plan - before).abs().max() * n < 1e-9:
            break
    found = semantic_transport(scores, graph=graph, strength=strength, tol=1e-12, **OPTIONS)
    torch.testing.assert_close(found, plan * n, atol=2e-5, rtol=0)
    usual = semantic_transport(scores, graph=graph, strength=strength, **OPTIONS)
    torch.testing.assert_close(usual, plan * n, atol=2e-3, rtol=0)
    assert float(found.sum()) == pytest.approx(0.4 * n)
    assert (found - progressive_transport(scores, **OPTIONS)).abs().max() > 0.1


def test_the_full_objective_never_rises():
    for seed in range(3):
        scores, x = log_probabilities(32, 4, seed, sharpness=4.0), features(32, seed)
        similar = (-torch.cdist(x, x).square() / 2).exp()  # positive semidefinite
        result = semantic_transport(
            scores, graph=similar, strength=20.0, inner_iters=60, tol=1e-9, **OPTIONS, full_output=True
        )
        assert len(result.objective) > 4
        assert (result.objective.diff() <= 1e-12).all()


def test_objective_is_that_of_a_plain_sum():
    n, k, strength = 20, 3, 5.0
    scores, similar = log_probabilities(n, k), torch.rand(n, n, generator=torch.Generator().manual_seed(0)).double()
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    result = semantic_transport(
        scores, graph=similar, strength=strength, prior=prior, full_output=True, max_iters=3, tol=0, **OPTIONS
    )
    q = result.plan / n
    rest, sizes = 1 / n - q.sum(1), q.sum(0)
    expected = -(q * scores).sum() - strength * (similar * (q @ q.T)).sum()
    expected += 0.1 * ((q * q.log()).sum() + (rest * rest.log()).sum())
    expected += (sizes * (sizes / (0.4 * prior)).log() - sizes + 0.4 * prior).sum()
    torch.testing.assert_close(result.objective[-1], expected, rtol=1e-9, atol=0)


def test_without_strength_it_is_progressive_transport():
    scores, graph = log_probabilities(40, 4), knn_graph(features(40), 3)
    expected = progressive_transport(scores, **OPTIONS)
    assert torch.equal(semantic_transport(scores, graph=graph, strength=0.0, **OPTIONS), expected)
    weak = semantic_transport(scores, graph=graph, strength=1e-9, **OPTIONS, full_output=True)
    torch.testing.assert_close(weak.plan, expected, atol=1e-6, rtol=0)
    # two to see that nothing moves; the rest has tighter inner problems
    assert int(weak.num_iters) <= 5
    assert bool(weak.converged)


def test_linked_rows_become_equal():
    scores = log_probabilities(20, 3, sharpness=2.0)
    scores[1] = scores[1].flip(0)
    similar = torch.zeros(20, 20, dtype=torch.float64)
    similar[:2, :2] = 1.0  # two identical samples
    plan = semantic_transport(scores, graph=similar, strength=200.0, max_iters=300, **OPTIONS)
    assert (plan[0] - plan[1]).abs().max() < 0.05
    alone = progressive_transport(scores, **OPTIONS)
    assert (plan[0] - plan[1]).abs().max() < (alone[0] - alone[1]).abs().max()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_every_form_of_a_graph(dtype):
    scores, graph = log_probabilities(40, 4).to(dtype), knn_graph(features(40), 3, mode='heat')
    dense = dense_of(graph).to(dtype)
    expected = semantic_transport(scores, graph=graph, strength=10.0, **OPTIONS)
    for form in (dense, dense.to_sparse_coo(), dense.to_sparse_csr(), tuple(graph)):
        found = semantic_transport(scores, graph=form, strength=10.0, **OPTIONS)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.dtype == dtype


def test_heads_share_a_graph_and_batches_have_their_own():
    scores = torch.stack([log_probabilities(30, 4, seed) for seed in range(2)])
    x = torch.stack([features(30, seed) for seed in range(2)])
    options = {**OPTIONS, 'strength': 8.0, 'tol': 0, 'max_iters': 8}
    shared, own = knn_graph(x[0], 3), knn_graph(x, 3)
    together = semantic_transport(scores, graph=shared, **options)
    apart = semantic_transport(scores, graph=own, **options)
    for number in range(2):
        alone = semantic_transport(scores[number], graph=shared, **options)
        torch.testing.assert_close(together[number], alone, atol=1e-9, rtol=0)
        alone = semantic_transport(scores[number], graph=knn_graph(x[number], 3), **options)
        torch.testing.assert_close(apart[number], alone, atol=1e-9, rtol=0)


def test_masked_rows_pull_nobody():
    scores, x = log_probabilities(30, 4), features(30)
    mask = torch.arange(30) < 20
    graph = knn_graph(x, 3, mask=mask)
    given = scores.masked_fill(~mask[:, None], math.nan)
    options = {**OPTIONS, 'strength': 8.0, 'tol': 0, 'max_iters': 8}
    plan = semantic_transport(given, graph=graph, mask=mask, **options)
    alone = semantic_transport(scores[:20], graph=knn_graph(x[:20], 3), **options)
    torch.testing.assert_close(plan[:20], alone, atol=1e-9, rtol=0)
    assert plan[20:].eq(0).all()
    masses = torch.tensor([0.4, 0.4], dtype=torch.float64)
    pair = semantic_transport(
        torch.stack([given, given]), graph=graph, mask=torch.stack([mask, mask]), full_output=True,
        **{**options, 'mass': masses},
    )  # fmt: skip
    torch.testing.assert_close(pair.plan[1], plan, atol=1e-9, rtol=0)
    assert pair.objective.shape == (8, 2)


def test_no_square_matrix_is_made():
    class NoSquare(torch.overrides.TorchFunctionMode):
        largest = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.layout == torch.strided:
                self.largest = max(self.largest, result.numel())
            return result

    n, k = 2000, 5
    scores, graph = log_probabilities(n, k), knn_graph(features(n), 5)
    with NoSquare() as mode:
        semantic_transport(scores, graph=graph, strength=100.0, max_iters=3, **OPTIONS)
    assert 0 < mode.largest <= 20 * n


def test_bad_input():
    scores, graph = log_probabilities(10, 3), knn_graph(features(10), 2)
    with pytest.raises(ValueError, match='strength must be'):
        semantic_transport(scores, graph=graph, strength=-1.0, **OPTIONS)
    with pytest.raises(ValueError, match='graph must be of the 10 rows'):
        semantic_transport(scores, graph=knn_graph(features(9), 2), strength=1.0, **OPTIONS)
    with pytest.raises(TypeError, match='graph must be a KNNGraph'):
        semantic_transport(scores, graph=None, strength=1.0, **OPTIONS)
    with pytest.raises(ValueError, match='graph must hold non-negative weights'):
        semantic_transport(scores, graph=-torch.ones(10, 10), strength=1.0, **OPTIONS)
    with pytest.raises(ValueError, match='scores must be finite'):
        semantic_transport(scores.log(), graph=graph, strength=1.0, **OPTIONS)
