# SPDX-License-Identifier: Apache-2.0
"""Self-expression: closed form, trained form, structured norm, affinity of the largest coefficients."""

import pytest
import torch
from torch.autograd import gradcheck

from clusterplug.functional import clustering_accuracy, self_expression, spectral_clustering, top_coefficients
from clusterplug.losses import SelfExpressionLoss


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def subspaces(noise, seed=0, num_clusters=5, num_points=40, dim=3, width=64):
    frames = torch.linalg.qr(randn(num_clusters, width, dim, seed=seed))[0]
    x = (randn(num_clusters, num_points, dim, seed=seed + 1) @ frames.mT).flatten(0, 1)
    return x + noise * randn(*x.shape, seed=seed + 2), torch.arange(num_clusters).repeat_interleave(num_points)


def test_closed_form_is_the_minimum_and_its_transpose_is_not():
    layers, ridge = [randn(12, 5), randn(12, 3, seed=1)], 0.3

    def gradient(c):
        c = c.detach().requires_grad_()
        loss = sum((c @ h - h).square().sum() for h in layers) + ridge * c.square().sum()
        return torch.autograd.grad(loss, c)[0] * (1 - torch.eye(12))

    c = self_expression(layers, ridge=ridge)
    assert (c.diagonal() == 0).all()
    assert gradient(c).abs().max() < 1e-10
    assert gradient(c.mT).abs().max() > 1e-3
    joined = self_expression(torch.cat(layers, 1), ridge=ridge)
    torch.testing.assert_close(joined, c)
    assert gradcheck(lambda x: self_expression(x, ridge=ridge), layers[0].requires_grad_())


def test_zero_rows_and_scale():
    x = randn(10, 4)
    x[3] = 0
    c = self_expression(x, ridge=0.1)
    assert c[3].abs().max() == 0
    assert c[:, 3].abs().max() == 0
    torch.testing.assert_close(self_expression(1e6 * x, ridge=0.1e12), c)


@pytest.mark.parametrize(('noise', 'ridge'), [(0.0, 1e-3), (0.02, 0.3), (0.02, 1.0)])
def test_independent_subspaces_are_found(noise, ridge):
    for seed in range(3):
        x, labels = subspaces(noise, seed=10 * seed)
        affinity = top_coefficients(self_expression(x, ridge=ridge), 3)
        found = spectral_clustering(affinity, 5, affinity='precomputed').labels
        assert clustering_accuracy(labels, found) >= (0.98 if noise else 1)


def test_top_coefficients_by_hand():
    c = torch.tensor([[0.0, 3.0, 1.0, 1.0], [3.0, 0.0, -2.0, 0.5], [1.0, 2.0, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 3, 0, 0.5], [3, 0, 1, 0], [0, 1, 0, 0], [0.5, 0, 0, 0]])
    torch.testing.assert_close(top_coefficients(c, 1), expected)
    assert torch.equal(top_coefficients(c, 1), top_coefficients(-c.mT, 1))
    torch.testing.assert_close(top_coefficients(c, 4), c.abs())
    ties = top_coefficients(torch.ones(4, 4), 2)
    assert (ties == 1).all()  # all are as large as the second
    kept = top_coefficients(randn(20, 20), 5)
    torch.testing.assert_close(kept, kept.mT)
    assert ((kept > 0).sum(0) >= 5).all()


def test_shifted_laplacian_counts_the_components():
    affinity = torch.block_diag(*[torch.rand(5, 5, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    affinity = top_coefficients(affinity.double(), 5)
    degree = affinity.sum(1)
    shifted = torch.eye(15) + affinity / (degree[:, None] * degree).sqrt()
    values = torch.linalg.eigvalsh(shifted)
    assert values.min() > -1e-12
    assert ((values - 2).abs() < 1e-9).sum() == 3


def test_training_approaches_the_closed_form_without_the_diagonal():
    x, _ = subspaces(0.02, num_points=8, width=12)
    loss = SelfExpressionLoss(len(x)).double()
    start = float(loss([x]).detach())
    assert start == pytest.approx(float(x.square().sum()), rel=1e-4)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        value = loss([x]) + 0.3 * loss.coef.square().sum()
        value.backward()
        optimizer.step()
    closed = SelfExpressionLoss(len(x)).double()
    closed.solve_([x], 0.3)
    best = closed([x]) + 0.3 * closed.coef.square().sum()
    assert float(best.detach()) <= float(value.detach()) <= 1.05 * float(best.detach())
    assert (loss.coefficients.grad.diagonal() == 0).all()
    torch.testing.assert_close(loss.coefficients.diagonal(), torch.full((len(x),), 1e-8, dtype=torch.float64))


def test_structured_norm():
    loss = SelfExpressionLoss(6)
    loss.coefficients.data = randn(6, 6).float()
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    value = loss.structured_norm(labels)
    c = loss.coef.detach().abs()
    w = (c + c.T).sqrt()
    one_hot = torch.nn.functional.one_hot(labels).float()
    laplacian = torch.diag(w.sum(1)) - w
    torch.testing.assert_close(value, torch.trace(one_hot.T @ laplacian @ one_hot), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.structured_norm((labels + 1) % 3), value)
    gradient = torch.autograd.grad(value, loss.coefficients)[0]
    assert (gradient[labels[:, None] == labels] == 0).all()
    loss.coefficients.data.zero_()
    gradient = torch.autograd.grad(loss.structured_norm(labels), loss.coefficients)[0]
    assert gradient.isfinite().all()
    loss.coefficients.data = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))
    assert float(loss.structured_norm(torch.tensor([0, 0, 0, 1, 1, 1])).detach()) < 1e-4


def test_layers_weigh_equally_when_normalized_and_state_survives():
    layers = [randn(6, 4).float(), 100 * randn(6, 9, seed=1).float()]
    loss = SelfExpressionLoss(6, normalize_layers=True)
    assert float(loss(layers).detach()) == pytest.approx(2, rel=1e-5)
    other = SelfExpressionLoss(6)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.coefficients, loss.coefficients)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert loss.half()(layers).dtype == torch.float32
    assert loss.coefficients.dtype == torch.float32


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda: self_expression(randn(3, 2), ridge=0), 'ridge must be'),
        (lambda: self_expression([], ridge=1), 'at least one'),
        (lambda: self_expression([randn(3, 2), randn(4, 2)], ridge=1), 'samples of layers'),
        (lambda: self_expression(torch.full((3, 2), torch.nan), ridge=1), 'must be finite'),
        (lambda: top_coefficients(randn(3, 2), 1), 'must be square'),
        (lambda: top_coefficients(randn(3, 3), 4), 'k must be'),
        (lambda: SelfExpressionLoss(1), 'num_samples must be'),
        (lambda: SelfExpressionLoss(3)([randn(4, 2)]), r'must have shape \(3, p\)'),
        (lambda: SelfExpressionLoss(3)([]), 'at least one'),
        (lambda: SelfExpressionLoss(3).structured_norm(torch.zeros(4)), 'labels must have shape'),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
