# SPDX-License-Identifier: Apache-2.0
"""FreezeParamsHook: which parameters the default names, and that nothing moves them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mm]')

from mmengine.optim import OptimWrapper

from clusterplug.heads import MatryoshkaHead, PrototypeHead
from clusterplug.hooks import FreezeParamsHook


def model_of(heads):
    model = nn.Module()
    for name, head in heads.items():
        setattr(model, name, head)
    return model


HEADS = dict(
    one=dict(head=PrototypeHead(4, 3)),
    two=dict(head=PrototypeHead(4, 3, projector=nn.Linear(4, 4)), volume_head=PrototypeHead(4, 2)),
    several=dict(head=PrototypeHead(4, [3, 2])),
    levels=dict(head=MatryoshkaHead(8, 8, nesting=(2, 1), hidden_channels=4, bottleneck=4)),
)


@pytest.mark.parametrize('case', HEADS)
def test_prototypes_of_all_heads_stay_as_they_are(case):
    model = model_of(HEADS[case])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    runner = SimpleNamespace(model=model, optim_wrapper=OptimWrapper(optimizer), iter=0)
    hook = FreezeParamsHook(iters=1)
    hook.before_train(runner)
    for runner.iter in (0, 1):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for value in model.parameters():
            value.grad = torch.ones_like(value)
        runner.optim_wrapper.step()
        for name, value in model.named_parameters():
            frozen = 'prototypes' in name and runner.iter == 0
            assert torch.equal(value, before[name]) == frozen, (name, runner.iter)
    hook.after_train(runner)


def test_a_name_that_no_parameter_has():
    runner = SimpleNamespace(model=nn.Linear(2, 2), optim_wrapper=None, iter=0)
    with pytest.raises(ValueError, match='no parameter of Linear has a name with'):
        FreezeParamsHook().before_train(runner)
