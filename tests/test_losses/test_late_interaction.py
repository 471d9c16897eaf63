# SPDX-License-Identifier: Apache-2.0
"""Late interaction: against a plain loop, with hard negatives, over ranks, and what it trains."""

import pytest
import torch

from clusterplug.functional import chamfer_similarity
from clusterplug.layers import MultiVectorClustering
from clusterplug.losses import LateInteractionLoss
from clusterplug.registry import MODELS
from clusterplug.testing.counters import count_host_syncs
from clusterplug.testing.distributed import run_gloo


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lengths(*counts, width):
    return torch.arange(width) < torch.tensor(counts)[:, None]


def test_as_cross_entropy():
    q, d = randn(4, 5, 6), randn(7, 8, 6, seed=1)  # three hard negatives
    masks = lengths(5, 2, 3, 1, width=5), lengths(8, 3, 4, 8, 1, 2, 5, width=8)
    loss = MODELS.build(dict(type='LateInteractionLoss', temperature=2.0))
    scores = chamfer_similarity(q, masks[0], d, masks[1])
    expected = torch.nn.functional.cross_entropy(scores / 2, torch.arange(4))
    torch.testing.assert_close(loss(q, masks[0], d, masks[1]), expected)
    scores = scores / masks[0].sum(1, keepdim=True)
    expected = torch.nn.functional.cross_entropy(scores / 0.05, torch.arange(4))
    torch.testing.assert_close(LateInteractionLoss(0.05, average=True)(q, masks[0], d, masks[1]), expected)
    assert loss(q, None, d, None).isfinite()
    q.requires_grad_(), d.requires_grad_()
    assert not count_host_syncs(lambda: loss(q, masks[0], d, masks[1]).backward())
    assert q.grad[~masks[0]].eq(0).all()
    assert d.grad[~masks[1]].eq(0).all()


def test_what_has_no_vector_is_ignored():
    q, d = randn(3, 4, 6), randn(4, 5, 6, seed=1)
    q[1], d[2] = torch.nan, torch.nan
    masks = lengths(4, 0, 4, width=4), lengths(5, 5, 0, 5, width=5)
    q.requires_grad_(), d.requires_grad_()
    value = LateInteractionLoss(1.0)(q, masks[0], d, masks[1])
    scores = chamfer_similarity(q.detach()[:1], None, d.detach()[[0, 1, 3]], None)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(scores, torch.tensor([0])))
    value.backward()
    assert q.grad.isfinite().all()
    assert d.grad.isfinite().all()
    nothing = LateInteractionLoss(1.0)(q, lengths(0, 0, 0, width=4), d, masks[1])
    assert nothing == 0
    nothing.backward()
    empty = LateInteractionLoss(1.0)(q[:0], masks[0][:0], d[:0], masks[1][:0])
    assert empty == 0
    empty.backward()


def test_half_precision_and_autocast():
    q, d = (randn(3, 20, 64) * 30).half(), (randn(3, 20, 64, seed=1) * 30).half()
    value = LateInteractionLoss(1000.0)(q, None, d, None)
    torch.testing.assert_close(value, LateInteractionLoss(1000.0)(q.float(), None, d.float(), None))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(LateInteractionLoss(1000.0)(q, None, d, None), value)


def test_gradient():
    q, d = randn(2, 3, 2).double().requires_grad_(), randn(3, 2, 2, seed=1).double().requires_grad_()
    masks = lengths(3, 2, width=3), lengths(2, 1, 2, width=2)
    assert torch.autograd.gradcheck(lambda q, d: LateInteractionLoss(0.7)(q, masks[0], d, masks[1]), (q, d))


def data():
    q, d, hard = randn(5, 4, 6), randn(5, 9, 6, seed=1), randn(3, 9, 6, seed=2)
    return q, lengths(4, 3, 1, 4, 2, width=4), d, lengths(9, 6, 3, 2, 9, width=9), hard, lengths(9, 5, 4, width=9)


def step(q, q_mask, d, d_mask, model):
    cluster = MultiVectorClustering(num_clusters=3)
    value = LateInteractionLoss(2.0)(model(q), q_mask, *cluster(model(d), d_mask))
    value.backward()
    return value.detach()


def on_rank(rank, _):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4)
    q, q_mask, d, d_mask, hard, hard_mask = data()
    part, negatives = (slice(0, 2), slice(0, 1)) if rank == 0 else (slice(2, 5), slice(1, 3))
    documents = torch.cat([d[part], hard[negatives]]), torch.cat([d_mask[part], hard_mask[negatives]])
    value = step(q[part], q_mask[part], *documents, model)
    torch.distributed.all_reduce(model.weight.grad)
    return value, model.weight.grad / 2


def test_two_ranks_equal_one_process():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4)
    q, q_mask, d, d_mask, hard, hard_mask = data()
    value = step(q, q_mask, torch.cat([d, hard]), torch.cat([d_mask, hard_mask]), model)
    found = run_gloo(on_rank, 2)  # two queries and one hard negative here, three and two there
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, value)
    for _, grad in found:
        torch.testing.assert_close(grad, model.weight.grad)


def test_bad_input():
    q, d = randn(3, 4, 6), randn(2, 4, 6)
    loss = LateInteractionLoss(1.0)
    for given, error, message in (
        ((q, None, d, None), ValueError, 'got 2 documents for 3 queries'),
        ((q[0], None, d, None), ValueError, 'queries must have shape'),
        ((q, torch.ones(3, 4), q, None), TypeError, 'query_mask must be a bool'),
        ((q, None, q, torch.ones(3, 5, dtype=torch.bool)), ValueError, 'document_mask must have shape'),
        ((q, None, q[..., :5], None), ValueError, 'same width'),
    ):
        with pytest.raises(error, match=message):
            loss(*given)
    with pytest.raises(ValueError, match='temperature'):
        LateInteractionLoss(0)
