# SPDX-License-Identifier: Apache-2.0
"""A sample whose features are all 0, by dropout or a mask: the gradients of the parameters stay finite."""

import pytest
import torch
from torch import nn

from clusterplug.core.numerics import unit_rows
from clusterplug.functional import gated_similarity, nt_xent
from clusterplug.heads import MatryoshkaHead, MultiLabelClusterHead, PrototypeHead
from clusterplug.losses import BatchEnhancedLoss, MarginLoss, SwAVLoss


def enhanced(z):
    pair = (z, z.roll(1, 1))
    return sum(BatchEnhancedLoss()(pair, pair, pair).values())


def swav(head):
    return lambda z: SwAVLoss()([head(z), head(z * torch.linspace(1, 2, 8, dtype=z.dtype))])


LOSSES = dict(
    prototypes=swav(PrototypeHead(8, 4)),
    levels=lambda z: sum(
        score.square().sum() for score in MatryoshkaHead(8, 8, (2, 1), num_layers=0, normalize=True)(z)
    ),
    classes=lambda z: MultiLabelClusterHead(5, 8, sample_rate=1.0)(z, torch.arange(6)[:, None] % 5),
    enhanced=enhanced,
    margin=lambda z: MarginLoss()(z, torch.arange(6) % 2),
    pairs=lambda z: nt_xent(z, z.roll(1, 1), temperature=0.1),
    gated=lambda z: gated_similarity(z, z.roll(1, 0), z.detach() + 0.1).sum(),
)


@pytest.mark.parametrize('name', LOSSES)
def test_gradients_stay_finite(name):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    kept = torch.ones(6, 1)
    kept[2] = 0
    loss = LOSSES[name](layer(torch.randn(6, 8)) * kept)
    loss.backward()
    assert loss.isfinite()
    assert layer.weight.grad.isfinite().all()
    assert layer.bias.grad.isfinite().all()
    assert 0 < layer.weight.grad.norm() < 1e3


def test_centers_of_zeros_learn_as_others():
    head = MultiLabelClusterHead(4, 8, sample_rate=1.0)
    with torch.no_grad():
        head.weight[1] = 0  # a cluster without members
    head(torch.randn(6, 8), torch.arange(6)[:, None] % 4).backward()
    assert 0 < head.weight.grad[1].norm() < 1e3


def test_rows_of_length_one():
    x = torch.tensor([[3e30, 4e30], [3e-20, 4e-20], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]], requires_grad=True)
    found = unit_rows(x)
    torch.testing.assert_close(found[:3], torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]))
    assert found[3:, 0].isnan().all()
    (grad,) = torch.autograd.grad(found[:3].sum(), x)
    assert grad[2].tolist() == [0, 0]
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_rows, (y,))
