# SPDX-License-Identifier: Apache-2.0
"""A patched and a plain model of one class, both compiled: neither runs what was compiled for the other."""

import _models as models
import pytest
import torch

from clusterplug import patch


def run(model, image):
    with torch.inference_mode():
        return model(image)


@pytest.mark.parametrize('order', ['plain first', 'patched first'])
@pytest.mark.parametrize('method', ['expedit', 'tome', 'centerclip'])
def test_each_runs_its_own(order, method):
    torch._dynamo.reset()
    name = 'transformers clip' if method == 'centerclip' else 'timm vit'
    image = models.picture(4)
    plain, patched = models.make(name), models.make(name)
    patched.load_state_dict(plain.state_dict())
    if method == 'centerclip':
        patch.apply(patched, method, after_block=1, segments=2, clusters=4, frames=4)
    else:
        patch.apply(patched, method, start=1, keep_ratio=0.3)
    pair = [plain, patched] if order == 'plain first' else [patched, plain]
    expected = [_tensor(run(model, image)) for model in pair]
    assert expected[0].shape != expected[1].shape or not torch.allclose(*expected, rtol=1e-3)
    compiled = [_tensor(run(torch.compile(model, backend='eager'), image)) for model in pair]
    for found, wanted in zip(compiled, expected):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_applied_and_removed_after_compilation():
    torch._dynamo.reset()
    model, image = models.make('timm vit'), models.picture(2)
    plain = run(model, image)
    torch.testing.assert_close(run(torch.compile(model, backend='eager'), image), plain)
    patch.apply(model, start=1, keep_ratio=0.3)
    reduced = run(model, image)
    assert not torch.allclose(reduced, plain, rtol=1e-3)
    torch.testing.assert_close(run(torch.compile(model, backend='eager'), image), reduced)
    patch.remove(model)
    torch.testing.assert_close(run(torch.compile(model, backend='eager'), image), plain)


def test_the_class_of_a_block_looks_the_same_and_comes_back():
    model = models.make('timm vit')
    cls = type(model.blocks[0])
    patch.apply(model, start=1)
    own = type(model.blocks[0])
    assert own is not cls
    assert issubclass(own, cls)
    assert (own.__name__, own.__qualname__, own.__module__) == (cls.__name__, cls.__qualname__, cls.__module__)
    patch.remove(model)
    assert type(model.blocks[0]) is cls


def _tensor(output):
    return output if isinstance(output, torch.Tensor) else output[0]
