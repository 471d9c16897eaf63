# SPDX-License-Identifier: Apache-2.0
"""householder_product and householder_reflectors: plain loop, LAPACK, gradients, invariants."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional import householder_product, householder_reflectors


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loop(v, rank):
    """H(v_1) ... H(v_m), one matrix after the other."""
    product = torch.eye(v.shape[0], dtype=v.dtype)
    for column in v.T:
        product = product @ (
            torch.eye(v.shape[0], dtype=v.dtype) - 2 * torch.outer(column, column) / column.dot(column)
        )
    return product[:, :rank]


def test_one_reflection_by_hand():
    # across the line orthogonal to (1, -1): it swaps the axes
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(householder_product(torch.tensor([[3.0], [-3.0]]), rank=2), expected)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 12), count=st.integers(1, 14), seed=st.integers(0, 99), data=st.data())
def test_equals_the_loop(size, count, seed, data):
    rank = data.draw(st.integers(1, size))
    v = randn(size, count, seed=seed)
    torch.testing.assert_close(householder_product(v, rank), loop(v, rank), rtol=0, atol=1e-13)


@pytest.mark.parametrize(('dtype', 'error'), [(torch.float64, 2e-14), (torch.float32, 6e-6)])
def test_512_reflections_are_orthogonal(dtype, error):
    q = householder_product(randn(512, 512, dtype=dtype))
    assert (q.mT @ q - torch.eye(512, dtype=dtype)).abs().max() < error
    assert torch.linalg.slogdet(q.double()).sign == 1


@pytest.mark.parametrize('count', [1, 2, 5])
def test_determinant_counts_the_reflections(count):
    q = householder_product(randn(3, 7, count), rank=7)
    torch.testing.assert_close(torch.linalg.det(q), torch.full((3,), (-1.0) ** count, dtype=torch.float64))


def test_equals_lapack():
    x = randn(9, 5)
    packed, tau = torch.geqrf(x)
    v = packed.tril(-1) + torch.eye(9, 5, dtype=torch.float64)
    expected = torch.linalg.householder_product(packed, tau)
    torch.testing.assert_close(householder_product(v), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(householder_product(v), torch.linalg.qr(x).Q, rtol=0, atol=1e-14)


@pytest.mark.parametrize('rank', [1, 3, 5, 7])
def test_gradients(rank):
    v = randn(2, 7, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: householder_product(v, rank), v)
    assert torch.autograd.gradgradcheck(lambda v: householder_product(v, rank), v)


def test_gradient_equals_that_of_lapack_product():
    v = randn(12, 4).tril()
    v = (v / v.diagonal()).requires_grad_()
    weights = randn(12, 4, seed=1)
    ours = torch.autograd.grad(householder_product(v), v, weights)[0]
    theirs = torch.autograd.grad(torch.linalg.householder_product(v, 2 / v.square().sum(0)), v, weights)[0]
    # LAPACK takes the diagonal as 1 and what is above it as 0
    torch.testing.assert_close(ours.tril(-1), theirs.tril(-1), rtol=1e-10, atol=1e-12)


def test_length_and_sign_of_a_normal_do_not_matter():
    v = randn(8, 3).requires_grad_()
    scales = torch.tensor([-2.5, 1e-3, 7.0], dtype=torch.float64)
    torch.testing.assert_close(householder_product(v * scales), householder_product(v), rtol=0, atol=1e-14)
    grad = torch.autograd.grad(householder_product(v), v, randn(8, 3, seed=1))[0]
    assert (grad * v).sum(0).abs().max() < 1e-14


def test_a_normal_of_zeros_is_the_identity():
    v = randn(6, 3)
    v[:, 1] = 0
    v.requires_grad_()
    product = householder_product(v, rank=6)
    torch.testing.assert_close(product, loop(v.detach()[:, [0, 2]], 6), rtol=0, atol=1e-14)
    grad = torch.autograd.grad(product, v, randn(6, 6, seed=1))[0]
    assert grad.isfinite().all()
    assert grad[:, 1].eq(0).all()


@pytest.mark.parametrize('unit', [1e-38, 1e-25, 1e30])
def test_any_unit_in_fp32(unit):
    v = randn(6, 3, dtype=torch.float32)
    torch.testing.assert_close(householder_product(v * unit), householder_product(v), rtol=0, atol=1e-5)


def test_under_autocast_it_is_fp32():
    v = randn(64, 8, dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(householder_product(v), householder_product(v))
        q = householder_product(v)
    assert q.dtype == torch.float32
    assert torch.equal(q, householder_product(v))


def test_functional_transforms():
    v, tangent = randn(5, 3), randn(5, 3, seed=1)
    torch.testing.assert_close(
        torch.func.vmap(householder_product)(randn(4, 5, 3)), householder_product(randn(4, 5, 3))
    )
    value, change = torch.func.jvp(householder_product, (v,), (tangent,))
    step = 1e-6
    numeric = (householder_product(v + step * tangent) - householder_product(v - step * tangent)) / (2 * step)
    torch.testing.assert_close(change, numeric, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(value, householder_product(v), rtol=0, atol=1e-14)


@pytest.mark.parametrize(('size', 'count'), [(1, 1), (6, 1), (6, 6), (40, 7)])
def test_reflectors_of_a_frame(size, count):
    frame = torch.linalg.qr(randn(3, size, count)).Q
    v, signs = householder_reflectors(frame)
    torch.testing.assert_close(householder_product(v) * signs[:, None], frame, rtol=0, atol=1e-14)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(3, count, dtype=torch.float64))
    assert signs.abs().eq(1).all()


@pytest.mark.parametrize('frame', [torch.eye(5), -torch.eye(5), torch.eye(5)[:, [2, 0]], torch.eye(5).flip(0)])
def test_reflectors_of_axes_are_not_degenerate(frame):
    v, signs = householder_reflectors(frame)
    torch.testing.assert_close(householder_product(v) * signs, frame)
    assert v.norm(dim=0).min() > 0.99


def test_training_keeps_the_frame_and_finds_the_subspace():
    basis = torch.linalg.qr(randn(24, 4)).Q
    x = randn(300, 4, seed=1) * torch.linspace(3, 1, 4, dtype=torch.float64) @ basis.T
    v = (0.05 * randn(24, 4, seed=2)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn='strong_wolfe'
    )

    def closure():
        optimizer.zero_grad()
        loss = (x.square().sum() - (x @ householder_product(v)).square().sum()) / x.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    q = householder_product(v).detach()
    assert (q.T @ q - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-14
    assert torch.linalg.matrix_norm(q - basis @ (basis.T @ q), 2) < 1e-5  # the largest sine of the angles


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda: householder_product(torch.zeros(3, 2, dtype=torch.int64)), TypeError, 'floating'),
        (lambda: householder_product([1.0]), TypeError, 'torch.Tensor'),
        (lambda: householder_product(torch.ones(3)), ValueError, 'shape'),
        (lambda: householder_product(torch.ones(3, 0)), ValueError, 'at least one'),
        (lambda: householder_product(torch.ones(3, 2), 4), ValueError, 'between 1 and 3'),
        (lambda: householder_product(torch.ones(3, 2), 0), ValueError, 'rank'),
        (lambda: householder_product(torch.ones(3, 2), 2.0), TypeError, 'rank'),
        (lambda: householder_reflectors(torch.ones(2, 3)), ValueError, 'transpose'),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
