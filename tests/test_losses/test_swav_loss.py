# SPDX-License-Identifier: Apache-2.0
"""SwAVLoss: a plain loop of the published algorithm, its invariants, the queue, ranks, what is refused."""

import math
import sys
import warnings
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional import balanced_codes
from clusterplug.losses import SwAVLoss
from clusterplug.testing import count_host_syncs, run_gloo


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def codes_by_loop(scores, epsilon=0.05, num_iters=3):
    """The published iteration: prototypes (rows of the matrix) first, samples last."""
    q = torch.exp(scores.double() / epsilon).T
    q /= q.sum()
    for _ in range(num_iters):
        q /= q.sum(1, keepdim=True)
        q /= q.shape[0]
        q /= q.sum(0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1]).T


def loss_by_loop(scores, queue=None, temperature=0.1, assign=(0, 1)):
    total = 0.0
    for n, a in enumerate(assign):
        x = scores[a].detach()
        if queue is not None:
            x = torch.cat([queue[n], x])
        codes = codes_by_loop(x)[-len(scores[a]) :]
        part = 0.0
        for v in range(len(scores)):
            if v != a:
                part = part - (codes * F.log_softmax(scores[v] / temperature, 1)).sum(1).mean()
        total = total + part / (len(scores) - 1)
    return total / len(assign)


def views(num_views=4, num_samples=24, num_prototypes=10, seed=0, dtype=torch.float64):
    prototypes = unit(num_prototypes, 16, seed=seed + 100, dtype=dtype)
    return [unit(num_samples, 16, seed=seed + v, dtype=dtype) @ prototypes.T for v in range(num_views)]


@pytest.mark.parametrize(('num_views', 'assign'), [(2, (0, 1)), (4, (0, 1)), (8, (0, 1)), (3, (1,)), (3, (0, 1, 2))])
def test_loss_and_gradient_equal_the_loop(num_views, assign):
    scores = [each.requires_grad_() for each in views(num_views)]
    loss = SwAVLoss(assign_views=assign)(scores)
    expected = loss_by_loop(scores, assign=assign)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    # an assigned view that no other view's code is predicted from has no gradient in the loop
    ours = torch.autograd.grad(loss, scores, allow_unused=True, materialize_grads=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, scores, allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_no_gradient_through_the_codes():
    scores = [each.requires_grad_() for each in views(2)]
    codes = codes_by_loop(scores[0].detach())
    SwAVLoss(assign_views=(0,))(scores).backward()
    assert scores[0].grad is None or not scores[0].grad.any()
    expected = ((scores[1].detach() / 0.1).softmax(1) - codes) / 0.1 / len(codes)
    torch.testing.assert_close(scores[1].grad, expected, rtol=1e-9, atol=1e-12)


def test_hand_computed_case():
    scores = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])] * 2  # codes: one-hot to exp(-20)
    expected = math.log(1 + math.exp(-10)) + 10 / (1 + math.exp(20))
    assert float(SwAVLoss()(scores)) == pytest.approx(expected, rel=1e-3)


def test_codes_of_the_card():
    """256 random unit vectors, d 128, K 30: error of the prototype masses 0.24, 0.011, 3e-7 (see the card)."""
    scores = unit(256, 128) @ unit(30, 128, seed=1).T
    errors = []
    for num_iters in (1, 3, 10):
        codes = balanced_codes(scores, epsilon=0.05, num_iters=num_iters)
        assert (codes.sum(1) - 1).abs().max() < 3e-15
        torch.testing.assert_close(codes, codes_by_loop(scores, num_iters=num_iters), rtol=0, atol=2e-15)
        errors.append(float((codes.sum(0) * 30 / 256 - 1).abs().max()))
    assert 0.1 < errors[0] < 0.4
    assert 0.005 < errors[1] < 0.02
    assert errors[2] < 3e-6


@pytest.mark.parametrize('with_queue', [False, True])
def test_loss_gradient_and_codes_equal_lightly(with_queue):
    theirs = pytest.importorskip('lightly.loss.swav_loss', reason='oracle: pip install --no-deps lightly')
    scores = [each.requires_grad_() for each in views(5)]
    queue = list(views(2, 40, seed=7)) if with_queue else None
    expected = theirs.SwaVLoss()(scores[:2], scores[2:], queue).squeeze()
    loss = SwAVLoss()(scores, queue)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours, goal = (torch.autograd.grad(each, scores) for each in (loss, expected))
    torch.testing.assert_close(ours, goal, rtol=1e-10, atol=1e-14)
    raw = unit(256, 128) @ unit(30, 128, seed=1).T
    for num_iters in (1, 3, 10):
        codes = balanced_codes(raw, epsilon=0.05, num_iters=num_iters)
        torch.testing.assert_close(codes, theirs.sinkhorn(raw, num_iters, 0.05), rtol=0, atol=2e-15)


def test_codes_converge_to_exact_transport():
    ot = pytest.importorskip('ot')
    scores = unit(24, 16) @ unit(6, 16, seed=1).T
    plan = ot.sinkhorn([1 / 24] * 24, [1 / 6] * 6, -scores.numpy(), 0.05, numItermax=5000, stopThr=1e-15)
    codes = balanced_codes(scores, epsilon=0.05, num_iters=5000)
    assert (24 * torch.from_numpy(plan) - codes).abs().max() < 1e-12


def test_invariants_of_the_codes():
    scores = unit(40, 16) @ unit(8, 16, seed=1).T
    options = dict(epsilon=0.05, num_iters=3)
    codes = balanced_codes(scores, **options)
    constant = torch.linspace(-0.2, 0.2, 8, dtype=torch.float64)
    torch.testing.assert_close(balanced_codes(scores + constant, **options), codes)  # prototypes are normalized first
    rows = torch.linspace(-0.2, 0.2, 40, dtype=torch.float64)[:, None]
    assert (balanced_codes(scores + rows, **options) - codes).abs().max() > 1e-3
    for num_iters in (200,):
        both = [balanced_codes(x, epsilon=0.05, num_iters=num_iters) for x in (scores, scores + rows)]
        torch.testing.assert_close(*both, rtol=1e-6, atol=1e-9)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(balanced_codes(scores[order], **options), codes[order])
    torch.testing.assert_close(balanced_codes(scores[:, order[order < 8]], **options), codes[:, order[order < 8]])
    uniform = balanced_codes(scores, epsilon=1e6, num_iters=3)
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / 8), rtol=1e-5, atol=0)


def test_small_epsilon_is_a_permutation():
    optimize = pytest.importorskip('scipy.optimize')
    scores = unit(8, 16) @ unit(8, 16, seed=1).T
    codes = balanced_codes(scores, epsilon=1e-3, num_iters=3000)
    rows, cols = optimize.linear_sum_assignment(-scores.numpy())
    assert codes.argmax(1).tolist() == cols[rows.argsort()].tolist()


def test_collapse_is_ln_k_and_shows_in_the_log():
    loss = SwAVLoss()
    same = torch.ones(12, 10) * 0.3
    assert float(loss([same] * 3)) == pytest.approx(math.log(10), rel=1e-6)
    log = loss.log_values()
    assert float(log['ln_k']) == pytest.approx(math.log(10))
    assert float(log['code_entropy']) == pytest.approx(1, rel=1e-5)
    assert float(log['prototypes_used']) == pytest.approx(0.1)
    assert not any('loss' in name for name in log)  # mmengine adds up what is called so
    loss([torch.eye(10)] * 2)
    assert float(loss.log_values()['prototypes_used']) == 1
    assert float(loss.log_values()['largest_prototype']) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize('scale', [1e3, 1e20, 3e38])
def test_raw_logits_of_any_size_give_finite_numbers(scale):
    scores = [(each.float() * scale).requires_grad_() for each in views(2)]
    loss = SwAVLoss(epsilon=0.001)(scores)
    loss.backward()
    codes = SwAVLoss(epsilon=0.001).codes(scores)
    assert torch.isfinite(codes).all()
    if scale < 1e30:  # beyond, the loss itself is larger than fp32 holds
        assert torch.isfinite(loss)
        assert all(torch.isfinite(each.grad).all() for each in scores)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_scores_under_autocast(dtype):
    scores = [each.to(dtype) for each in views(3)]
    with torch.autocast('cpu', torch.bfloat16):
        loss = SwAVLoss()(scores)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, SwAVLoss()([each.float() for each in scores]))


def test_queue_takes_part_in_the_assignment_alone():
    scores = [each.requires_grad_() for each in views(3)]
    queue = torch.stack(views(2, 40, seed=7))
    loss = SwAVLoss()(scores, queue)
    torch.testing.assert_close(loss, loss_by_loop(scores, queue), rtol=1e-12, atol=0)
    torch.testing.assert_close(SwAVLoss()(scores, list(queue)), loss)
    shared = SwAVLoss()(scores, queue[:1].expand(2, -1, -1))
    torch.testing.assert_close(SwAVLoss()(scores, queue[0]), shared, rtol=0, atol=0)
    assert abs(float(loss.detach() - SwAVLoss()(scores).detach())) > 1e-4
    order = torch.randperm(40)  # the order of a ring does not matter
    torch.testing.assert_close(SwAVLoss()(scores, queue[:, order]), loss)
    half = torch.arange(40).expand(2, -1) < 20
    torch.testing.assert_close(SwAVLoss()(scores, queue, half), SwAVLoss()(scores, queue[:, :20]))
    assert torch.equal(SwAVLoss()(scores, queue, half & False), SwAVLoss()(scores)) or torch.allclose(
        SwAVLoss()(scores, queue, half & False), SwAVLoss()(scores)
    )


def test_rows_that_are_not_finite_spoil_nothing_where_nobody_looks(monkeypatch):
    scores = views(3)
    good = [each[1:] for each in scores]
    broken = [each.clone() for each in scores]
    broken[0][0] = math.nan
    broken[1][0, 3] = -math.inf
    broken[2][0] = math.inf
    with pytest.raises(ValueError, match='scores of view 0 must be finite'):
        SwAVLoss()(broken)
    monkeypatch.setattr('clusterplug.losses.swav.host_checks_allowed', lambda x: False)
    broken = [each.requires_grad_() for each in broken]
    loss = SwAVLoss()(broken)
    torch.testing.assert_close(loss, SwAVLoss()(good))
    torch.testing.assert_close(loss, loss_by_loop(good))
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in broken)
    assert not any(each.grad[0].any() for each in broken)


def test_no_step_waits_for_the_device(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith('clusterplug.') and hasattr(module, 'host_checks_allowed'):
            monkeypatch.setattr(module, 'host_checks_allowed', lambda x: False)
    loss, scores = SwAVLoss(), [each.requires_grad_() for each in views(4)]
    queue = torch.stack(views(2, 40, seed=7))
    waits = count_host_syncs(lambda: (loss(scores, queue).backward(), loss.log_values()))
    assert not waits, waits


def test_empty_batch_and_strides():
    empty = [torch.zeros(0, 5, requires_grad=True) for _ in range(2)]
    loss = SwAVLoss()(empty)
    loss.backward()
    assert float(loss.detach()) == 0
    assert SwAVLoss().log_values() == {}
    scores = views(2)
    transposed = [each.T.contiguous().T for each in scores]
    torch.testing.assert_close(SwAVLoss()(transposed), SwAVLoss()(scores))
    shared = scores[0][:1].expand(24, -1)
    torch.testing.assert_close(SwAVLoss()([shared, shared]), SwAVLoss()([shared.clone()] * 2))


def test_bad_input():
    scores, loss = views(2), SwAVLoss()
    with pytest.raises(ValueError, match='at least 2 views'):
        loss(scores[:1])
    with pytest.raises(ValueError, match=r'views 0 to 1, got \[2\]'):
        SwAVLoss(assign_views=(0, 2))(scores)
    with pytest.raises(ValueError, match='one sample'):
        loss([each[:1] for each in scores])
    with pytest.raises(ValueError, match=r'\(B, K\) for every view'):
        loss([scores[0], scores[1][:5]])
    with pytest.raises(ValueError, match=r'queue_scores must be \(2, L, 10\)'):
        loss(scores, torch.zeros(2, 5, 3))
    with pytest.raises(TypeError, match='floating'):
        loss([each.long() for each in scores])
    for options in (dict(epsilon=0), dict(temperature=-1), dict(num_iters=0), dict(assign_views=()),
                    dict(assign_views=(0, 0)), dict(assign_views=(-1,)), dict(epsilon=math.nan)):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(options))):
            SwAVLoss(**options)
    with pytest.warns(UserWarning, match='50 prototypes for 24 samples'):
        loss(views(2, 24, 50))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loss(views(2, 24, 50))  # once


def _rank_part(rank, size):
    split, queue_split = (0, 15, 24), (0, 21, 40)
    rows, remembered = slice(split[rank], split[rank + 1]), slice(queue_split[rank], queue_split[rank + 1])
    results = []
    for broken in (False, True):
        scores = views(3)
        if broken:
            scores[1][2] = math.nan
            rows = slice(0, 24) if rank == 0 else slice(24, 24)  # the other rank has nothing
        scores = [each[rows].clone().requires_grad_() for each in scores]
        with mock.patch('torch.distributed.all_gather', side_effect=torch.distributed.all_gather) as gather:
            loss = SwAVLoss()(scores, torch.stack(views(2, 40, seed=7))[:, remembered])
        loss.backward()
        results.append((loss.detach(), [each.grad for each in scores], gather.call_count))
    return results


def test_uneven_ranks_equal_one_process(monkeypatch):
    ranks = run_gloo(_rank_part, 2)
    monkeypatch.setattr('clusterplug.losses.swav.host_checks_allowed', lambda x: False)
    for n, broken in enumerate((False, True)):
        scores = views(3)
        if broken:
            scores[1][2] = math.nan
        scores = [each.requires_grad_() for each in scores]
        loss = SwAVLoss()(scores, torch.stack(views(2, 40, seed=7)))
        loss.backward()
        torch.testing.assert_close(sum(rank[n][0] for rank in ranks) / 2, loss.detach(), rtol=1e-10, atol=0)
        for v, each in enumerate(scores):
            ours = torch.cat([rank[n][1][v] for rank in ranks]) / 2
            torch.testing.assert_close(ours, each.grad, rtol=1e-8, atol=1e-12)
        # three for three iterations of both crops, one for the numbers of samples
        assert [rank[n][2] for rank in ranks] == [4, 4]
