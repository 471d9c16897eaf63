# SPDX-License-Identifier: Apache-2.0
"""subclass_contrast: values by hand, a loop, gradients, dtypes, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from clusterplug.functional.contrast import subclass_contrast, subclass_contrast_terms


def _unit(generator, *shape, dtype=torch.float32):
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def _by_loop(anchors, anchor_ids, keys, key_ids, temperature, exclude_self=False, self_is_negative=False):
    """The definition, one pair after the other, in float64."""
    values = []
    for i, anchor in enumerate(anchors.double()):
        if anchor_ids[i] < 0:
            continue
        logits = [float(anchor @ key) / temperature for key in keys.double()]
        usable = [j for j in range(len(keys)) if key_ids[j] >= 0]
        positives = [j for j in usable if key_ids[j] == anchor_ids[i] and not (exclude_self and j == i)]
        negatives = [j for j in usable if key_ids[j] != anchor_ids[i]]
        if exclude_self and self_is_negative:
            negatives.append(i)
        if not positives:
            continue
        pairs = [-math.log(1 / (1 + sum(math.exp(logits[m] - logits[j]) for m in negatives))) for j in positives]
        values.append(sum(pairs) / len(pairs))
    return torch.tensor(values, dtype=torch.float64)


def _two_tight_subclasses():
    return torch.eye(2).repeat_interleave(5, 0), torch.tensor([0] * 5 + [1] * 5)


def test_floor_of_the_loss_by_hand():
    x, ids = _two_tight_subclasses()
    clean = subclass_contrast(x, ids, x, ids, temperature=0.1, exclude_self=True)
    expected = -math.log(math.exp(10) / (math.exp(10) + 5))
    assert expected == pytest.approx(2.27e-4, rel=1e-3)
    torch.testing.assert_close(clean, torch.full((10,), expected), rtol=1e-4, atol=0)


def test_self_as_a_negative_costs_ln_2():
    x, ids = _two_tight_subclasses()
    values = subclass_contrast(x, ids, x, ids, temperature=0.1, exclude_self=True, count_self_as_negative=True)
    expected = math.log(2 + 5 * math.exp(-10))
    assert expected == pytest.approx(0.6933, abs=1e-4)
    torch.testing.assert_close(values, torch.full((10,), expected))


def test_every_positive_has_its_own_denominator():
    anchor = torch.tensor([[1.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    value = subclass_contrast(anchor, torch.tensor([7]), keys, torch.tensor([7, 7, 3]), temperature=1.0)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_equals_cross_entropy_with_one_key_per_subclass():
    g = torch.Generator().manual_seed(0)
    x, keys, ids = _unit(g, 30, 8), _unit(g, 6, 8), torch.randint(0, 6, (30,), generator=g)
    values = subclass_contrast(x, ids, keys, torch.arange(6), temperature=0.1)
    torch.testing.assert_close(values, F.cross_entropy(x @ keys.T / 0.1, ids, reduction='none'), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), num_anchors=st.integers(1, 12), num_keys=st.integers(1, 15), dims=st.integers(1, 6),
    num_ids=st.integers(1, 5), temperature=st.sampled_from([0.07, 0.1, 1.0]), dtype=st.sampled_from(['32', '64']),
)  # fmt: skip
def test_equals_the_loop(seed, num_anchors, num_keys, dims, num_ids, temperature, dtype):
    g, dtype = torch.Generator().manual_seed(seed), getattr(torch, f'float{dtype}')
    x, keys = _unit(g, num_anchors, dims, dtype=dtype), _unit(g, num_keys, dims, dtype=dtype)
    ids = torch.randint(-1, num_ids, (num_anchors,), generator=g)
    key_ids = torch.randint(-1, num_ids, (num_keys,), generator=g)
    values = subclass_contrast(x, ids, keys, key_ids, temperature=temperature)
    assert values.dtype == dtype
    torch.testing.assert_close(values.double(), _by_loop(x, ids, keys, key_ids, temperature), rtol=2e-4, atol=2e-5)
    for self_is_negative in (False, True):
        values = subclass_contrast(
            x, ids, x, ids, temperature=temperature, exclude_self=True, count_self_as_negative=self_is_negative
        )
        expected = _by_loop(x, ids, x, ids, temperature, True, self_is_negative)
        torch.testing.assert_close(values.double(), expected, rtol=2e-4, atol=2e-5)


def test_terms_with_an_offset_are_the_rows_of_the_whole():
    g = torch.Generator().manual_seed(1)
    x, ids = _unit(g, 12, 4), torch.randint(0, 3, (12,), generator=g)
    no_key = torch.zeros(12, dtype=torch.bool)
    whole, counts = subclass_contrast_terms(x, ids, x, ids, no_key, temperature=0.1, self_offset=0)
    part, part_counts = subclass_contrast_terms(x[5:9], ids[5:9], x, ids, no_key, temperature=0.1, self_offset=5)
    torch.testing.assert_close(part, whole[5:9])
    assert torch.equal(part_counts, counts[5:9])


def test_order_of_keys_does_not_matter():
    g = torch.Generator().manual_seed(2)
    x, keys = _unit(g, 9, 5), _unit(g, 20, 5)
    ids, key_ids, order = torch.arange(9) % 3, torch.arange(20) % 4, torch.randperm(20, generator=g)
    a = subclass_contrast(x, ids, keys, key_ids, temperature=0.1)
    b = subclass_contrast(x, ids, keys[order], key_ids[order], temperature=0.1)
    torch.testing.assert_close(a, b)


def test_anchor_without_negatives_costs_nothing_and_without_positives_is_left_out():
    x = torch.eye(3)
    only = subclass_contrast(x, torch.zeros(3, dtype=torch.long), x, torch.zeros(3, dtype=torch.long), temperature=0.1)
    assert torch.equal(only, torch.zeros(3))
    none = subclass_contrast(x, torch.arange(3), x, torch.arange(3), temperature=0.1, exclude_self=True)
    assert none.shape == (0,)


@pytest.mark.parametrize(('num_anchors', 'num_keys'), [(0, 4), (4, 0), (0, 0)])
def test_empty_input_keeps_a_gradient_path(num_anchors, num_keys):
    x = torch.zeros(num_anchors, 3, requires_grad=True)
    ids, key_ids = torch.zeros(num_anchors, dtype=torch.long), torch.zeros(num_keys, dtype=torch.long)
    values = subclass_contrast(x, ids, torch.zeros(num_keys, 3), key_ids, temperature=0.1)
    assert values.shape == (0,)
    values.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize('self_is_negative', [False, True])
def test_gradcheck(self_is_negative):
    g = torch.Generator().manual_seed(3)
    x = _unit(g, 7, 4, dtype=torch.float64).requires_grad_()
    keys = _unit(g, 6, 4, dtype=torch.float64).requires_grad_()
    ids, key_ids = torch.tensor([0, 0, 1, 1, 2, -1, 0]), torch.tensor([0, 1, 2, 0, 1, -1])
    assert torch.autograd.gradcheck(lambda a, k: subclass_contrast(a, ids, k, key_ids, temperature=0.5), (x, keys))
    assert torch.autograd.gradcheck(
        lambda a: subclass_contrast(
            a, ids, a, ids, temperature=0.5, exclude_self=True, count_self_as_negative=self_is_negative
        ),
        (x,),
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_fp32_and_returns_its_type(dtype):
    g = torch.Generator().manual_seed(4)
    x, keys = _unit(g, 20, 16).to(dtype), _unit(g, 40, 16).to(dtype)
    ids, key_ids = torch.arange(20) % 5, torch.arange(40) % 5
    full = subclass_contrast(x.float(), ids, keys.float(), key_ids, temperature=0.1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        values = subclass_contrast(x, ids, keys, key_ids, temperature=0.1)
        same = subclass_contrast(x.float(), ids, keys.float(), key_ids, temperature=0.1)
    assert values.dtype == dtype
    assert torch.equal(values, full.to(dtype))
    assert torch.equal(same, full)


def test_non_contiguous_input():
    g = torch.Generator().manual_seed(5)
    x, keys = _unit(g, 4, 10).T[:, :3], _unit(g, 12, 8)[::2, ::2][:, :3]
    ids, key_ids = torch.arange(20)[::2] % 3, torch.arange(6) % 3
    a = subclass_contrast(x, ids, keys, key_ids, temperature=0.1)
    b = subclass_contrast(x.contiguous(), ids.contiguous(), keys.contiguous(), key_ids, temperature=0.1)
    torch.testing.assert_close(a, b)


_X, _I = torch.eye(3), torch.arange(3)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(temperature=0.0), ValueError, 'temperature must be positive and finite'),
        (dict(temperature=float('nan')), ValueError, 'temperature'),
        (dict(anchors=[[1.0]]), TypeError, 'anchors must be a torch.Tensor'),
        (dict(keys=torch.eye(3, dtype=torch.long)), TypeError, 'keys must have a floating dtype'),
        (dict(keys=torch.eye(3, 2)), ValueError, r'\(A, D\) and \(M, D\)'),
        (dict(anchors=torch.zeros(1, 3, 3)), ValueError, r'\(A, D\) and \(M, D\)'),
        (dict(anchor_ids=torch.zeros(3)), TypeError, 'anchor_ids must be an integer tensor'),
        (dict(key_ids=torch.zeros(2, dtype=torch.long)), ValueError, r'key_ids must have shape \(3,\)'),
        (dict(keys=torch.eye(4, 3), key_ids=torch.arange(4), exclude_self=True), ValueError, '3 anchors and 4 keys'),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    arguments = {**dict(anchors=_X, anchor_ids=_I, keys=_X, key_ids=_I, temperature=0.1), **change}
    positional = [arguments.pop(name) for name in ('anchors', 'anchor_ids', 'keys', 'key_ids')]
    with pytest.raises(error, match=message):
        subclass_contrast(*positional, **arguments)
