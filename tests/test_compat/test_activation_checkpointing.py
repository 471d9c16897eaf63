# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing of layers whose arguments are no tensors."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from mmengine.runner import turn_on_activation_checkpointing

from clusterplug import compat
from clusterplug.compat.mmengine import activation_checkpointing


class Sparse:
    """Stands in for a sparse tensor: a tensor inside something that is none."""

    def __init__(self, features):
        self.features = features


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return Sparse(self.linear(x.features).relu() * scale)


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()
    yield
    compat.apply_all()


def gradients(checkpointed):
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(a=Layer(), b=Layer()))
    if checkpointed:
        turn_on_activation_checkpointing(model, ['a', 'b'])
    model['b'](model['a'](Sparse(torch.randn(5, 3))), scale=2.0).features.square().sum().backward()
    return [parameter.grad for parameter in model.parameters()], model['a'].calls


def test_gradients_are_those_without_checkpointing():
    (plain, once), (checkpointed, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2)  # computed again in the backward pass
    for a, b in zip(plain, checkpointed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings('ignore')
def test_needed_because_mmengine_takes_the_variant_for_tensors_alone():
    activation_checkpointing.WORKAROUND.remove()
    model = Layer()
    turn_on_activation_checkpointing(nn.ModuleDict(dict(a=model)), 'a')
    x = model(Sparse(torch.randn(5, 3)))
    assert not x.features.requires_grad
