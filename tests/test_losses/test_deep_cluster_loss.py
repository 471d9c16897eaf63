# SPDX-License-Identifier: Apache-2.0
"""DeepClusterLoss: a plain loop, ignored samples, state, ranks, what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F

from clusterplug.losses import DeepClusterLoss
from clusterplug.testing import run_gloo

LABELS = torch.tensor([[0, 3], [1, -1], [2, 0], [-1, 2], [3, 1], [0, 0]])
IDS = torch.tensor([4, 1, 0, 3, 5])


def make():
    loss = DeepClusterLoss(6, num_heads=2)
    loss.table.write(torch.arange(6), label_0=LABELS[:, 0], label_1=LABELS[:, 1])
    return loss


def scores(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [[torch.randn(5, 4, generator=g, dtype=dtype) for _ in range(2)] for _ in range(3)]


def by_loop(views):
    total = 0.0
    for head in range(2):
        rows = [
            -F.log_softmax(view[head][b] / 0.1, 0)[LABELS[i, head]]
            for view in views
            for b, i in enumerate(IDS.tolist())
            if LABELS[i, head] >= 0
        ]
        total = total + sum(rows) / len(rows) / 2
    return total


def test_loss_and_gradient_equal_a_loop():
    views = [[each.requires_grad_() for each in view] for view in scores()]
    loss, expected = make()(views, IDS), by_loop(views)
    torch.testing.assert_close(loss, expected)
    flat = [each for view in views for each in view]
    for a, b in zip(torch.autograd.grad(loss, flat), torch.autograd.grad(expected, flat)):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda *x: make()([list(x[:2]), list(x[2:])], IDS), flat[:4])


def test_before_the_first_clustering_it_is_zero_with_a_gradient_path():
    x = torch.randn(5, 4, requires_grad=True)
    loss = DeepClusterLoss(6)([x, x], IDS)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not x.grad.any()


def test_labels_belong_to_the_state():
    loss, other = make(), DeepClusterLoss(6, num_heads=2)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(scores(), IDS), loss(scores(), IDS))
    assert float(loss.log_values()['ln_k']) == pytest.approx(math.log(4))
    assert DeepClusterLoss(3).log_values() == {}


def test_a_bad_row_spoils_no_other_and_types_are_wide():
    views = scores()
    good = [[each.clone() for each in view] for view in views]
    views[1][0][2] = math.nan
    keep = make()(views, IDS)
    rows = torch.tensor([0, 1, 3, 4])
    total = sum(
        F.cross_entropy(view[0][rows if v == 1 else slice(None)] / 0.1,
                        LABELS[IDS[rows if v == 1 else slice(None)], 0], ignore_index=-1, reduction='sum')
        for v, view in enumerate(good)
    )  # fmt: skip
    number = sum(int((LABELS[IDS[rows if v == 1 else slice(None)], 0] >= 0).sum()) for v in range(3))
    second = [F.cross_entropy(torch.cat([view[1] for view in good]) / 0.1, LABELS[IDS, 1].repeat(3), ignore_index=-1)]
    torch.testing.assert_close(keep, (total / number + second[0]) / 2)
    half = make()([[each.bfloat16() for each in view] for view in good], IDS)
    assert half.dtype == torch.float32


def test_bad_input():
    with pytest.raises(ValueError, match='2 heads in every view'):
        make()([view[0] for view in scores()], IDS)
    with pytest.raises(ValueError, match='below the number of prototypes, 3, got 3'):
        make()([[each[:, :3] for each in view] for view in scores()], IDS)
    with pytest.raises(ValueError, match=r'one row for each of the 3 entries of sample_idx'):
        make()(scores(), IDS[:3])
    with pytest.raises(ValueError, match='7'):
        make()(scores(), torch.tensor([0, 1, 2, 3, 7]))
    with pytest.raises(ValueError, match='temperature'):
        DeepClusterLoss(6, temperature=0)


def _part(rank, size):
    rows = (slice(0, 4), slice(4, 5))[rank]
    views = [[each[rows].clone().requires_grad_() for each in view] for view in scores()]
    loss = make()(views, IDS[rows])
    loss.backward()
    return loss.detach(), views[0][0].grad


def test_uneven_ranks_equal_one_process():
    ranks = run_gloo(_part, 2)
    views = [[each.requires_grad_() for each in view] for view in scores()]
    loss = make()(views, IDS)
    loss.backward()
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([ranks[0][1], ranks[1][1]]) / 2, views[0][0].grad)
