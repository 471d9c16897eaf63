# SPDX-License-Identifier: Apache-2.0
"""concrete_mask: probabilities, limits, the density of torch's distribution, gradients."""

import pytest
import torch

from clusterplug.functional import concrete_mask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('logit', [-2.0, 0.0, 1.5])
def test_share_above_a_half_is_the_probability(logit):
    logits = torch.full((100_000,), logit)
    mask = concrete_mask(logits, 0.5, seeded())
    torch.testing.assert_close((mask > 0.5).double().mean(), logits[0].sigmoid().double(), rtol=0, atol=0.005)


def test_limits_of_the_temperature():
    logits = torch.randn(1000, generator=seeded(1))
    cold = concrete_mask(logits, 1e-5, seeded())
    assert torch.minimum(cold, 1 - cold).max() < 1e-3
    assert (concrete_mask(logits, 1e6, seeded()) - 0.5).abs().max() < 1e-4


def test_distribution_is_that_of_torch():
    mask = concrete_mask(torch.full((100_000,), 0.7), 0.5, seeded())
    reference = torch.distributions.RelaxedBernoulli(torch.tensor(0.5), logits=torch.tensor(0.7))
    grid = torch.linspace(0.005, 0.995, 199)
    density = reference.log_prob(grid).exp()
    share = torch.cumulative_trapezoid(density, grid)
    found = torch.stack([((mask > grid[0]) & (mask <= edge)).float().mean() for edge in grid[1:]])
    assert (found - share).abs().max() < 0.02


def test_gradient_by_hand_and_by_differences():
    logits = torch.randn(5, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: concrete_mask(x, 0.7, seeded()), logits)
    mask = concrete_mask(logits, 0.7, seeded())
    torch.testing.assert_close(torch.autograd.grad(mask.sum(), logits)[0], mask * (1 - mask) / 0.7)


def test_infinite_logits_and_types():
    logits = torch.tensor([-torch.inf, torch.inf, 0.0])
    assert concrete_mask(logits, 0.5, seeded())[:2].tolist() == [0.0, 1.0]
    assert concrete_mask(logits.bfloat16(), 0.5, seeded()).dtype == torch.bfloat16
    assert concrete_mask(torch.zeros(0, 3), 0.5).shape == (0, 3)
    assert torch.equal(concrete_mask(logits, 0.5, seeded(3)), concrete_mask(logits, 0.5, seeded(3)))
    assert concrete_mask(torch.zeros(1 << 20), 0.5, seeded()).isfinite().all()


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda: concrete_mask(torch.zeros(2), 0.0), ValueError, 'temperature'),
        (lambda: concrete_mask(torch.zeros(2).long(), 0.5), TypeError, 'floating'),
        (lambda: concrete_mask(torch.zeros(2), 0.5, 3), TypeError, 'Generator'),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
