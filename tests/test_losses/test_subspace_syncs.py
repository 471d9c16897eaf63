# SPDX-License-Identifier: Apache-2.0
"""Koopman terms, Grassmann heads and their optimizer never wait for the device in a training step."""

import importlib

import pytest
import torch
from torch import nn

from clusterplug.heads import GrassmannHead
from clusterplug.losses import KoopmanLoss, ViewDynamicsLoss
from clusterplug.optim import RiemannianSGD, grassmann_groups
from clusterplug.testing import count_host_syncs


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch):
    """Values are checked on the CPU alone; here as if the tensors were elsewhere."""
    module = importlib.import_module('clusterplug.functional.contrast.temporal_contrast')  # the name is the function's
    monkeypatch.setattr(module, 'host_checks_allowed', lambda *_: False)


@pytest.mark.parametrize('operator', ['ridge', 'learned', 'orthogonal'])
def test_koopman_terms(operator):
    loss = KoopmanLoss(6, operator, num_neighbors=1)
    z = torch.randn(3, 5, 6, requires_grad=True)
    assert count_host_syncs(lambda: sum(loss(z).values()).backward()).total() == 0
    views = [torch.randn(4, 6, requires_grad=True) for _ in range(3)]
    assert count_host_syncs(lambda: sum(ViewDynamicsLoss(loss)(views).values()).backward()).total() == 0
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize('shape', [(5, 8), (2, 8, 3, 3)])
def test_grassmann_head_and_its_step(shape):
    head = GrassmannHead(8, 4, 2, channels_first=len(shape) > 2)
    model = nn.Sequential(nn.BatchNorm2d(8) if len(shape) > 2 else nn.BatchNorm1d(8), head).train()
    optimizer = RiemannianSGD(grassmann_groups(model), 0.1, 0.9, reorthonormalize_every=1)
    x = torch.randn(shape)
    model(x)  # looks once at the bases after a switch of the mode

    def step():
        model(x).square().mean().backward()
        optimizer.step()

    before = head.bases.detach().clone()
    assert count_host_syncs(step).total() == 0
    assert not torch.equal(before, head.bases)
