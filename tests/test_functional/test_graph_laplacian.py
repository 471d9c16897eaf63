# SPDX-License-Identifier: Apache-2.0
"""Laplacian, embedding and powers of graphs: scipy, dense forms, components, residuals, bad input."""

import math

import pytest
import torch

from clusterplug.functional import (
    adjacency_power,
    knn_graph,
    normalized_laplacian,
    spectral_embedding,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_of(graph):
    size = graph.indices.shape[-2]
    return torch.zeros(size, size, dtype=graph.weights.dtype).scatter_(1, graph.indices, graph.weights)


def forms(dense):
    """The same graph as dense, COO and CSR matrix."""
    return dense, dense.to_sparse_coo(), dense.to_sparse_csr()


def test_laplacian_equals_scipy_in_every_form():
    csgraph = pytest.importorskip('scipy.sparse.csgraph')
    graph = knn_graph(randn(40, 3), 5, mode='heat')
    dense = dense_of(graph)
    dense[7], dense[:, 7] = 0, 0  # a point without edges
    both = (dense + dense.T) / 2
    expected = torch.from_numpy(csgraph.laplacian(both.numpy(), normed=True))
    for form in forms(dense):
        found = normalized_laplacian(form)
        torch.testing.assert_close(found.to_dense(), expected)
    walk = normalized_laplacian(dense, kind='random_walk')
    others = torch.arange(40) != 7
    torch.testing.assert_close(walk.sum(1), torch.zeros(40, dtype=torch.float64), atol=1e-12, rtol=0)
    assert walk.diagonal()[others].eq(1).all()
    assert walk[7].eq(0).all()
    torch.testing.assert_close(normalized_laplacian(graph).to_dense(), normalized_laplacian(dense_of(graph)))


def test_a_batch_of_lists_is_one_block_diagonal_matrix():
    graph = knn_graph(randn(2, 9, 2), 3)
    found = normalized_laplacian(graph).to_dense()
    assert found[:9, 9:].eq(0).all()
    one = knn_graph(randn(2, 9, 2)[1], 3)
    torch.testing.assert_close(found[9:, 9:], normalized_laplacian(one).to_dense())


@pytest.mark.parametrize('solver', ['dense', 'eigsh', 'lobpcg', 'auto'])
def test_embedding_has_small_residuals_and_the_true_eigenvalues(solver):
    graph = knn_graph(randn(300, 2), 8, mode='heat')
    laplacian = normalized_laplacian(graph).to_dense()
    expected = torch.linalg.eigvalsh(laplacian)[1:5]
    for form in (graph, *forms(dense_of(graph))):
        vectors, values = spectral_embedding(form, 4, solver=solver, full_output=True)
        torch.testing.assert_close(values, expected, atol=1e-8, rtol=1e-6)
        assert (laplacian @ vectors - vectors * values).norm(dim=0).max() < 1e-6
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_embedding_separates_parts_and_counts_them():
    x = torch.cat([randn(20, 2), randn(25, 2) + 100, randn(30, 2) - 100])
    graph = knn_graph(x, 5)
    vectors, values = spectral_embedding(graph, 4, drop_first=False, full_output=True)
    assert values[:3].abs().max() < 1e-9
    assert values[3] > 1e-3
    parts = torch.arange(3).repeat_interleave(torch.tensor([20, 25, 30]))
    for part in range(3):  # constant up to the square root of the degree on each part
        scaled = vectors[:, :3] / ((dense_of(graph) + dense_of(graph).T).sum(1).sqrt()[:, None])
        torch.testing.assert_close(scaled[parts == part].std(0), torch.zeros(3, dtype=torch.float64), atol=1e-8, rtol=0)


def test_large_graphs_take_a_sparse_solver():
    x = torch.cat([randn(900, 2), randn(900, 2, seed=1) + 20]).float()
    vectors, values = spectral_embedding(knn_graph(x, 6), 1, full_output=True)
    assert vectors.dtype == torch.float32
    assert values.abs().max() < 1e-5


def test_solver_by_name_warns_where_it_did_not_converge(monkeypatch):
    from clusterplug.functional.graph import laplacian

    wrong = {
        'eigsh': lambda matrix, count: (
            torch.eye(300, count, dtype=matrix.dtype),
            torch.ones(count, dtype=matrix.dtype),
        )
    }
    monkeypatch.setitem(laplacian._SOLVE, 'eigsh', wrong['eigsh'])
    graph = knn_graph(randn(300, 2), 5)
    with pytest.warns(UserWarning, match='did not converge'):
        spectral_embedding(graph, 3, solver='eigsh')
    monkeypatch.setattr(laplacian, '_DENSE_POINTS', 10)
    exact = spectral_embedding(graph, 3, solver='dense', full_output=True).values
    torch.testing.assert_close(spectral_embedding(graph, 3, full_output=True).values, exact, atol=1e-8, rtol=1e-6)


def test_powers_by_hand_and_by_products():
    ring = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    for form in forms(ring):
        assert torch.equal(adjacency_power(form, 3).to_dense(), torch.eye(3))
        assert torch.equal(adjacency_power(form, 3, True).to_dense(), torch.ones(3, 3))
    graph = knn_graph(randn(30, 2), 4)
    walk = dense_of(graph) + torch.eye(30, dtype=torch.float64)
    walk = walk / walk.sum(1, keepdim=True)
    expected = walk + walk @ walk + walk @ walk @ walk
    for form in (graph, *forms(dense_of(graph))):
        found = adjacency_power(form, 3, True, self_loops=True, normalize='row').to_dense()
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.full((30,), 3.0, dtype=torch.float64))


def test_the_power_of_one_is_a_copy():
    matrix = torch.eye(3)
    adjacency_power(matrix, 1).add_(1)
    assert torch.equal(matrix, torch.eye(3))


def test_batches_of_dense_graphs():
    x = randn(2, 5, 5).abs()
    torch.testing.assert_close(adjacency_power(x, 2)[1], x[1] @ x[1])
    torch.testing.assert_close(normalized_laplacian(x)[1], normalized_laplacian(x[1]))
    assert spectral_embedding(x, 2).shape == (2, 5, 2)


@pytest.mark.parametrize('function', [normalized_laplacian, lambda g: spectral_embedding(g, 1)])
def test_bad_graphs(function):
    with pytest.raises(TypeError, match='graph must be a KNNGraph'):
        function([1, 2])
    with pytest.raises(ValueError, match='graph must be square'):
        function(torch.ones(3, 4))
    with pytest.raises(ValueError, match='non-negative'):
        function(-torch.ones(3, 3))
    with pytest.raises(ValueError, match='finite'):
        function(torch.full((3, 3), math.nan))
    with pytest.raises(ValueError, match='must lie in 0'):
        function((torch.tensor([[1], [2], [3]]), torch.ones(3, 1)))
    with pytest.raises(ValueError, match='of one shape'):
        function((torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 2)))
    with pytest.raises(TypeError, match='int64'):
        function((torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)))


def test_bad_options():
    graph = torch.ones(4, 4)
    with pytest.raises(ValueError, match='num_components must be between 1 and 3'):
        spectral_embedding(graph, 4)
    with pytest.raises(ValueError, match='solver must be one of'):
        spectral_embedding(graph, 1, solver='svd')
    with pytest.raises(ValueError, match="solver must be 'dense' or 'auto'"):
        spectral_embedding(graph, 1, solver='lobpcg')
    with pytest.raises(ValueError, match='one problem'):
        spectral_embedding(knn_graph(randn(2, 9, 2), 3), 1)
    with pytest.raises(ValueError, match='kind must be'):
        normalized_laplacian(graph, kind='none')
    with pytest.raises(ValueError, match='order must be at least 1'):
        adjacency_power(graph, 0)
    with pytest.raises(ValueError, match="normalize must be one of 'row' or None"):
        adjacency_power(graph, 1, normalize='column')
