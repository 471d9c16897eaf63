# SPDX-License-Identifier: Apache-2.0
"""Weights from likelihoods and from distances: the tables of the papers, limits, types, bad input."""

import math

import pytest
import torch

from clusterplug.functional import distance_weights, likelihood_weights

P = torch.tensor([0, 0.01, 0.1, 0.25, 0.5, 1], dtype=torch.float64)


@pytest.mark.parametrize(
    ('eta', 'gamma', 'expected'),
    [
        (0.5, 5, [1, 0.9673, 0.7270, 0.4915, 0.3542, 0.3333]),
        (1, 5, [1, 0.9755, 0.7952, 0.6187, 0.5156, 0.5]),
        (0.3, 2, [1, 0.9847, 0.8538, 0.6635, 0.4231, 0.2308]),
        (0, 5, [1, 0.99**5, 0.9**5, 0.75**5, 0.03125, 0]),
    ],
)
def test_table(eta, gamma, expected):
    found = likelihood_weights(P, eta=eta, gamma=gamma)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-5)


def test_limits():
    p = torch.linspace(0, 1, 1001)
    for eta, gamma in ((0.0, 0.5), (0.5, 5.0), (3.0, 1.0)):
        weights = likelihood_weights(p, eta=eta, gamma=gamma)
        assert (weights.diff() <= 0).all()
        assert weights[0] == 1
        assert weights[-1] == pytest.approx(eta / (eta + 1))
    for eta in (0.0, 0.3, 0.7, 1e6):
        assert torch.equal(likelihood_weights(p, eta=eta, gamma=0), torch.ones_like(p))  # the baseline, bit for bit
    torch.testing.assert_close(likelihood_weights(p, eta=1e9, gamma=5), torch.ones_like(p))


def test_types_and_gradient():
    p = torch.rand(4, requires_grad=True)
    assert not likelihood_weights(p, eta=0.5, gamma=5).requires_grad
    for dtype in (torch.half, torch.bfloat16, torch.double):
        found = likelihood_weights(P.to(dtype), eta=0.5, gamma=5)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), likelihood_weights(P, eta=0.5, gamma=5), atol=0.01, rtol=0)
    assert likelihood_weights(torch.empty(0), eta=1, gamma=1).shape == (0,)


@pytest.mark.parametrize('p', [[-0.1], [1.1], [torch.nan], [0.5, torch.inf]])
def test_values_that_are_no_likelihoods(p):
    with pytest.raises(ValueError, match='from 0 to 1'):
        likelihood_weights(torch.tensor(p), eta=0.5, gamma=5)


def test_bad_options():
    with pytest.raises(TypeError, match='floating'):
        likelihood_weights(torch.tensor([1]), eta=0.5, gamma=5)
    with pytest.raises(ValueError, match='eta'):
        likelihood_weights(P, eta=-1, gamma=5)
    with pytest.raises(ValueError, match='gamma'):
        likelihood_weights(P, eta=1, gamma=-1)


@pytest.mark.parametrize('dim', [2, 3, 16, 512])
def test_distance_weights_are_inverse_to_the_density(dim):
    d = torch.tensor([0.2, 0.5, 0.8, 1.1, 1.39, 1.41, 2.0], dtype=torch.float64)
    found = distance_weights(d, dim)

    def log_inverse(x):
        return (2 - dim) * math.log(x) - (dim - 3) / 2 * math.log(1 - x * x / 4)

    logs = torch.tensor([log_inverse(x) for x in (0.5, 0.5, 0.8, 1.1, 1.39)], dtype=torch.float64)
    torch.testing.assert_close(found[:5], logs.softmax(0))
    assert (found[5:] == 0).all()
    torch.testing.assert_close(distance_weights(d.float(), dim).double(), found, rtol=1e-4, atol=1e-6)


def test_distance_weights_of_odd_rows():
    d = torch.tensor([[1.0, torch.nan, 1.2], [1.5, 1.6, 2.0], [0.0, 0.0, 0.0]])
    found = distance_weights(d, 8)
    assert found[0, 1] == 0
    torch.testing.assert_close(found.sum(1), torch.tensor([1.0, 0.0, 1.0]))
    masked = distance_weights(d, 8, mask=torch.tensor([True, True, False]).expand(3, 3))
    assert masked[0].tolist() == [1.0, 0.0, 0.0]
    assert distance_weights(torch.empty(2, 0), 8).shape == (2, 0)
    with pytest.raises(ValueError, match='max_distance'):
        distance_weights(d, 8, max_distance=2.0)
