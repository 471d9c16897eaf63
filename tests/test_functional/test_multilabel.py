# SPDX-License-Identifier: Apache-2.0
"""multilabel_discrimination: closed forms, the four-term form, padding, margin, limits, gradients."""

import math

import pytest
import torch

from clusterplug.functional import multilabel_discrimination
from clusterplug.functional.contrast import cosine_margin


def cosines(*shape, seed=0, dtype=torch.float64):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def test_two_ln_two():
    loss = multilabel_discrimination(torch.zeros(3, 1), torch.zeros(3, 1))
    torch.testing.assert_close(loss, torch.full((3,), 2 * math.log(2)))


def test_equals_the_four_terms_in_loops():
    own, others = cosines(5, 3), cosines(5, 7, seed=1)
    for scale in (1.0, 8.0):
        expected = []
        for p, n in zip(own.tolist(), others.tolist()):
            total = 1 + sum(math.exp(scale * (b - a)) for a in p for b in n)
            total += sum(math.exp(scale * b) for b in n) + sum(math.exp(-scale * a) for a in p)
            expected.append(math.log(total))
        loss = multilabel_discrimination(own, others, scale=scale)
        torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_padding_changes_nothing_and_has_no_gradient():
    own, others = cosines(4, 3), cosines(4, 6, seed=1)
    wide = torch.cat([own, torch.full((4, 2), torch.inf)], 1).requires_grad_()
    long = torch.cat([others, torch.full((4, 3), -torch.inf)], 1).requires_grad_()
    for options in ({}, {'scale': 32.0, 'margin': 0.3}):
        loss = multilabel_discrimination(wide, long, **options)
        torch.testing.assert_close(loss, multilabel_discrimination(own, others, **options))
        grads = torch.autograd.grad(loss.sum(), (wide, long))
        assert all(grad.isfinite().all() for grad in grads)
        assert grads[0][:, 3:].eq(0).all()
        assert grads[1][:, 6:].eq(0).all()
        assert grads[0][:, :3].lt(0).all()
        assert grads[1][:, :6].gt(0).all()
    empty = multilabel_discrimination(torch.full((2, 3), torch.inf), torch.full((2, 4), -torch.inf), margin=0.3)
    torch.testing.assert_close(empty, torch.zeros(2))
    assert multilabel_discrimination(own[:, :0], others[:, :0]).eq(0).all()
    assert multilabel_discrimination(own[:0], others[:0]).shape == (0,)


def test_pulls_and_pushes_have_their_closed_forms():
    own, others = cosines(4, 3).requires_grad_(), cosines(4, 6, seed=1).requires_grad_()
    pull, push = torch.autograd.grad(multilabel_discrimination(own, others).sum(), (own, others))
    p, n = own.neg().exp().sum(1), others.exp().sum(1)
    torch.testing.assert_close(pull.abs().sum(1), p / (1 + p))
    torch.testing.assert_close(push.sum(1), n / (1 + n))


def test_not_invariant_to_a_constant():
    """The baseline (MLC) only sees differences; this loss does not take (0.1, 0.4) for (0.5, 0.8)."""
    low = multilabel_discrimination(torch.tensor([[0.4]]), torch.tensor([[0.1]]), scale=8)
    high = multilabel_discrimination(torch.tensor([[0.8]]), torch.tensor([[0.5]]), scale=8)
    assert (low - high).abs() > 0.1


def test_limit_of_a_large_scale():
    own, others = cosines(6, 3), cosines(6, 5, seed=1)
    loss = multilabel_discrimination(own, others, scale=1e6) / 1e6
    torch.testing.assert_close(loss, (-own.amin(1)).clamp(min=0) + others.amax(1).clamp(min=0), rtol=1e-5, atol=1e-5)
    assert multilabel_discrimination(own.float(), others.float(), scale=1e30).isfinite().all()


@pytest.mark.parametrize('scale', [1.0, 32.0])
def test_margin_is_an_angle_and_acts_at_every_scale(scale):
    own, others = cosines(6, 3) * 0.9, cosines(6, 5, seed=1)
    angles = torch.acos(own) + 0.3
    assert angles.max() < math.pi
    expected = multilabel_discrimination(angles.cos(), others, scale=scale)
    loss = multilabel_discrimination(own, others, scale=scale, margin=0.3)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert (loss > multilabel_discrimination(own, others, scale=scale)).all()


def test_margin_falls_all_the_way_and_has_finite_slopes_at_the_ends():
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64).requires_grad_()
    moved = cosine_margin(cosine, 0.3)
    assert (moved.diff() > 0).all()
    (slope,) = torch.autograd.grad(moved.sum(), cosine)
    assert slope.isfinite().all()
    assert (slope > 0).all()
    for value in (-1.0, 1.0, 1.0 + 1e-7):
        edge = torch.tensor([[value]], requires_grad=True)
        multilabel_discrimination(edge, torch.zeros(1, 1), scale=32, margin=0.3).backward()
        assert edge.grad.isfinite().all()
    torch.testing.assert_close(cosine_margin(torch.ones(1), 0.3), torch.tensor([math.cos(0.3)]), rtol=0, atol=2e-4)


def test_gradcheck_dtypes_and_bad_rows():
    own, others = (0.9 * cosines(3, 2)).requires_grad_(), cosines(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: multilabel_discrimination(a, b, scale=4.0, margin=0.3), (own, others))
    for dtype in (torch.float16, torch.bfloat16):
        loss = multilabel_discrimination(own.to(dtype), others.to(dtype), scale=64.0)
        assert loss.dtype == dtype
        assert loss.isfinite().all()
    bad = own.detach().clone()
    bad[1, 0] = torch.nan
    loss = multilabel_discrimination(bad, others, margin=0.2)
    assert loss.isnan().tolist() == [False, True, False]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = multilabel_discrimination(own.float(), others.float())
    torch.testing.assert_close(inside, multilabel_discrimination(own.float(), others.float()))


def test_bad_input():
    own, others = torch.zeros(3, 2), torch.zeros(3, 4)
    with pytest.raises(ValueError, match='with one N'):
        multilabel_discrimination(own, others[:2])
    with pytest.raises(TypeError, match='positive must have a floating dtype'):
        multilabel_discrimination(own.long(), others)
    with pytest.raises(ValueError, match='scale must be a finite number > 0'):
        multilabel_discrimination(own, others, scale=0)
    with pytest.raises(ValueError, match='margin must be'):
        multilabel_discrimination(own, others, margin=2.0)
