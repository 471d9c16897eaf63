# SPDX-License-Identifier: Apache-2.0
"""pair_contrast_terms: the dense form is the oracle, for values and gradients; several passes, one rank's anchors."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from clusterplug.functional import pair_contrast_terms, subclass_contrast_terms
from clusterplug.functional.contrast import PairProblem, _negatives, fused_contrast, pair_contrast


def problem(seed=0, classes=4, points=13, dims=8, clusters=3, dtype=torch.float64, left_out=0.2):
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(classes, points, dims, generator=generator, dtype=dtype), dim=-1).requires_grad_()
    ids = torch.randint(0, clusters, (classes, points), generator=generator) + clusters * torch.arange(classes)[:, None]
    no_key = torch.rand(classes, points, generator=generator) < left_out
    ids = ids.masked_fill(no_key, -1)
    return x, ids, no_key, torch.rand(classes, points, generator=generator, dtype=dtype)


def dense(x, ids, no_key, weights, rows, **options):
    """For the anchors in ``rows`` of every class."""
    number = ids.shape[1]
    outs = []
    for place in range(x.shape[1])[rows]:
        for row in range(len(x)):
            one = subclass_contrast_terms(
                x[row, place : place + 1], ids[row, place : place + 1],
                x.flatten(0, 1), ids.flatten(), no_key.flatten(),
                self_offset=row * number + place, **options,
            )  # fmt: skip
            outs.append((row, place, *one))
    used = [(value, count, weights[row, place]) for row, place, value, count in outs if not no_key[row, place]]
    total = sum((value * weight).sum() for value, count, weight in used) + 0 * x.sum()
    (slope,) = torch.autograd.grad(total, x)
    values = torch.cat([value for value, *_ in used]) if used else x.new_zeros(0)
    return values, torch.tensor([int(count) for _, count, _ in used], dtype=torch.int64), slope


def ours(x, ids, no_key, weights, rows, **options):
    start = rows.start or 0
    values, count = pair_contrast_terms(x[:, rows], ids[:, rows], x, ids, no_key, self_offset=start, **options)
    used = ~no_key[:, rows].T
    (slope,) = torch.autograd.grad((values * weights[:, rows]).T[used].sum(), x)
    return values.T[used], count.T[used], slope


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), classes=st.integers(1, 4), points=st.integers(1, 8), clusters=st.integers(1, 4),
    left_out=st.sampled_from([0, 0.5, 1]), temperature=st.sampled_from([0.05, 0.1, 1.0]),
    self_is_negative=st.booleans(),
)  # fmt: skip
def test_equals_the_dense_form(seed, classes, points, clusters, left_out, temperature, self_is_negative):
    sets = problem(seed, classes, points, clusters=clusters, left_out=left_out)
    options = dict(temperature=temperature, count_self_as_negative=self_is_negative)
    for found, expected in zip(ours(*sets, slice(None), **options), dense(*sets, slice(None), **options)):
        # beyond 20, torch's softplus takes its slope for 1, which is 2e-9 off
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('kept', [0, 2**30])
@pytest.mark.parametrize('rows', [slice(None), slice(5, 9)])
@pytest.mark.parametrize('buffer', [1, 7 * 4 * 13 * 8, 2**30])
def test_in_several_passes_and_for_the_anchors_of_one_rank(monkeypatch, kept, rows, buffer):
    monkeypatch.setattr(pair_contrast, '_MOST_KEPT_BYTES', kept)
    monkeypatch.setitem(_negatives._PASS_BYTES, 'cpu', buffer)
    sets = problem()
    for found, expected in zip(ours(*sets, rows, temperature=0.1), dense(*sets, rows, temperature=0.1)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('temperature', [0.005, 0.02, 0.039, 0.04, 0.1])
def test_single_precision(temperature):
    exact = ours(*problem(points=60), slice(None), temperature=temperature)
    x, *rest, weights = problem(points=60)
    single = ours(x.detach().float().requires_grad_(), *rest, weights.float(), slice(None), temperature=temperature)
    assert single[0].dtype == torch.float32
    # logits of 1 / temperature, each with a rounding error of 1e-7 of it
    torch.testing.assert_close(single[0].double(), exact[0], rtol=1e-5, atol=1e-7 / temperature)
    torch.testing.assert_close(single[2].double(), exact[2], rtol=1e-4, atol=1e-6 / temperature**2)


@pytest.mark.parametrize('temperature', [0.01, 0.04, 0.1])
def test_no_negative_gives_nothing(temperature):
    x, _, no_key, weights = problem(classes=1, left_out=0, dtype=torch.float32)
    values, _, slope = ours(
        x, torch.zeros(1, 13, dtype=torch.long), no_key, weights, slice(None), temperature=temperature
    )
    assert values.abs().max() < 1e-8
    assert slope.abs().max() < 1e-6


def test_a_graph_that_is_kept_gives_the_gradient_again():
    x, ids, no_key, _ = problem()
    values, _ = pair_contrast_terms(x, ids, x, ids, no_key, temperature=0.1, self_offset=0)
    first, second = (torch.autograd.grad(values.sum(), x, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def test_gradcheck():
    x, ids, no_key, _ = problem(classes=2, points=4, dims=3, left_out=0)

    def loss(anchors, keys):
        return pair_contrast_terms(anchors, ids[:, 1:3], keys, ids, no_key, temperature=0.5)[0]

    assert torch.autograd.gradcheck(loss, (x[:, 1:3].detach().clone().requires_grad_(), x))


def test_no_anchors_keep_a_gradient_path():
    x, ids, no_key, _ = problem()
    values, count = pair_contrast_terms(x[:, :0], ids[:, :0], x, ids, no_key, temperature=0.1)
    assert values.shape == count.shape == (4, 0)
    values.sum().backward()
    assert not x.grad.any()


def test_bad_input():
    x, ids, no_key, _ = problem()
    with pytest.raises(ValueError, match=r'key_ids must have one entry for each row, \(4, 13\), got \(4, 12\)'):
        pair_contrast_terms(x, ids, x, ids[:, 1:], no_key, temperature=0.1)
    with pytest.raises(ValueError, match=r'anchors and keys must have shapes \(C, V, D\) and \(C, B, D\)'):
        pair_contrast_terms(x[:2], ids[:2], x, ids, no_key, temperature=0.1)
    with pytest.raises(ValueError, match='temperature must be positive'):
        pair_contrast_terms(x, ids, x, ids, no_key, temperature=0.0)


@pytest.mark.parametrize('rows', [slice(None), slice(5, 9)])
def test_negatives_in_every_third_slot_stand_for_three(rows):
    """Against the dense form with weights on the negatives, and values and slopes near those with all."""
    x, ids, no_key, weights = problem(points=15, clusters=2)
    flat, start = x.flatten(0, 1), rows.start or 0
    anchors, anchor_ids = x[:, rows], ids[:, rows]
    found = PairProblem(anchor_ids, x.detach(), ids, no_key, 0.2, start, negatives=(1, 3))
    (values,), (count,) = fused_contrast(anchors.flatten(0, 1), [found], flat, temperature=0.2)
    upstream = weights[:, rows].flatten()
    (slope,) = torch.autograd.grad((values * upstream).sum(), x)
    logits = anchors.flatten(0, 1) @ flat.T / 0.2
    negative = (torch.arange(15) % 3 == 1).expand(4, 15).flatten() & ~no_key.flatten()
    same = anchor_ids.flatten()[:, None] == ids.flatten()
    log_sum = (logits + math.log(3)).masked_fill(~negative | same, -torch.inf).logsumexp(1, keepdim=True)
    number = torch.arange(60).view(4, 15)[:, rows].flatten()
    positive = same & ~no_key.flatten() & (torch.arange(60) != number[:, None])
    expected = (F.softplus(log_sum - logits) * positive).sum(1) / positive.sum(1).clamp(min=1)
    torch.testing.assert_close(values, expected)
    assert torch.equal(count, positive.sum(1))
    torch.testing.assert_close(slope, torch.autograd.grad((expected * upstream).sum(), x)[0])
