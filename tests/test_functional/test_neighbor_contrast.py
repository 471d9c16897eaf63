# SPDX-License-Identifier: Apache-2.0
"""Neighbor contrast: the authors' formula, closed forms, invariants, gradients in blocks, odd input."""

import math

import pytest
import torch

from clusterplug.functional import adjacency_power, knn_graph, neighbor_contrast


def random_graph(count, seed=0, share=0.1):
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.rand(count, count, generator=generator) < share).double()
    return torch.maximum(edges, edges.T).fill_diagonal_(0)


def influence(graph, order):
    return adjacency_power(graph, order, True, self_loops=True, normalize='row')


def authors(z, weights, tau):
    """get_feature_dis and Ncontrast of gayanku/SCGC, written out."""
    cosine = z @ z.T / (z.norm(dim=1)[:, None] * z.norm(dim=1))
    similar = (tau * cosine * (1 - torch.eye(len(z)))).exp()
    return -((similar * weights).sum(1) / similar.sum(1) + 1e-8).log().mean()


Z = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).double()
GRAPH = random_graph(50)


@pytest.mark.parametrize('tau', [0.25, 1.0, 2.25])
@pytest.mark.parametrize('block_size', [1, 7, 50, 999])
def test_formula_of_the_authors(tau, block_size):
    weights = influence(GRAPH, 3)
    expected = authors(Z, weights, tau)
    options = {'temperature': 1 / tau, 'block_size': block_size}
    for form in (weights, weights.to_sparse(), weights.to_sparse_csr()):
        torch.testing.assert_close(neighbor_contrast(Z, form, **options), expected, rtol=1e-12, atol=1e-12)
    z = Z.clone().requires_grad_()
    other = Z.clone().requires_grad_()
    neighbor_contrast(z, weights, **options).backward()
    authors(other, weights, tau).backward()
    torch.testing.assert_close(z.grad, other.grad)


def test_closed_forms():
    for order in (1, 3):
        weights = influence(GRAPH, order)
        torch.testing.assert_close(weights.sum(1), torch.full((50,), float(order)).double())
        flat = neighbor_contrast(Z, weights, temperature=1e9)
        assert float(flat) == pytest.approx(math.log(50) - math.log(order), abs=1e-6)
        same = neighbor_contrast(torch.ones(50, 4).double(), weights, temperature=0.5)
        own, tau = weights.diagonal(), 2.0
        expected = -((own + math.exp(tau) * (order - own)) / (1 + 49 * math.exp(tau))).log().mean()
        torch.testing.assert_close(same, expected, rtol=1e-6, atol=1e-6)
        bound = -weights.max().log()
        assert neighbor_contrast(Z, weights, temperature=0.1) >= bound
    torch.testing.assert_close(influence(GRAPH, 1), adjacency_power(GRAPH, 1, self_loops=True, normalize='row'))


def test_without_the_pair_with_itself():
    weights = influence(GRAPH, 2)
    cosine = torch.nn.functional.normalize(Z, dim=1)
    similar = (2 * cosine @ cosine.T).exp().fill_diagonal_(0)
    expected = -((similar * weights).sum(1) / similar.sum(1) + 1e-8).log().mean()
    torch.testing.assert_close(neighbor_contrast(Z, weights, temperature=0.5, include_self=False), expected)


@pytest.mark.parametrize('include_self', [True, False])
def test_gradient(include_self):
    z = Z[:12].clone().requires_grad_()
    weights = influence(random_graph(12, share=0.3), 2).to_sparse()
    assert torch.autograd.gradcheck(
        lambda z: neighbor_contrast(z, weights, temperature=0.4, include_self=include_self, block_size=5), z
    )


def test_invariants():
    weights = influence(GRAPH, 2)
    loss = neighbor_contrast(Z, weights, temperature=0.5)
    scale = torch.logspace(-10, 10, 50).double()[:, None]
    torch.testing.assert_close(neighbor_contrast(Z * scale, weights, temperature=0.5), loss)
    torch.testing.assert_close(neighbor_contrast(1e200 * Z, weights, temperature=0.5), loss)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(neighbor_contrast(Z[order], weights[order][:, order], temperature=0.5), loss)
    graph = knn_graph(Z, 4)
    dense = torch.zeros(50, 50).double().scatter_(1, graph.indices, graph.weights.double())
    torch.testing.assert_close(
        neighbor_contrast(Z, graph, temperature=0.5), neighbor_contrast(Z, dense, temperature=0.5)
    )


def test_cliques_draw_together_and_apart():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 16, generator=generator)
    same = (torch.arange(40)[:, None] // 20 == torch.arange(40) // 20).float()
    layers = [torch.randn(16, 32, generator=generator) / 4, torch.randn(32, 8, generator=generator) / 5]
    layers = [layer.requires_grad_() for layer in layers]
    optimizer = torch.optim.Adam(layers, lr=1e-2)
    for _ in range(200):
        z = (x @ layers[0]).relu() @ layers[1]
        optimizer.zero_grad()
        neighbor_contrast(z, same / 20, temperature=2.0).backward()
        optimizer.step()
    cosine = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)
    assert cosine[same > 0].mean() > 0.98
    assert cosine[same == 0].mean() < -0.98


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_types_under_autocast(dtype):
    z = Z.to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = neighbor_contrast(z, GRAPH.float(), temperature=0.05)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.float(), neighbor_contrast(z.float(), GRAPH.float(), temperature=0.05),
                               rtol=1e-2, atol=1e-2)  # fmt: skip


def test_odd_and_bad_input():
    z = Z.clone()
    z[3] = 0
    z.requires_grad_()
    loss = neighbor_contrast(z, torch.zeros(50, 50).double(), temperature=1.0)
    assert loss.item() == pytest.approx(-math.log(1e-8))
    neighbor_contrast(z, influence(GRAPH, 2), temperature=1.0).backward()
    assert z.grad.isfinite().all()
    assert neighbor_contrast(Z[:0], torch.zeros(0, 0), temperature=1.0) == 0
    assert neighbor_contrast(Z[:1], torch.ones(1, 1), temperature=1.0).abs() < 1e-6
    for call, error in [
        (lambda: neighbor_contrast(Z, GRAPH[:3], temperature=1), ValueError),
        (lambda: neighbor_contrast(Z, GRAPH, temperature=0), ValueError),
        (lambda: neighbor_contrast(Z, -GRAPH, temperature=1), ValueError),
        (lambda: neighbor_contrast(Z * torch.nan, GRAPH, temperature=1), ValueError),
        (lambda: neighbor_contrast(Z[None], GRAPH, temperature=1), ValueError),
        (lambda: neighbor_contrast(Z, [GRAPH], temperature=1), TypeError),
        (lambda: neighbor_contrast(Z, (torch.full((50, 2), 50), torch.ones(50, 2)), temperature=1), ValueError),
        (lambda: neighbor_contrast(Z.long(), GRAPH, temperature=1), TypeError),
    ]:  # fmt: skip
        with pytest.raises(error):
            call()
