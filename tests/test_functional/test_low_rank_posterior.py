# SPDX-License-Identifier: Apache-2.0
"""Posterior mean of a mixture of low-rank Gaussians: conditioning by hand, Tweedie, closed form, limits, odd input."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from clusterplug.datasets import MoLRG
from clusterplug.functional import (
    jacobian_svd,
    low_rank_posterior_mean,
    low_rank_responsibilities,
    numerical_rank,
    orthonormal_frame,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames(*shape, seed=0):
    return torch.linalg.qr(randn(*shape, seed=seed))[0]


def log_density(x, bases, s, g, log_weights):
    """Logarithm of the density of noisy points, and of each component, by full covariances."""
    n = x.shape[-1]
    parts = []
    for basis, log_weight in zip(bases, log_weights):
        covariance = s * s * basis @ basis.T + g * g * torch.eye(n, dtype=x.dtype)
        normal = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=x.dtype), covariance)
        parts.append(log_weight + normal.log_prob(x))
    parts = torch.stack(parts, -1)
    return parts.logsumexp(-1), parts


def by_conditioning(x, bases, s, g, log_weights):
    """E[x0 | x] of each Gaussian by its covariances, weighted by the densities."""
    weights = log_density(x, bases, s, g, log_weights)[1].softmax(-1)
    n, mean = x.shape[-1], 0
    for number, basis in enumerate(bases):
        clean = basis @ basis.T
        noisy = s * s * clean + g * g * torch.eye(n, dtype=x.dtype)
        mean = mean + weights[:, number, None] * (s * clean @ torch.linalg.solve(noisy, x.T)).T
    return mean


@pytest.mark.parametrize('dims', [[4, 4], [1, 4, 2]])
def test_explicit_conditioning(dims):
    bases = [frames(24, dim, seed=dim + number) for number, dim in enumerate(dims)]
    log_weights = torch.tensor([0.3, 0.7, 0.2], dtype=torch.float64)[: len(dims)].log()
    log_weights = log_weights - log_weights.logsumexp(0)
    x, s, g = randn(50, 24, seed=9), 0.7, 0.5
    expected = by_conditioning(x, bases, s, g, log_weights)
    got = low_rank_posterior_mean(x, bases, signal=s, noise=g, log_weights=log_weights)
    assert (got - expected).abs().max() < 1e-12
    # the constant of unnormalized weights does not matter, nor how levels are given
    each = {'signal': torch.full((50, 1), s, dtype=x.dtype), 'noise': torch.full((50,), g, dtype=x.dtype)}
    assert (low_rank_posterior_mean(x, bases, **each, log_weights=log_weights + 5) - expected).abs().max() < 1e-12
    if len(set(dims)) == 1:
        stacked = torch.stack(bases)
        same = low_rank_posterior_mean(x, stacked, signal=s, noise=g, log_weights=log_weights)
        assert (same - expected).abs().max() < 1e-12


def test_tweedie():
    bases, log_weights = [frames(24, 4), frames(24, 3, seed=1)], torch.tensor([0.4, 0.6]).double().log()
    x, s, g = randn(20, 24, seed=2).requires_grad_(), 0.7, 0.5
    score = torch.autograd.grad(log_density(x, bases, s, g, log_weights)[0].sum(), x)[0]
    mean = low_rank_posterior_mean(x, bases, signal=s, noise=g, log_weights=log_weights)
    assert ((s * mean - x) / g**2 - score).abs().max() < 1e-10


def closed_form(x, basis, s, g):
    c = s * s / (s * s + g * g)
    held = (x @ basis).square().sum(-1)
    return x.square().sum(-1) - c * (2 - c) * held + c * (1 - c) * basis.shape[1]


def test_one_component_in_closed_form():
    basis, s, g = frames(24, 4), 0.7, 0.5
    x = basis @ randn(4, seed=1) + 0.3 * randn(24, seed=2)
    noise = torch.randn(200_000, 24, generator=torch.Generator().manual_seed(0))
    noisy = s * x.float() + g * noise
    error = (low_rank_posterior_mean(noisy, basis[None].float(), signal=s, noise=g) - x.float()).square().sum(-1)
    assert abs(error.double().mean() / closed_form(x, basis, s, g) - 1) < 1e-3


def test_loss_differs_by_the_energy_of_the_projection():
    """The exact expectation: the error is quadratic in the noise, so 2 D symmetric points integrate it."""
    x, s, g, n = randn(30, 10, seed=3), 0.8, 0.6, 10
    points = math.sqrt(n) * torch.cat([torch.eye(n), -torch.eye(n)]).double()
    losses, held = [], []
    for seed in (0, 1):
        basis = frames(n, 3, seed=seed)
        noisy = s * x[:, None] + g * points
        clean = low_rank_posterior_mean(noisy, basis[None], signal=s, noise=g)
        losses.append((clean - x[:, None]).square().sum(-1).mean())
        held.append((x @ basis).square().sum() / len(x))
    c = s * s / (s * s + g * g)
    assert abs((losses[0] - losses[1]) - c * (2 - c) * (held[1] - held[0])) < 1e-12


def test_limits():
    bases, x = frames(2, 24, 4, seed=5), randn(40, 24, seed=6)
    s = 0.9
    energy = torch.einsum('nd,kdr->nkr', x, bases).square().sum(-1)
    best = bases[energy.argmax(-1)]
    projected = (best @ (best.mT @ x[..., None]))[..., 0]
    for g in (0.0, 1e-6, torch.zeros(40).double()):
        got = low_rank_posterior_mean(x, bases, signal=s, noise=g)
        torch.testing.assert_close(got, projected / s, rtol=1e-7, atol=1e-7)
        assert low_rank_responsibilities(x, bases, signal=s, noise=g).amax(-1).min() > 0.99
    log_weights = torch.tensor([0.25, 0.75]).double().log()
    g = 1e6
    wide = low_rank_posterior_mean(x, bases, signal=s, noise=g, log_weights=log_weights)
    mean = sum(p * (x @ basis @ basis.T) for p, basis in zip((0.25, 0.75), bases))
    torch.testing.assert_close(wide, s / (s * s + g * g) * mean, rtol=1e-6, atol=1e-18)
    nothing = low_rank_posterior_mean(x, bases, signal=0.0, noise=0.0)
    assert torch.equal(nothing, torch.zeros_like(x))


def test_rank_of_the_jacobian():
    """d at high signal, K d at low signal, for orthogonal subspaces."""
    data = MoLRG(24, [4, 4], 8, seed=1, dtype=torch.float64)
    for noise, expected in ((0.05, {4}), (0.3, {4}), (3.0, {8})):
        found = set()
        for row in (0, 12):
            x = data.x[row] + noise * randn(24, seed=row)
            fn = lambda x: low_rank_posterior_mean(x[None], data.bases, signal=1.0, noise=noise)[0]  # noqa: E731, B023
            found.add(int(numerical_rank(jacobian_svd(fn, x, 24).s)))
        assert found == expected, noise


def test_labels_instead_of_weights():
    bases, x = frames(2, 6, 2), randn(5, 6)
    labels = torch.tensor([0, 1, 1, 0, 1])
    got = low_rank_posterior_mean(x, bases, signal=0.6, noise=0.8, labels=labels)
    own = bases[labels]
    torch.testing.assert_close(got, 0.6 * (own @ (own.mT @ x[..., None]))[..., 0])


def test_responsibilities_by_hand():
    axes = torch.eye(2)[:, :, None]
    s, g = 1.0, 1.0  # phi = 1 / 4
    got = low_rank_responsibilities(torch.tensor([[2.0, 0.0]]), axes, signal=s, noise=g)
    assert got[0, 0] == pytest.approx(math.e / (math.e + 1), abs=1e-6)


def test_gradients():
    bases, x = randn(2, 5, 2), randn(3, 5, seed=1)

    def fn(x, free, signal, noise, log_weights):
        return low_rank_posterior_mean(x, orthonormal_frame(free), signal=signal, noise=noise, log_weights=log_weights)

    levels = torch.tensor([0.9, 0.5, 0.7]).double(), torch.tensor([0.3, 0.8, 0.7]).double()
    values = (x, bases, *levels, torch.tensor([0.1, -0.3]).double())
    assert gradcheck(fn, [each.clone().requires_grad_() for each in values])
    with torch.no_grad():
        batched = torch.func.vmap(lambda x: low_rank_posterior_mean(x, bases_of, signal=0.7, noise=0.5))
        bases_of = orthonormal_frame(bases)
        expected = low_rank_posterior_mean(x, bases_of, signal=0.7, noise=0.5)
        torch.testing.assert_close(batched(x[:, None])[:, 0], expected)


def test_rows_of_any_length_do_not_spoil_others():
    bases, x = frames(3, 8, 2).float(), randn(6, 8).float()
    plain = low_rank_posterior_mean(x, bases, signal=1.0, noise=0.01)
    x[1], x[2], x[3], x[4] = float('nan'), 1e30, 0.0, 1e-30
    got = low_rank_posterior_mean(x.requires_grad_(), bases, signal=1.0, noise=0.01)
    torch.testing.assert_close(got[[0, 5]], plain[[0, 5]])
    assert got[1].isnan().all()
    assert got[[2, 3, 4]].isfinite().all()
    assert (got[3] == 0).all()
    grad = torch.autograd.grad(got[[0, 2, 3, 5]].sum(), x)[0]
    assert grad[[0, 2, 3, 5]].isfinite().all()


def test_under_autocast_and_empty():
    bases, x = frames(2, 64, 4).float(), randn(10, 64).float()
    expected = low_rank_posterior_mean(x, bases, signal=0.7, noise=0.5)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(low_rank_posterior_mean(x, bases, signal=0.7, noise=0.5), expected)
    assert low_rank_posterior_mean(x[:0], bases, signal=0.7, noise=0.5).shape == (0, 64)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(bases=2 * torch.eye(4)[None, :, :2]), 'orthonormal columns'),
        (dict(bases=torch.eye(3)[None]), 'bases must have shape'),
        (dict(bases=[]), 'bases must be tensors'),
        (dict(bases=[torch.eye(3)]), 'bases must be tensors'),
        (dict(signal=-1.0), 'signal must be'),
        (dict(noise=float('nan')), 'noise must be'),
        (dict(noise=torch.tensor([-1.0, 1.0])), 'noise must be at least 0'),
        (dict(noise=torch.ones(3)), 'noise must be a number or broadcast'),
        (dict(log_weights=torch.zeros(3)), 'log_weights must be'),
        (dict(labels=torch.zeros(3).long()), 'labels must be'),
    ],
)
def test_bad_input(change, message):
    options = dict(bases=torch.eye(4)[None, :, :2], signal=1.0, noise=1.0) | change
    with pytest.raises(ValueError, match=message):
        low_rank_posterior_mean(torch.ones(2, 4), options.pop('bases'), **options)
    with pytest.raises(TypeError):
        low_rank_posterior_mean(torch.ones(2, 4).long(), torch.eye(4)[None], signal=1.0, noise=1.0)
