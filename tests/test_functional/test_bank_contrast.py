# SPDX-License-Identifier: Apache-2.0
"""bank_contrast_terms: equal to subclass_contrast on the same keys, in value and gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from clusterplug.functional.contrast import (
    CenterProblem,
    _negatives,
    bank_contrast_terms,
    fused_contrast,
    sampled_bank,
    subclass_contrast_terms,
    whole_bank,
)
from clusterplug.testing import count_host_syncs


def _case(seed, num_anchors, subclasses, slots, dims, dtype=torch.float64, fill=0.6):
    g = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(num_anchors, dims, generator=g, dtype=dtype), dim=1)
    bank = F.normalize(torch.randn(subclasses, slots, dims, generator=g, dtype=dtype), dim=2)
    empty = torch.rand(subclasses, slots, generator=g) > fill
    return x, torch.randint(0, subclasses, (num_anchors,), generator=g), bank, empty


def _by_subclass_contrast(x, ids, bank, empty, temperature):
    key_ids = torch.arange(bank.shape[0]).repeat_interleave(bank.shape[1]).masked_fill(empty.flatten(), -1)
    return subclass_contrast_terms(x, ids, bank.flatten(0, 1), key_ids, empty.flatten(), temperature=temperature)


def test_by_hand():
    bank, empty = torch.eye(2)[:, None].repeat(1, 3, 1), torch.tensor([[False, False, True], [False, True, True]])
    values, count = bank_contrast_terms(torch.eye(2), torch.tensor([0, 1]), bank, empty, temperature=0.1)
    expected = torch.tensor([math.log(1 + math.exp(-10)), math.log(1 + 2 * math.exp(-10))])
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-9)
    assert count.tolist() == [2, 1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), num_anchors=st.integers(1, 10), subclasses=st.integers(1, 6), slots=st.integers(1, 5),
    dims=st.integers(1, 6), temperature=st.sampled_from([0.05, 0.1, 1.0]), fill=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_value_and_gradient_equal_subclass_contrast(seed, num_anchors, subclasses, slots, dims, temperature, fill):
    x, ids, bank, empty = _case(seed, num_anchors, subclasses, slots, dims, fill=fill)
    upstream = torch.randn(num_anchors, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    results = []
    for function in (bank_contrast_terms, _by_subclass_contrast):
        leaf = x.clone().requires_grad_()
        values, count = function(leaf, ids, bank, empty, temperature=temperature)
        # an anchor without positives has no meaning; both must give 0
        (values * upstream).sum().backward()
        results.append((values.detach(), count, leaf.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize('temperature', [0.005, 0.02, 0.039, 0.04, 0.1])
def test_fp32_accuracy(temperature):
    x, ids, bank, empty = _case(0, 200, 30, 20, 8, dtype=torch.float32)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    values, _ = bank_contrast_terms(leaf, ids, bank, empty, temperature=temperature)
    expected, _ = _by_subclass_contrast(exact, ids, bank.double(), empty, temperature)
    values.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6 / temperature)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-3, atol=1e-5 / temperature)


def test_gradcheck():
    x, ids, bank, empty = _case(1, 6, 4, 3, 5)
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: bank_contrast_terms(a, ids, bank, empty, temperature=0.5)[0], (x,))


def test_nothing_stored_gives_zero_with_a_gradient_path():
    x, ids, bank, _ = _case(2, 5, 3, 4, 6, dtype=torch.float32)
    x = x.requires_grad_()
    values, count = bank_contrast_terms(x, ids, bank, torch.ones(3, 4, dtype=torch.bool), temperature=0.1)
    assert torch.equal(values, torch.zeros(5))
    assert torch.equal(count, torch.zeros(5, dtype=torch.long))
    values.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_bank_gets_no_gradient_and_is_left_as_it_was():
    x, ids, bank, empty = _case(3, 5, 3, 4, 6)
    before = bank.clone()
    bank.requires_grad_()
    x.requires_grad_()
    bank_contrast_terms(x, ids, bank, empty, temperature=0.1)[0].sum().backward()
    assert bank.grad is None
    assert torch.equal(bank, before)


def test_several_passes_equal_one(monkeypatch):
    x, ids, bank, empty = _case(4, 23, 5, 4, 6)
    x.requires_grad_()
    whole = bank_contrast_terms(x, ids, bank, empty, temperature=0.1)
    grad = torch.autograd.grad(whole[0].sum(), x)[0]
    monkeypatch.setitem(_negatives._PASS_BYTES, 'cpu', 7 * (bank[..., 0].numel() + bank[0].numel()) * 8)
    parts = bank_contrast_terms(x, ids, bank, empty, temperature=0.1)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])
    torch.testing.assert_close(torch.autograd.grad(parts[0].sum(), x)[0], grad)


def test_no_host_synchronisation():
    x, ids, bank, empty = _case(5, 8, 3, 4, 6)
    x.requires_grad_()
    step = lambda: bank_contrast_terms(x, ids, bank, empty, temperature=0.1)[0].sum().backward()  # noqa: E731
    assert count_host_syncs(step).total() == 0


@pytest.mark.parametrize('temperature', [0.01, 0.1])
def test_centers_equal_subclass_contrast_and_those_not_used_count_nowhere(temperature):
    x, ids, centers, _ = _case(6, 30, 9, 1, 8)
    used = torch.arange(9) != 4
    upstream = torch.randn(30, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    problem = CenterProblem(ids, centers[:, 0], used, temperature)
    (values,), (count,) = fused_contrast(ours, [problem], temperature=temperature)
    key_ids = torch.arange(9).masked_fill(~used, -1)
    expected, positives = subclass_contrast_terms(plain, ids, centers[:, 0], key_ids, ~used, temperature=temperature)
    torch.testing.assert_close(values, expected)
    assert torch.equal(count.long(), positives)
    (values * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_several_problems_in_one_node_give_the_sum_of_their_gradients():
    x, ids, bank, empty = _case(7, 12, 5, 4, 6)
    problems = [whole_bank(ids, bank, ~empty, 0.1), CenterProblem(ids, bank[:, 0], ~empty[:, 0], 0.1)]
    upstream = torch.randn(2, 12, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    slopes = []
    for chosen in ([0, 1], [0], [1]):
        leaf = x.clone().requires_grad_()
        values, _ = fused_contrast(leaf, [problems[i] for i in chosen], temperature=0.1)
        slopes.append(torch.autograd.grad((values * upstream[chosen]).sum(), leaf)[0])
    torch.testing.assert_close(slopes[0], slopes[1] + slopes[2])


def test_sampled_rings_are_the_whole_on_average():
    """A quarter of the slots, some of them not filled: sums of exponentials and pulls come out right on average."""
    x, ids, bank, _ = _case(8, 40, 12, 16, 8)
    enqueued = torch.randint(0, 40, (12,), generator=torch.Generator().manual_seed(1))
    held = torch.arange(16) < enqueued[:, None]
    x.requires_grad_()
    values, count = fused_contrast(x, [whole_bank(ids, bank, held, 0.5)], temperature=0.5)
    slope = torch.autograd.grad(values.sum(), x)[0]
    drawn, slopes, generator = [], [], torch.Generator().manual_seed(2)
    for _ in range(400):
        problem = sampled_bank(ids, bank, enqueued, 0.5, num_negatives=4, num_positives=8, generator=generator)
        each, present = fused_contrast(x, [problem], temperature=0.5)
        assert torch.equal(present > 0, count > 0)
        drawn.append(each[0].detach())
        slopes.append(torch.autograd.grad(each.sum(), x)[0])
    torch.testing.assert_close(torch.stack(drawn).mean(0), values[0].detach(), rtol=0.05, atol=0.02)
    torch.testing.assert_close(torch.stack(slopes).mean(0), slope, rtol=0.1, atol=0.06)
    assert not each[0][~(count[0] > 0)].any()
