# SPDX-License-Identifier: Apache-2.0
"""info_nce and nt_xent: by hand, plain loops, cross entropy, masks, extremes."""

import math

import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional import info_nce, nt_xent


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loop(scores, positive, candidate, temperature):
    """Each positive against the candidates that are not itself, in float64."""
    values = []
    for row, pos, cand in zip((scores.double() / temperature).tolist(), positive.tolist(), candidate.tolist()):
        terms = []
        for p in (j for j, yes in enumerate(pos) if yes):
            rivals = [s for j, s in enumerate(row) if cand[j] or j == p]
            most = max(rivals)
            terms.append(most + math.log(sum(math.exp(s - most) for s in rivals)) - row[p])
        values.append(sum(terms) / len(terms) if terms else 0.0)
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    # one positive of score 1 and two rivals of 0: log(1 + 2 / e)
    loss = info_nce(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, False, False]]), temperature=1.0)
    assert loss.tolist() == pytest.approx([math.log(1 + 2 / math.e)])
    # two positives that are no candidates, one negative: each against the negative alone
    positive = torch.tensor([[True, True, False]])
    loss = info_nce(torch.tensor([[1.0, 2.0, 0.0]]), positive, ~positive, temperature=0.5)
    assert loss.tolist() == pytest.approx([(math.log1p(math.exp(-2)) + math.log1p(math.exp(-4))) / 2])


@pytest.mark.parametrize('seed', range(6))
def test_equals_a_plain_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = randn(9, 7, seed=seed)
    positive = torch.rand(9, 7, generator=generator) < 0.3
    candidate = torch.rand(9, 7, generator=generator) < 0.5
    for mask in (candidate, None, torch.zeros_like(positive)):
        loss = info_nce(scores, positive, mask, temperature=0.2)
        full = torch.ones_like(positive) if mask is None else mask
        torch.testing.assert_close(loss.double(), loop(scores, positive, full, 0.2), rtol=1e-5, atol=1e-6)


def test_indices_are_one_positive_and_below_zero_none():
    scores, index = randn(2, 5, 6), torch.tensor([[0, 3, -1, 5, 2], [1, 1, 1, -1, 0]])
    loss = info_nce(scores, index, temperature=0.1)
    expected = F.cross_entropy((scores / 0.1).flatten(0, 1), index.flatten(), ignore_index=-1, reduction='none')
    torch.testing.assert_close(loss.flatten(), expected)
    with pytest.raises(ValueError, match='positive must be below the number of keys, 6, got 6'):
        info_nce(scores, index + 1, temperature=0.1)


def test_indices_may_be_of_any_integer_type():
    scores, index = torch.randn(3, 5), torch.tensor([4, 0, 2])
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(info_nce(scores, index.to(dtype), temperature=0.1), info_nce(scores, index, temperature=0.1))


def test_what_is_masked_may_be_anything():
    scores, positive = randn(3, 4), torch.eye(3, 4, dtype=torch.bool)
    candidate = torch.ones(3, 4, dtype=torch.bool)
    candidate[:, 3] = False
    expected = info_nce(scores[:, :3], positive[:, :3], temperature=0.3)
    for value in (float('nan'), float('inf'), -float('inf')):
        dirty = scores.clone()
        dirty[:, 3] = value
        dirty.requires_grad_()
        loss = info_nce(dirty, positive, candidate, temperature=0.3)
        torch.testing.assert_close(loss, expected)
        (grad,) = torch.autograd.grad(loss.sum(), dirty)
        assert grad[:, 3].eq(0).all()
        assert grad.isfinite().all()


def test_without_positives_negatives_or_keys():
    scores = randn(3, 4).requires_grad_()
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    loss = info_nce(scores, nothing, temperature=0.1)
    assert loss.eq(0).all()
    assert torch.autograd.grad(loss.sum(), scores)[0].eq(0).all()
    one = torch.eye(3, 4, dtype=torch.bool)
    assert info_nce(scores, one, nothing, temperature=0.1).eq(0).all()
    assert info_nce(scores, one, one, temperature=0.1).eq(0).all()
    assert info_nce(randn(0, 4), nothing[:0], temperature=0.1).shape == (0,)
    assert info_nce(randn(3, 0), nothing[:, :0], temperature=0.1).eq(0).all()


def test_small_losses_keep_their_digits():
    scores = torch.tensor([[1000.0, 990.0]])
    loss = info_nce(scores, torch.tensor([0]), temperature=1.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)


def test_gradient_and_narrow_types():
    scores = randn(4, 5, dtype=torch.float64).requires_grad_()
    positive, candidate = randn(4, 5, seed=1) > 0.5, randn(4, 5, seed=2) > 0
    assert torch.autograd.gradcheck(lambda s: info_nce(s, positive, candidate, temperature=0.3), scores)
    with torch.autocast('cpu', torch.bfloat16):
        loss = info_nce(randn(4, 5).bfloat16() * 50, positive, candidate, temperature=0.01)
    assert loss.dtype == torch.bfloat16
    assert loss.isfinite().all()


@pytest.mark.parametrize(('change', 'error', 'match'), [
    (dict(scores=torch.zeros(3, 4, dtype=torch.int64)), TypeError, 'scores must have|scores must be'),
    (dict(scores=torch.zeros(4)), ValueError, 'scores must have shape'),
    (dict(positive=torch.zeros(3, 3, dtype=torch.bool)), ValueError, 'positive must have shape'),
    (dict(positive=torch.zeros(3, 4)), TypeError, 'positive must be a bool'),
    (dict(positive=None), TypeError, 'positive must be'),
    (dict(positive=torch.zeros(2, dtype=torch.int64)), ValueError, 'positive must have shape'),
    (dict(candidate=torch.zeros(3, 3, dtype=torch.bool)), ValueError, 'candidate must have shape'),
    (dict(temperature=0.0), ValueError, 'temperature'),
    (dict(temperature=float('nan')), ValueError, 'temperature'),
])  # fmt: skip
def test_bad_input(change, error, match):
    options = dict(scores=torch.zeros(3, 4), positive=torch.zeros(3, 4, dtype=torch.bool), temperature=0.1, **{})
    options.update(change)
    with pytest.raises(error, match=match):
        info_nce(options.pop('scores'), options.pop('positive'), options.pop('candidate', None), **options)


def cross_entropy(a, b, temperature):
    """The 2N x 2N matrix with a diagonal of minus infinity."""
    z = F.normalize(torch.cat([a, b]).double(), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    n = len(a)
    return F.cross_entropy(logits, torch.cat([torch.arange(n) + n, torch.arange(n)]))


@pytest.mark.parametrize('n', [2, 5, 33])
def test_nt_xent_equals_cross_entropy(n):
    a, b = randn(n, 8), randn(n, 8, seed=1)
    for temperature in (0.1, 0.5):
        loss = nt_xent(a, b, temperature=temperature)
        torch.testing.assert_close(loss.double(), cross_entropy(a, b, temperature), rtol=1e-5, atol=1e-6)


def test_nt_xent_closed_forms():
    assert nt_xent(randn(1, 4), randn(1, 4, seed=1), temperature=0.1).item() == 0
    for n in (2, 7):
        same = torch.ones(n, 3)
        assert nt_xent(same, same, temperature=0.1).item() == pytest.approx(math.log(2 * n - 1), rel=1e-6)
        eye = torch.eye(n, 9)
        expected = math.log1p((2 * n - 2) * math.exp(-1 / 0.1))
        assert nt_xent(eye, 3 * eye, temperature=0.1).item() == pytest.approx(expected, abs=1e-6)
    assert nt_xent(randn(0, 4), randn(0, 4), temperature=0.1).item() == 0


def test_nt_xent_batches_types_and_gradient():
    a, b = randn(3, 6, 4), randn(3, 6, 4, seed=1)
    each = torch.stack([nt_xent(x, y, temperature=0.2) for x, y in zip(a, b)])
    torch.testing.assert_close(nt_xent(a, b, temperature=0.2), each)
    a, b = randn(4, 3, dtype=torch.float64).requires_grad_(), randn(4, 3, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3), (a, b))
    huge = nt_xent(a.detach().float() * 1e30, b.detach().float() * 1e-30, temperature=0.3)
    torch.testing.assert_close(huge.double(), nt_xent(a, b, temperature=0.3).detach(), rtol=1e-5, atol=1e-6)


def test_nt_xent_ignores_samples_that_are_not_finite():
    a, b = randn(6, 4), randn(6, 4, seed=1)
    b[1, 2], a[4, 0] = float('nan'), float('inf')
    a.requires_grad_()
    keep = torch.tensor([0, 2, 3, 5])
    loss = nt_xent(a, b, temperature=0.2)
    torch.testing.assert_close(loss, nt_xent(a[keep], b[keep], temperature=0.2))
    (grad,) = torch.autograd.grad(loss, a)
    assert grad.isfinite().all()
    assert grad[[1, 4]].eq(0).all()
    assert nt_xent(a.detach() * float('nan'), b, temperature=0.2).isnan()
    zero = torch.zeros(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(nt_xent(zero, randn(3, 4), temperature=0.2), zero)
    assert grad.eq(0).all()


def test_nt_xent_bad_input():
    with pytest.raises(ValueError, match='one shape'):
        nt_xent(randn(3, 4), randn(4, 4), temperature=0.1)
    with pytest.raises(TypeError, match='floating'):
        nt_xent(torch.zeros(3, 4, dtype=torch.int64), randn(3, 4), temperature=0.1)
    with pytest.raises(ValueError, match='temperature'):
        nt_xent(randn(3, 4), randn(3, 4), temperature=-1)
    with pytest.raises(ValueError, match='at least one dimension'):
        nt_xent(randn(3, 0), randn(3, 0), temperature=1.0)
