# SPDX-License-Identifier: Apache-2.0
"""Singular values of Jacobians against the full one, passes, adaptive rank, masks, a real denoiser, odd functions."""

import importlib.util

import pytest
import torch
from torch import nn

import clusterplug.functional.subspace.jacobian as module
from clusterplug.functional import jacobian_residual, jacobian_svd, numerical_rank


def network(sizes=(64, 128, 64), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for before, after in zip(sizes[:-1], sizes[1:]):
        layer = nn.Linear(before, after, dtype=dtype)
        nn.init.normal_(layer.weight, std=before**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def point(n, dtype=torch.float32, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(n, rank, seed=0):
    """A function of n numbers whose Jacobian has the singular values 1, 1/2, 1/4, ... of a rank."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    values = 0.5 ** torch.arange(rank).double()
    return (lambda x: (x @ v.to(x) * values.to(x)) @ u.to(x).T), values


@pytest.fixture
def passes(monkeypatch):
    """Counts the columns that products with a Jacobian were asked for."""
    counted = []
    for name in ('forward', 'backward'):
        plain = getattr(module.Jacobian, name)

        def counting(self, block, plain=plain):
            counted.append(block.shape[1])
            return plain(self, block)

        monkeypatch.setattr(module.Jacobian, name, counting)
    return counted


def test_power_iteration_against_the_full_svd():
    net, x = network(), point(64)
    full = torch.linalg.svdvals(torch.func.jacrev(net)(x).detach().double())[:5]
    errors = [
        float((jacobian_svd(net, x, 10, method='power', num_iters=q, tol=0).s[:5] / full - 1).abs().max())
        for q in (5, 10, 30)
    ]
    # with ten columns more than asked for; the plain block of ten has 1.4e-3, 8e-6, 4e-7
    for error, allowed in zip(errors, (1.4e-3, 8e-6, 2e-6), strict=True):
        assert error < allowed, errors


@pytest.mark.parametrize('sides', [(20, 30, 12), (12, 30, 20)])
@pytest.mark.parametrize('method', ['full', 'power', 'auto'])
def test_triples(sides, method):
    net, x = network(sides, torch.float64), point(sides[0], torch.float64)
    u, s, v = jacobian_svd(net, x, 6, method=method, num_iters=300, tol=1e-14)
    full = torch.func.jacrev(net)(x)
    torch.testing.assert_close(s, torch.linalg.svdvals(full)[:6], rtol=1e-9, atol=0)
    for frame in (u, v):
        torch.testing.assert_close(frame.mT @ frame, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(full @ v, u * s, rtol=0, atol=1e-6)
    assert (v.gather(0, v.abs().argmax(0, keepdim=True)) > 0).all()
    assert jacobian_residual(net, x, (u, s, v)).max() < 1e-6
    assert jacobian_residual(net, x, (u.flip(1), s, v)).max() > 0.1


def test_passes_of_a_wide_network(passes):
    """Rank 10 of 3,072 numbers: at most 2 (r + 10) q passes, and fewer once it has converged."""
    net, x = network((3072, 64, 3072)), point(3072)
    jacobian_svd(net, x, 10, num_iters=10, tol=0)
    assert sum(passes) == 2 * 20 * 10 < 3072
    passes.clear()
    fn, values = low_rank(500, 6)
    found = jacobian_svd(fn, point(500), 6, num_iters=10)
    torch.testing.assert_close(found.s.double(), values, rtol=1e-5, atol=0)
    assert sum(passes) <= 2 * 16 * 3
    passes.clear()
    jacobian_svd(network((30, 20, 30)), point(30), 5)  # the whole Jacobian is cheaper
    assert sum(passes) == 30


@pytest.mark.parametrize('share', [0.8, 0.95, 0.99])
@pytest.mark.parametrize('method', ['auto', 'power', 'full'])
def test_adaptive_rank(share, method):
    """As numerical_rank of the full Jacobian, whose spectrum falls slowly."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 700, generator=generator) * 0.93 ** torch.arange(700)
    fn = lambda x: x @ weight.T  # noqa: E731
    expected = int(numerical_rank(torch.linalg.svdvals(weight), share))
    found = jacobian_svd(fn, point(700), share, method=method)
    assert abs(len(found.s) - expected) <= 1
    assert found.v.shape == (700, len(found.s))


def test_adaptive_rank_of_nothing_and_of_everything():
    assert len(jacobian_svd(lambda x: 0 * x, point(50), 0.9, method='power').s) == 0
    assert len(jacobian_svd(lambda x: x, point(12), 0.99, method='power').s) == 12


def test_numerical_rank():
    s = torch.tensor([3.0, 4.0, 0.0])
    assert numerical_rank(s, 0.79) == 1
    assert numerical_rank(s, 0.81) == 2
    assert numerical_rank(torch.ones(100)) == 99  # sqrt(.98) < .99 < sqrt(.99)
    assert numerical_rank(torch.zeros(3)) == 0
    assert numerical_rank(torch.empty(2, 0)).tolist() == [0, 0]
    assert numerical_rank(torch.stack([s, 1e30 * s, 1e-30 * s]), 0.81).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match='eta must be below 1'):
        numerical_rank(s, 1.0)
    with pytest.raises(ValueError, match='eta must be'):
        numerical_rank(s, 0.0)
    with pytest.raises(ValueError, match='must be finite'):
        numerical_rank(torch.tensor([1.0, float('nan')]))
    with pytest.raises(TypeError, match='floating'):
        numerical_rank(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match='single number'):
        numerical_rank(torch.tensor(1.0))


def test_mask_takes_a_part_of_the_output():
    net, x = network((20, 30, 24), torch.float64), point(20, torch.float64)
    fn = lambda x: net(x).view(2, 3, 4)  # noqa: E731
    mask = torch.tensor([True, False, True, False])
    full = torch.func.jacrev(fn)(x)[..., mask, :].reshape(-1, 20)
    found = jacobian_svd(fn, x, 4, mask=mask)
    torch.testing.assert_close(found.s, torch.linalg.svdvals(full)[:4])
    assert found.u.view(2, 3, 4, 4)[:, :, ~mask].abs().max() < 1e-14


def test_chunks_generators_and_types():
    net, x = network((40, 60, 40)), point(40)
    one = jacobian_svd(net, x, 3, method='power', tol=0)
    again = jacobian_svd(net, x, 3, method='power', tol=0)
    assert all(torch.equal(a, b) for a, b in zip(one, again))
    chunked = jacobian_svd(net, x, 3, method='power', tol=0, chunk_size=2)
    torch.testing.assert_close(one.s, chunked.s)
    other = jacobian_svd(net, x, 3, method='power', tol=0, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(one.s, other.s, rtol=1e-3, atol=0)
    before = torch.get_rng_state()
    half = jacobian_svd(net, x.bfloat16(), 3)
    assert half.s.dtype == torch.bfloat16
    assert torch.equal(before, torch.get_rng_state())
    assert all(each.grad is None for each in net.parameters())
    assert not one.s.requires_grad


def test_networks_with_attention_and_convolutions():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.last = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 4)

        def forward(self, x):
            h = self.embed(x).flatten(2).mT
            return self.last(h + nn.functional.scaled_dot_product_attention(h, h, h))

    torch.manual_seed(0)
    net, x = Attention().eval(), point(64).view(1, 8, 8)
    found = jacobian_svd(lambda x: net(x[None])[0], x, 5, method='power', num_iters=40)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        full = torch.func.jacrev(lambda x: net(x[None])[0])(x).view(64, 64)
    torch.testing.assert_close(found.s, torch.linalg.svdvals(full)[:5], rtol=1e-4, atol=0)
    with torch.inference_mode():
        frozen = point(64).view(1, 8, 8)
    torch.testing.assert_close(jacobian_svd(lambda x: net(x[None])[0], frozen, 5).s, found.s, rtol=1e-3, atol=0)


class _NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize(
    ('fn', 'rank', 'options', 'error', 'message'),
    [
        (torch.sin, 9, {}, ValueError, 'rank must be at most 8'),
        (torch.sin, 0, {}, ValueError, 'rank must be at least 1'),
        (torch.sin, 1.5, {}, ValueError, 'share of the norm below 1'),
        (torch.sin, 2, dict(method='qr'), ValueError, 'method must be one of'),
        (torch.sin, 2, dict(mask=torch.ones(3).bool()), ValueError, 'mask must have shape'),
        (torch.sin, 2, dict(mask=torch.ones(8)), TypeError, 'mask must be a bool'),
        (torch.sin, 2, dict(num_iters=0), ValueError, 'num_iters'),
        (torch.sqrt, 2, {}, ValueError, 'Jacobian must be finite'),
        (lambda x: x.long(), 2, {}, TypeError, 'return a floating'),
        (lambda x: (x, x), 2, {}, TypeError, 'return a floating'),
        (3, 2, {}, TypeError, 'must be a function'),
        (_NoForward.apply, 2, dict(method='power'), RuntimeError, 'Jacobian of fn cannot be computed'),
        (lambda x: torch.dropout(x, 0.5, True), 2, {}, ValueError, 'the same for the same x'),
    ],
)
def test_bad_input(fn, rank, options, error, message):
    x = torch.arange(8.0) - 4 if fn is torch.sqrt else torch.arange(8.0)
    with pytest.raises(error, match=message):
        jacobian_svd(fn, x, rank, **options)


def test_bad_points():
    for x, error in ((torch.ones(3).long(), TypeError), (torch.ones(0), ValueError), (torch.ones(3) / 0, ValueError)):
        with pytest.raises(error, match='x must'):
            jacobian_svd(torch.sin, x, 1)
    with pytest.raises(ValueError, match='svd must be of a Jacobian'):
        jacobian_residual(torch.sin, torch.ones(4), jacobian_svd(torch.sin, torch.ones(3), 1))


@pytest.fixture(scope='module')
def denoiser(real_data):
    path = real_data / 'models' / 'mnist_denoiser' / 'load_mnist_flow.py'
    if not path.is_file():
        pytest.skip('the real data have no models/mnist_denoiser')
    spec = importlib.util.spec_from_file_location('load_mnist_flow', path)
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    weights = loader.load()[0]
    return lambda x, t: loader.flow(weights, x[None], t)[0]


@pytest.mark.slow
def test_ranks_along_a_trajectory_of_a_real_denoiser(denoiser):
    x = torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    x, found = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))[0], []
    levels = {1: 38, 10: 35, 15: 39, 25: 51, 35: 73, 45: 95}  # of 50 Euler steps
    for step in range(50):
        t = step / 50
        if step in levels:
            fn = lambda x, t=t: denoiser(x, t)  # noqa: E731
            full = jacobian_svd(fn, x, 784, method='full').s
            found.append(int(numerical_rank(full)))
            assert abs(found[-1] - levels[step]) <= 1, (step, found)
            if step == 10:
                block = jacobian_svd(fn, x, 50, method='power', num_iters=5, tol=0)
                torch.testing.assert_close(block.s[:10], full[:10], rtol=1e-5, atol=0)
                assert abs(len(jacobian_svd(fn, x, 0.99, method='power').s) - found[-1]) <= 2
        with torch.no_grad():
            x = x + (denoiser(x, t) - x) / (1 - t) / 50
    assert max(found) < 110
    assert found[-1] >= 2 * min(found)
    assert found.index(min(found)) in (1, 2)


def test_inference_mode_around_a_call_changes_nothing():
    """It records no derivatives, of which all would be 0."""
    x = point(8)
    expected = jacobian_svd(torch.sin, x, 3)
    with torch.inference_mode():
        found = jacobian_svd(torch.sin, x, 3)
        residual = jacobian_residual(torch.sin, x, found)
        inside = jacobian_svd(torch.sin, x * 1, 3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inside, expected)
    assert float(residual.max()) < 1e-5
