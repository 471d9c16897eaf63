# SPDX-License-Identifier: Apache-2.0
"""Every host: sizes kept, reduced inside, prefix tokens untouched, undone bit for bit."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.patch.hosts import find_layout

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)
ALL = list(models.MODELS)
SEQUENCES = [name for name in ALL if name not in models.GRID_BOUND]


def run(model, image):
    with torch.no_grad():
        return models.tensors(model(image))


class Watch:
    """Shapes and values that blocks receive and return."""

    def __init__(self, model):
        self.layout = find_layout(model)
        self.received, self.returned = {}, {}
        self.handles = []
        for index, block in enumerate(self.layout.blocks):
            self.handles.append(block.register_forward_pre_hook(self._before(index)))
            self.handles.append(block.register_forward_hook(self._after(index)))

    def _before(self, index):
        def hook(block, args):
            self.received[index] = args[0]

        return hook

    def _after(self, index):
        def hook(block, args, output):
            self.returned[index] = output[0] if isinstance(output, tuple) else output

        return hook

    def count(self, tokens):
        return tokens.shape[1] * tokens.shape[2] if self.layout.maps else tokens.shape[1] - self.layout.num_prefix


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('method', ['expedit', 'average', 'tome'])
def test_reduced_inside_and_back_outside(name, method):
    if method == 'tome' and name in models.GRID_BOUND:
        pytest.skip('needs a grid')
    model, image = models.make(name), models.picture(2)
    plain = run(model, image)
    keys = list(model.state_dict())
    weights = copy.deepcopy(model.state_dict())
    patch.apply(model, method, start=1, end=3, grid=(5, 6))
    watch = Watch(model)
    reduced = run(model, image)
    for handle in watch.handles:
        handle.remove()
    assert [each.shape for each in plain] == [each.shape for each in reduced]
    prefix = watch.layout.num_prefix
    assert [watch.count(watch.received[index]) for index in range(4)] == [64, 30, 30, 64]
    if prefix:
        assert torch.equal(watch.received[1][:, :prefix], watch.returned[0][:, :prefix])
        assert torch.equal(watch.received[3], watch.returned[2])
    assert list(model.state_dict()) == keys
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(watch.received[3], watch.received[0])
    patch.remove(model)
    after = run(model, image)
    assert all(torch.equal(a, b) for a, b in zip(plain, after))
    assert not any('forward_intermediates' in vars(module) for module in model.modules())


@pytest.mark.parametrize('name', ALL)
def test_as_many_cells_as_tokens_is_the_model_itself(name):
    model, image = models.make(name), models.picture(2)
    plain = run(model, image)
    patch.apply(model, start=0, grid=(8, 8))
    assert all(torch.equal(a, b) for a, b in zip(plain, run(model, image)))
    patch.remove(model)
    patch.apply(model, start=0, keep_ratio=1.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, run(model, image)))


@pytest.mark.parametrize('name', ALL)
def test_a_batch_is_its_images(name):
    model, images = models.make(name), models.picture(3)
    patch.apply(model, start=1, keep_ratio=0.5)
    together = run(model, images)
    for index in range(3):
        alone = run(model, images[index : index + 1])
        for a, b in zip(together, alone):
            torch.testing.assert_close(a[index : index + 1], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', ['timm vit', 'torchvision vit', 'plain'])  # others fail on it themselves
@pytest.mark.parametrize('method', ['expedit', 'average', 'tome'])
def test_batch_of_no_image(name, method):
    model = models.make(name)
    expected = run(model, models.picture(2))[0].shape
    patch.apply(model, method, start=1, keep_ratio=0.5)
    assert run(model, torch.zeros(0, 3, 64, 64))[0].shape == (0, *expected[1:])


@pytest.mark.parametrize('name', ALL)
def test_gradients_reach_the_image_and_all_weights_of_the_blocks(name):
    model, image = models.make(name), models.picture(1).requires_grad_()
    patch.apply(model, start=1, end=3, keep_ratio=0.5)
    sum(each.square().sum() for each in models.tensors(model(image))).backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().sum() > 0
    layout = find_layout(model)
    for parameter in layout.blocks[1].parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in layout.blocks[1].parameters())


@pytest.mark.parametrize('name', ALL)
def test_autocast(name):
    model, image = models.make(name), models.picture(1)
    patch.apply(model, start=1, keep_ratio=0.5)
    exact = run(model, image)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = run(model, image)
    for a, b in zip(exact, cast):
        assert torch.isfinite(b).all()
        scale = a.abs().max().clamp_min(1e-2)
        assert ((a - b.float()).abs().mean() / scale) < 0.1


@pytest.mark.parametrize('name', [name for name in ALL if not any(own in name for own in ('depth', 'dpt', 'mmdet'))])
def test_a_model_in_bfloat16(name):
    model, image = models.make(name).to(torch.bfloat16), models.picture(1).to(torch.bfloat16)
    expected = [each.dtype for each in run(model, image)]
    patch.apply(model, start=1, keep_ratio=0.5)
    output = run(model, image)
    assert [each.dtype for each in output] == expected
    assert all(torch.isfinite(each).all() for each in output)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'timm vit', 'timm eva02 rope', 'timm sam', 'transformers dinov2', 'transformers dinov3', 'torchvision vit',
        'plain',
    ],
)  # fmt: skip
@pytest.mark.parametrize('method', ['expedit', 'tome'])
def test_compiles(name, method):
    if method == 'tome' and name in models.GRID_BOUND:
        pytest.skip('needs a grid')
    model, image = models.make(name), models.picture(2)
    patch.apply(model, method, start=1, keep_ratio=0.5)
    expected = run(model, image)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager', fullgraph='transformers' not in name and 'sam' not in name)
    for _ in range(2):
        for a, b in zip(expected, run(compiled, image)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', SEQUENCES)
@pytest.mark.parametrize('method', ['expedit', 'tome'])
def test_fused_attention_stays_without_a_mask(name, method, monkeypatch):
    model, image = models.make(name), models.picture(1)
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, *args, **kwargs):
        calls.append((query.shape[-2], attn_mask))
        return original(query, key, value, attn_mask, *args, **kwargs)

    if name == 'torchvision vit':
        pytest.skip('MultiheadAttention calls its own fused kernel')
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', watched)
    patch.apply(model, method, start=1, grid=(5, 6), size_bias=False)
    plain = run(model, image)
    prefix = find_layout(model).num_prefix
    lengths = [length - prefix for length, _ in calls[:4]]
    assert lengths == [64, 30, 30, 30]
    patch.remove(model)
    patch.apply(model, method, start=1, grid=(5, 6), size_bias=True)
    biased = run(model, image)
    assert all(mask is None for _, mask in calls)
    assert not all(torch.equal(a, b) for a, b in zip(plain, biased))


def test_copies_have_hooks_of_their_own():
    model, image = models.make('timm vit'), models.picture(1)
    plain = run(model, image)
    patch.apply(model, start=1, keep_ratio=0.3)
    reduced = run(model, image)
    other = copy.deepcopy(model)
    patch.remove(model)
    assert torch.equal(run(model, image)[0], plain[0])
    assert torch.equal(run(other, image)[0], reduced[0])
    with torch.no_grad():
        features = other.forward_intermediates(image, [1], intermediates_only=True)[0]
    assert features.shape == (1, 32, 8, 8)
    assert torch.equal(run(patch.remove(other), image)[0], plain[0])
