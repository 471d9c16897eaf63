# SPDX-License-Identifier: Apache-2.0
"""Frames, angles, coding rates, entropies, correlations, k-subspaces: hand cases, formulas, oracles, edges."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from clusterplug.functional import (
    cca,
    clustering_accuracy,
    coding_rate,
    k_subspaces,
    linear_cka,
    orthonormal_frame,
    principal_angles,
    projection_energy,
    spectral_entropy,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def subspaces(num_clusters=5, num_points=40, dim=3, width=64, noise=0.02, seed=0):
    frames = torch.linalg.qr(randn(num_clusters, width, dim, seed=seed))[0]
    x = randn(num_clusters, num_points, dim, seed=seed + 1) @ frames.mT
    x = x.flatten(0, 1) + noise * randn(num_clusters * num_points, width, seed=seed + 2)
    return x, torch.arange(num_clusters).repeat_interleave(num_points), frames


# frames


@pytest.mark.parametrize('method', ['qr', 'polar'])
def test_frames_are_orthonormal_and_span_the_same(method):
    x = randn(4, 9, 3)
    q = orthonormal_frame(x, method)
    torch.testing.assert_close(q.mT @ q, torch.eye(3, dtype=x.dtype).expand(4, 3, 3))
    torch.testing.assert_close(q @ (q.mT @ x), x)


def test_qr_keeps_signs_and_leading_spans():
    x = randn(6, 3)
    q = orthonormal_frame(x)
    assert ((q.mT @ x).diagonal() > 0).all()
    torch.testing.assert_close(q[:, 0], x[:, 0] / x[:, 0].norm())
    torch.testing.assert_close(orthonormal_frame(q), q)


def test_polar_is_the_nearest_frame_and_turns_with_its_input():
    x = randn(6, 3)
    q = orthonormal_frame(x, 'polar')
    for seed in range(20):
        other = orthonormal_frame(q + 0.3 * randn(6, 3, seed=seed))
        assert (x - q).norm() <= (x - other).norm()
    turn = orthonormal_frame(randn(3, 3, seed=5))
    torch.testing.assert_close(orthonormal_frame(x @ turn, 'polar'), q @ turn)


def test_gradients_of_frames_also_at_repeated_singular_values():
    x = randn(2, 5, 3).requires_grad_()
    assert gradcheck(orthonormal_frame, x)
    assert gradcheck(lambda x: orthonormal_frame(x, 'polar'), x)
    assert gradcheck(lambda x: orthonormal_frame(x, 'polar'), orthonormal_frame(x.detach()).requires_grad_())


def test_dependent_columns_are_completed():
    x = torch.ones(5, 2)
    for method in ('qr', 'polar'):
        q = orthonormal_frame(x, method)
        torch.testing.assert_close(q.mT @ q, torch.eye(2))


def test_angles_equal_scipy_and_are_exact_near_zero():
    linalg = pytest.importorskip('scipy.linalg')
    for n, m in ((3, 2), (2, 3), (4, 4), (1, 1)):
        a, b = randn(7, n, seed=n), randn(7, m, seed=m + 9)
        expected = linalg.subspace_angles(a.numpy(), b.numpy())[::-1].copy()
        torch.testing.assert_close(principal_angles(a, b), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
    tiny = torch.tensor([[1.0, 0.0], [0.0, math.cos(1e-9)], [0.0, math.sin(1e-9)]], dtype=torch.float64)
    angles = principal_angles(torch.eye(3, dtype=torch.float64)[:, :2], tiny)
    torch.testing.assert_close(angles, torch.tensor([0.0, 1e-9], dtype=torch.float64), rtol=1e-6, atol=1e-15)


def test_angles_do_not_depend_on_the_basis_and_have_gradients():
    a, b = randn(2, 6, 2).requires_grad_(), randn(2, 6, 3, seed=1).requires_grad_()
    torch.testing.assert_close(principal_angles(a @ randn(2, 2, seed=3), 1e3 * b), principal_angles(a, b))
    torch.testing.assert_close(principal_angles(b, a), principal_angles(a, b))
    assert gradcheck(principal_angles, (a, b))


def test_projection_energy_by_loop():
    x, frames = randn(2, 5, 6), orthonormal_frame(randn(2, 3, 6, 2, seed=1))
    expected = torch.stack([
        torch.stack([torch.stack([(u.mT @ point).square().sum() for u in us]) for point in points])
        for points, us in zip(x, frames)
    ])  # fmt: skip
    torch.testing.assert_close(projection_energy(x, frames), expected)
    full = orthonormal_frame(randn(1, 6, 6))
    torch.testing.assert_close(projection_energy(x, full)[..., 0], x.square().sum(-1))


# rates


def test_coding_rate_by_hand_and_at_its_bound():
    assert float(coding_rate(torch.eye(4), eps2=0.5)) == pytest.approx(4 * math.log(3), rel=1e-6)
    z = torch.eye(16, dtype=torch.float64).repeat(4, 1)
    bound = 16 * math.log(1 + 1 / 0.1)
    assert float(coding_rate(z, eps2=0.1)) == pytest.approx(bound, rel=1e-12)
    assert bound == pytest.approx(38.37, abs=0.01)
    unit = torch.nn.functional.normalize(randn(50, 16), dim=1)
    assert float(coding_rate(unit, eps2=0.1)) < bound


@pytest.mark.parametrize('shape', [(20, 5), (5, 20), (3, 7, 4)])
def test_coding_rate_equals_the_formula_and_its_gradient_that_of_autograd(shape):
    z = randn(*shape).requires_grad_()
    n, d = shape[-2:]
    expected = torch.logdet(torch.eye(d, dtype=z.dtype) + d / (n * 0.3) * z.mT @ z)
    torch.testing.assert_close(coding_rate(z, eps2=0.3), expected)
    ours, theirs = (torch.autograd.grad(each.sum(), z)[0] for each in (coding_rate(z, eps2=0.3), expected))
    torch.testing.assert_close(ours, theirs)


def test_weights_of_the_coding_rate():
    z, weights = randn(12, 4).requires_grad_(), torch.rand(12, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(coding_rate(z, eps2=0.3, weights=torch.full((12,), 7.0)), coding_rate(z, eps2=0.3))
    keep = torch.arange(12) % 3 > 0
    dirty = z.detach().masked_fill(~keep[:, None], torch.nan)
    torch.testing.assert_close(coding_rate(dirty, eps2=0.3, weights=keep), coding_rate(z[keep], eps2=0.3))
    assert float(coding_rate(z.detach(), eps2=0.3, weights=torch.zeros(12))) == 0
    assert gradcheck(lambda z, w: coding_rate(z, eps2=0.3, weights=w), (z, weights + 0.1))
    z.grad = None
    coding_rate(z, eps2=0.3, weights=keep).backward()
    assert z.grad.isfinite().all()
    assert (z.grad[~keep] == 0).all()


def test_coding_rate_keeps_to_its_invariances():
    z = randn(30, 6)
    turn, signs = orthonormal_frame(randn(6, 6, seed=1)), randn(30, 1, seed=2).sign()
    for other in (z @ turn, z * signs, z[torch.randperm(30)]):
        torch.testing.assert_close(coding_rate(other, eps2=0.2), coding_rate(z, eps2=0.2))


def test_entropy_of_known_spectra():
    assert float(spectral_entropy(randn(100_000, 16))) == pytest.approx(math.log(16), abs=1e-3)
    assert float(spectral_entropy(randn(9, 1) @ torch.ones(1, 5, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)
    assert float(spectral_entropy(torch.full((6, 3), 1.1))) == 0
    z = randn(20, 5)
    turn = orthonormal_frame(randn(5, 5, seed=1))
    torch.testing.assert_close(spectral_entropy(1e-9 * z @ turn + 3e-9), spectral_entropy(z), rtol=1e-6, atol=0)
    centered = z - z.mean(0)
    values = np.linalg.eigvalsh(np.cov(z.numpy().T))
    share = values / values.sum()
    assert float(spectral_entropy(z)) == pytest.approx(-(share * np.log(share)).sum())
    torch.testing.assert_close(spectral_entropy(centered, center=False), spectral_entropy(z))


def test_gradient_of_the_entropy_where_eigenvalues_repeat_or_vanish():
    z = randn(8, 4).requires_grad_()
    assert gradcheck(spectral_entropy, z)
    assert gradcheck(lambda z: spectral_entropy(z.mT), z)
    for values in (torch.cat([torch.eye(4), -torch.eye(4)]), torch.ones(8, 4), randn(8, 1) @ randn(1, 4)):
        values = values.double().requires_grad_()
        assert torch.autograd.grad(spectral_entropy(values), values)[0].isfinite().all()


def test_bad_problems_stay_alone():
    z = randn(3, 10, 4)
    z[1, 4, 2] = torch.nan
    for function in (lambda z: coding_rate(z, eps2=0.1), spectral_entropy):
        result = function(z)
        assert result[1].isnan()
        torch.testing.assert_close(result[::2], function(z[::2]))
    huge = coding_rate(torch.full((5, 3), 1e4), eps2=1e-3)
    assert float(huge) == pytest.approx(math.log1p(9e8 / 1e-3), rel=1e-6)
    assert coding_rate(torch.full((5, 3), 1e30), eps2=1e-3).isnan()  # never a number that rounding made up


# correlations


def test_cca_whitens_and_equals_the_generalized_eigenproblem():
    linalg = pytest.importorskip('scipy.linalg')
    x = randn(200, 6)
    y = randn(200, 4, seed=1) + x[:, :4]
    result = cca(x, y, ridge=1e-3)
    xc, yc = x - x.mean(0), y - y.mean(0)
    cx, cy = xc.T @ xc / 200, yc.T @ yc / 200
    cx, cy = (c + 1e-3 * c.trace() / len(c) * torch.eye(len(c), dtype=c.dtype) for c in (cx, cy))
    cross = xc.T @ yc / 200
    wx, wy = result.x_weights, result.y_weights
    torch.testing.assert_close(wx.T @ cx @ wx, torch.eye(4, dtype=x.dtype))
    torch.testing.assert_close(wx.T @ cross @ wy, result.correlations.diag(), rtol=0, atol=1e-12)
    squares = linalg.eigh((cross @ torch.linalg.solve(cy, cross.T)).numpy(), cx.numpy(), eigvals_only=True)[::-1]
    np.testing.assert_allclose(result.correlations, np.sqrt(squares[:4]), rtol=1e-8)


def test_cca_invariances_and_rank():
    x, y = randn(40, 5), randn(40, 3, seed=1)
    plain = cca(x, y).correlations
    torch.testing.assert_close(cca(x @ randn(5, 5, seed=2) + 7, y).correlations, plain)
    torch.testing.assert_close(cca(x, x @ randn(5, 5, seed=3)).correlations, torch.ones(5, dtype=x.dtype))
    repeated = torch.cat([x, x[:, :2], torch.ones(40, 1, dtype=x.dtype)], 1)
    torch.testing.assert_close(cca(repeated, y).correlations, plain)
    assert (cca(torch.ones(40, 2, dtype=x.dtype), y).correlations == 0).all()
    assert cca(x, y, 2).x_weights.shape == (5, 2)


def unbiased_loop(x, y):
    k, l_ = x @ x.T, y @ y.T
    n = len(k)
    one = torch.ones(n, dtype=k.dtype)

    def hsic(k, l_):
        k, l_ = k - k.diag().diag(), l_ - l_.diag().diag()
        value = (k @ l_).trace() + (one @ k @ one) * (one @ l_ @ one) / ((n - 1) * (n - 2))
        return (value - 2 / (n - 2) * (one @ k @ l_ @ one)) / (n * (n - 3))

    return hsic(k, l_) / (hsic(k, k) * hsic(l_, l_)).sqrt()


@pytest.mark.parametrize('width', [4, 60])
def test_cka_equals_the_gram_forms(width):
    x, y = randn(12, width) + 2, randn(12, 5, seed=1)
    torch.testing.assert_close(linear_cka(x, y), unbiased_loop(x, y))
    xc, yc = x - x.mean(0), y - y.mean(0)
    k, l_ = xc @ xc.T, yc @ yc.T
    torch.testing.assert_close(linear_cka(x, y, biased=True), (k * l_).sum() / (k.norm() * l_.norm()))
    for biased in (False, True):
        assert float(linear_cka(x, x, biased=biased)) == pytest.approx(1)
        turn = orthonormal_frame(randn(width, width, seed=3))
        torch.testing.assert_close(linear_cka(7 * x @ turn + 3, y, biased=biased), linear_cka(x, y, biased=biased))


@pytest.mark.parametrize(('width', 'biased_mean'), [(8, 0.21), (512, 0.94)])
def test_cka_of_independent_noise(width, biased_mean):
    pairs = randn(100, 32, width), randn(100, 32, width, seed=1)
    assert abs(float(linear_cka(*pairs).mean())) < 0.02
    assert float(linear_cka(*pairs, biased=True).mean()) == pytest.approx(biased_mean, abs=0.02)


def test_cka_without_variation_is_nan_with_a_warning():
    with pytest.warns(UserWarning, match='no variation'):
        assert linear_cka(torch.ones(6, 2), torch.randn(6, 2)).isnan()


def test_cka_gradient():
    x, y = randn(6, 3).requires_grad_(), randn(6, 8, seed=1).requires_grad_()
    assert gradcheck(linear_cka, (x, y))


# k-subspaces


@pytest.mark.parametrize('width', [32, 128])
def test_k_subspaces_finds_the_subspaces(width):
    x, labels, frames = subspaces(width=width)
    result = k_subspaces(x, 5, 3, generator=torch.Generator().manual_seed(0))
    assert clustering_accuracy(labels, result.labels) == 1
    nearest = torch.stack([principal_angles(frames[:, None], b)[..., -1].amin() for b in result.bases])
    assert nearest.max() < 0.07
    own = projection_energy(x, result.bases).amax(-1)
    torch.testing.assert_close(result.cost, x.square().sum() - own.sum())


def test_k_subspaces_of_a_batch_and_from_given_bases():
    x, labels, frames = subspaces(3, 20, 2, 8, 0.0)
    batch = torch.stack([x, 1e-12 * x, x * 0])
    result = k_subspaces(batch, 3, 2, init=frames)
    assert torch.equal(result.labels[0], labels)
    assert torch.equal(result.labels[1], labels)
    assert result.cost.max() < 1e-12
    assert result.bases.shape == (3, 3, 8, 2)
    # an odd number of clusters is never lost: a cluster without points keeps its basis
    lone = k_subspaces(torch.eye(4)[:1].expand(6, 4), 3, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lone.bases.norm(dim=-2), torch.ones(3, 1))
    assert lone.labels.unique().numel() == 1


def test_k_subspaces_cost_never_rises_with_more_rounds():
    x = randn(60, 6)
    init = orthonormal_frame(randn(4, 6, 2, seed=3))
    costs = torch.stack([k_subspaces(x, 4, 2, init=init, num_iters=i).cost for i in range(1, 9)])
    assert (costs.diff() <= 1e-9).all()


# bad input


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda: orthonormal_frame(torch.randn(2, 3)), 'n <= D'),
        (lambda: orthonormal_frame(torch.randn(3, 2), 'svd'), 'method must be one of'),
        (lambda: orthonormal_frame(torch.full((3, 2), torch.nan)), 'x must be finite'),
        (lambda: principal_angles(torch.randn(3, 1), torch.randn(4, 1)), 'rows of a'),
        (lambda: principal_angles(torch.ones(3, 2), torch.randn(3, 1)), 'a must have independent columns'),
        (lambda: projection_energy(torch.randn(3, 2), torch.randn(1, 3, 2)), 'frames must have shape'),
        (lambda: coding_rate(torch.randn(3, 2), eps2=0), 'eps2 must be'),
        (lambda: coding_rate(torch.randn(3, 2), eps2=1, weights=-torch.ones(3)), 'not negative'),
        (lambda: coding_rate(torch.randn(3, 2), eps2=1, weights=torch.ones(2)), 'weights must have shape'),
        (lambda: coding_rate(torch.randn(0, 2), eps2=1), 'at least one point'),
        (lambda: cca(torch.randn(3, 2), torch.randn(4, 2)), 'samples of x'),
        (lambda: cca(torch.randn(9, 2), torch.randn(9, 2), 3), 'num_components must be'),
        (lambda: linear_cka(torch.randn(3, 2), torch.randn(3, 2)), 'at least 4 samples'),
        (lambda: k_subspaces(torch.randn(5, 2), 6, 1), 'must not exceed'),
        (lambda: k_subspaces(torch.randn(5, 2), 2, 3), 'dim must be'),
        (lambda: k_subspaces(torch.randn(5, 2), 2, 1, init=torch.randn(2, 3, 1)), 'init must have shape'),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_types_are_refused():
    for function in (orthonormal_frame, spectral_entropy):
        with pytest.raises(TypeError, match='floating'):
            function(torch.ones(3, 2, dtype=torch.long))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_types_under_autocast(dtype):
    z = randn(20, 6).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for function in (
            orthonormal_frame, lambda z: orthonormal_frame(z, 'polar'), lambda z: coding_rate(z, eps2=0.1),
            spectral_entropy, lambda z: linear_cka(z, z[:, :3]), lambda z: principal_angles(z[:, :2], z[:, 2:4]),
        ):  # fmt: skip
            result = function(z)
            assert result.dtype == dtype
            torch.testing.assert_close(result, function(z.float()).to(dtype))
