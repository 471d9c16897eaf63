# SPDX-License-Identifier: Apache-2.0
"""Rate reduction and doubly stochastic membership: the card's values, a dense reference, gradients, memory."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import normalize, one_hot

from clusterplug.functional import (
    coding_rate,
    conditional_coding_rate,
    doubly_stochastic,
    orthonormal_frame,
    rate_reduction,
)
from clusterplug.losses import RateReductionLoss


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_rate(z, membership, eps2):
    """All matrices at once, LU, autograd."""
    d, total = z.shape[1], membership.sum(0)
    weighted = z.mT[None] * membership.mT[:, None]
    matrices = torch.eye(d, dtype=z.dtype) + (d / (total * eps2))[:, None, None] * (weighted @ z)
    return (total * torch.logdet(matrices)).sum() / len(z)


def code_of_the_follow_up(z, membership, eps2):
    """The loss of LeslieTrue/CPP as published: a factor 1/2, columns divided by their sum."""
    z, n, d = z.T, *z.shape
    total = torch.logdet(torch.eye(d, dtype=z.dtype) + d / (n * eps2) * z @ z.T) / 2
    sizes = membership.sum(0) + 1e-8
    parts = z[None] * membership.T[:, None]
    scale = d / (sizes * eps2)
    logs = torch.logdet(torch.eye(d, dtype=z.dtype) + scale[:, None, None] * (parts @ z.T))
    return -total + (sizes * logs).sum() / (2 * n)


@pytest.mark.parametrize(('n', 'd', 'k'), [(20, 5, 20), (6, 9, 4), (30, 4, 3), (1, 3, 1)])
def test_value_and_gradient_equal_the_dense_form(n, d, k):
    z = randn(n, d).requires_grad_()
    membership = torch.rand(n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    expected = dense_rate(z, membership, 0.3)
    gradients = torch.autograd.grad(expected, (z, membership))
    for options in ({}, {'num_neighbors': n}):
        rate = conditional_coding_rate(z, membership, eps2=0.3, **options)
        torch.testing.assert_close(rate, expected)
        torch.testing.assert_close(torch.autograd.grad(rate, (z, membership)), gradients)
    assert gradcheck(lambda z, m: rate_reduction(z, m, eps2=0.3), (z, membership))


def test_equals_twice_the_follow_up():
    z = normalize(randn(24, 6), dim=1)
    for membership in (
        doubly_stochastic((z @ z.T).abs(), epsilon=0.175, num_iters=3),  # columns that do not sum to 1
        doubly_stochastic((z @ z.T).abs(), epsilon=0.175, num_iters=60, symmetric=True),
    ):
        loss = RateReductionLoss(eps2=0.1)(z, membership)
        assert float(loss) == pytest.approx(2 * float(code_of_the_follow_up(z, membership, 0.1)), abs=1e-6)


def test_values_of_the_card():
    z = normalize(randn(40, 8), dim=1)
    uniform = torch.full((40, 40), 1 / 40, dtype=z.dtype)
    assert float(rate_reduction(z, uniform, eps2=0.1)) == pytest.approx(0, abs=1e-12)
    alone = conditional_coding_rate(z, torch.eye(40, dtype=z.dtype), eps2=0.1)
    assert float(alone) == pytest.approx(math.log(1 + 8 / 0.1), rel=1e-12)
    for seed in range(5):
        gamma = doubly_stochastic(randn(40, 40, seed=seed), epsilon=0.3, num_iters=200)
        assert float(rate_reduction(z, gamma, eps2=0.1)) >= 0


def test_invariances():
    z = normalize(randn(30, 6), dim=1)
    gamma = doubly_stochastic((z @ z.T).abs(), epsilon=0.175, num_iters=50, symmetric=True)
    plain = rate_reduction(z, gamma, eps2=0.1)
    turn, signs, order = orthonormal_frame(randn(6, 6, seed=1)), randn(30, 1, seed=2).sign(), torch.randperm(30)
    torch.testing.assert_close(rate_reduction(z @ turn, gamma, eps2=0.1), plain)
    torch.testing.assert_close(rate_reduction(z * signs, gamma, eps2=0.1), plain)
    torch.testing.assert_close(rate_reduction(z[order], gamma[order][:, order], eps2=0.1), plain)
    flipped = z[order] * signs
    again = doubly_stochastic((flipped @ flipped.T).abs(), epsilon=0.175, num_iters=50, symmetric=True)
    torch.testing.assert_close(again, gamma[order][:, order])


def test_sparse_form():
    z = randn(40, 16)
    labels = torch.arange(40) % 5
    hard = one_hot(labels, 5).double().requires_grad_()
    dense = conditional_coding_rate(z, hard, eps2=0.3)
    sparse = conditional_coding_rate(z, hard, eps2=0.3, num_neighbors=8)
    torch.testing.assert_close(sparse, dense)  # exact: 8 members each
    parts = [coding_rate(z[labels == k], eps2=0.3) / 5 for k in range(5)]
    torch.testing.assert_close(sparse, sum(parts))
    units = normalize(torch.cat([randn(30, 2) @ randn(2, 24, seed=s) for s in range(4)]), dim=1)
    gamma = doubly_stochastic((units @ units.T).abs(), epsilon=0.05, num_iters=50, symmetric=True)
    exact = conditional_coding_rate(units, gamma, eps2=0.1)
    near = conditional_coding_rate(units, gamma, eps2=0.1, num_neighbors=30, mass=0.95)
    assert near != exact
    assert float(near) == pytest.approx(float(exact), rel=0.02)
    # no column qualifies: all in full
    assert conditional_coding_rate(units, gamma, eps2=0.1, num_neighbors=2, mass=1.0) == exact


def test_parts_without_members_and_long_rows():
    z, membership = randn(10, 4).requires_grad_(), torch.zeros(10, 3, dtype=torch.float64)
    membership[:, 1] = 1
    membership.requires_grad_()
    rate = conditional_coding_rate(z, membership, eps2=0.3)
    torch.testing.assert_close(rate, coding_rate(z, eps2=0.3))
    gradients = torch.autograd.grad(rate, (z, membership))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[1][:, [0, 2]] == 0).all()
    long = randn(10, 4, dtype=torch.float32)
    long[3] = 1e6
    member = torch.rand(10, 3)
    exact = conditional_coding_rate(long.double(), member.double(), eps2=0.3)
    torch.testing.assert_close(conditional_coding_rate(long, member, eps2=0.3), exact.float())


def test_narrow_types_and_nan():
    z, membership = randn(12, 5).half(), torch.rand(12, 4).half()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rate = rate_reduction(z, membership, eps2=0.3)
    assert rate.dtype == torch.float16
    torch.testing.assert_close(rate, rate_reduction(z.float(), membership.float(), eps2=0.3).half())
    batch = randn(3, 12, 5)
    batch[1, 3] = torch.nan
    rates = rate_reduction(batch, membership.double().expand(3, 12, 4), eps2=0.3)
    assert rates.isnan().tolist() == [False, True, False]


def test_memory_of_a_full_batch():
    z = normalize(randn(1024, 128, dtype=torch.float32), dim=1).requires_grad_()
    gamma = doubly_stochastic((z @ z.T).detach().abs(), epsilon=0.175, num_iters=2).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(rate_reduction(z, gamma, eps2=0.1), (z, gamma))
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert 50e6 < peak <= 150e6


# doubly stochastic


@pytest.mark.parametrize('symmetric', [False, True])
def test_rows_and_columns_sum_to_one(symmetric):
    z = normalize(randn(64, 16), dim=1)
    gamma = doubly_stochastic((z @ z.T).abs(), epsilon=0.175, num_iters=40, symmetric=symmetric)
    for sums in (gamma.sum(-1), gamma.sum(-2)):
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
    torch.testing.assert_close(gamma, gamma.mT, rtol=0, atol=1e-6)
    assert not symmetric or torch.equal(gamma, gamma.mT)


def test_both_forms_agree_and_converge_as_measured():
    z = normalize(randn(64, 16), dim=1)
    kernel = (z @ z.T).abs()
    plain = doubly_stochastic(kernel, epsilon=0.175, num_iters=100)
    torch.testing.assert_close(doubly_stochastic(kernel, epsilon=0.175, num_iters=60, symmetric=True), plain)
    errors = [
        (doubly_stochastic(kernel, epsilon=0.175, num_iters=i, symmetric=True).sum(1) - 1).abs().max() for i in (5, 20)
    ]
    assert errors[0] < 2e-3
    assert errors[1] < 2e-6


def test_limits_of_epsilon():
    z = normalize(randn(20, 8), dim=1)
    kernel = (z @ z.T).abs()
    for symmetric in (False, True):
        wide = doubly_stochastic(kernel, epsilon=1e4, num_iters=20, symmetric=symmetric)
        assert (20 * wide - 1).abs().max() < 2e-4
        narrow = doubly_stochastic(kernel, epsilon=1e-3, num_iters=50, symmetric=symmetric)
        torch.testing.assert_close(narrow, torch.eye(20, dtype=z.dtype), rtol=0, atol=1e-6)


def test_kernels_that_are_not_symmetric():
    gamma = doubly_stochastic(randn(2, 15, 15), epsilon=0.5, num_iters=300)
    for sums in (gamma.sum(-1), gamma.sum(-2)):
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match='must be symmetric'):
        doubly_stochastic(randn(15, 15), epsilon=0.5, num_iters=3, symmetric=True)


def test_gradients_of_the_membership():
    kernel = randn(6, 6)
    assert gradcheck(lambda k: doubly_stochastic(k, epsilon=0.7, num_iters=4), kernel.requires_grad_())

    # of the fixed point: exact at convergence
    def fixed_point(k):
        return doubly_stochastic(k + k.mT, epsilon=0.9, num_iters=200, symmetric=True)

    assert gradcheck(fixed_point, kernel.requires_grad_())


def test_mass_within_blocks_of_ideal_subspaces():
    for dim, least in ((2, 0.96), (3, 0.93), (5, 0.88)):
        frames = orthonormal_frame(randn(32, 4 * dim)).unflatten(1, (4, dim)).transpose(0, 1)
        z = normalize((randn(4, 64, dim, seed=1) @ frames.mT).flatten(0, 1) + 0.01 * randn(256, 32, seed=2), dim=1)
        labels = torch.arange(4).repeat_interleave(64)
        same = labels[:, None] == labels
        kernel = (z @ z.T).abs()
        for epsilon, share in ((0.175, least), (0.1, 0.995)):
            gamma = doubly_stochastic(kernel, epsilon=epsilon, num_iters=50, symmetric=True)
            assert float(gamma[same].sum() / 256) > share


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda: rate_reduction(torch.randn(3, 2), torch.rand(4, 3), eps2=0.1), 'membership must have shape'),
        (lambda: rate_reduction(torch.randn(3, 2), -torch.rand(3, 3), eps2=0.1), 'not negative'),
        (lambda: rate_reduction(torch.randn(3, 2), torch.rand(3, 3), eps2=0.0), 'eps2 must be'),
        (lambda: conditional_coding_rate(torch.randn(3, 2), torch.rand(3, 3), eps2=1, mass=0), 'mass must be'),
        (lambda: conditional_coding_rate(torch.randn(3, 2), torch.rand(3, 3), eps2=1, num_neighbors=0), 'num_neigh'),
        (lambda: doubly_stochastic(torch.randn(3, 2), epsilon=1, num_iters=2), 'must be square'),
        (lambda: doubly_stochastic(torch.randn(3, 3), epsilon=0, num_iters=2), 'epsilon must be'),
        (lambda: RateReductionLoss(eps2=-1), 'eps2 must be'),
        (lambda: RateReductionLoss(gamma=-1), 'gamma must be'),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_loss_weighs_the_parts():
    z, membership = normalize(randn(12, 5), dim=1), one_hot(torch.arange(12) % 3).double()
    whole, parts = coding_rate(z, eps2=0.2), conditional_coding_rate(z, membership, eps2=0.2)
    torch.testing.assert_close(RateReductionLoss(eps2=0.2, gamma=0.5)(z, membership), -(whole - 0.5 * parts))
