# SPDX-License-Identifier: Apache-2.0
"""AmpOptimWrapper on the CPU: bfloat16 autocast, and the scaler's state."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from mmengine.optim import AmpOptimWrapper

from clusterplug.compat.mmengine import amp_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='with CUDA nothing is replaced')


@pytest.fixture(autouse=True)
def patched():
    amp_cpu.WORKAROUND.apply()


def wrapper(**options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=1.0), **options)


@pytest.mark.parametrize('options', [{}, dict(dtype='float16'), dict(dtype='bfloat16'), dict(loss_scale=128.0)])
def test_a_step_is_that_of_bfloat16_autocast(options):
    model, optimizer = wrapper(**options)
    expected = nn.Linear(3, 2)
    expected.load_state_dict(model.state_dict())
    x = torch.randn(5, 3)
    with optimizer.optim_context(model):
        output = model(x)
    assert output.dtype == torch.bfloat16
    optimizer.update_params(output.float().square().mean())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        expected(x).float().square().mean().backward()
    for ours, theirs in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(ours, theirs - theirs.grad, rtol=1e-3, atol=1e-3)


def test_a_step_with_infinite_gradients_is_left_out():
    model, optimizer = wrapper()
    before = model.weight.clone()
    optimizer.update_params(model(torch.full((1, 3), torch.inf)).sum())
    assert torch.equal(before, model.weight)


def test_state_goes_round():
    _, first = wrapper(loss_scale=dict(init_scale=32.0))
    _, second = wrapper()
    second.load_state_dict(first.state_dict())
    assert second.loss_scaler.get_scale() == 32.0


def test_needed_because_mmengine_refuses():
    amp_cpu.WORKAROUND.remove()
    with pytest.raises(AssertionError):
        wrapper()
