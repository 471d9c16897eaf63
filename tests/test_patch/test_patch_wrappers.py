# SPDX-License-Identifier: Apache-2.0
"""Hosts are recognized by their own parts: wrappers give the maps of the plain model or are refused by name."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.patch.hosts import find_layout, finders
from clusterplug.patch.layout import own

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


class Forwarding(torch.nn.Module):
    """As peft, accelerate and users write them: attributes of the module inside answer for the wrapper."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules['inner'], name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Plain(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@torch.no_grad()
@pytest.mark.parametrize('name', list(models.MODELS))
@pytest.mark.parametrize('wrap', [Forwarding, Plain])
def test_a_wrapped_model_computes_what_the_plain_one_does(name, wrap):
    image = models.picture(1)
    plain = patch.apply(models.make(name), start=1, end=3, keep_ratio=0.5)
    expected = models.tensors(plain(image))
    wrapped = wrap(models.make(name))
    patch.apply(wrapped, start=1, end=3, keep_ratio=0.5)
    got = models.tensors(wrapped(image))
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    patch.remove(wrapped)


@torch.no_grad()
@pytest.mark.parametrize('name', ['timm vit', 'timm dinov2 registers', 'timm eva02 rope', 'plain'])
def test_features_read_through_a_forwarding_wrapper(name):
    if name == 'plain':
        pytest.skip('has no forward_intermediates')
    image, model = models.picture(2), Forwarding(models.make(name))
    shapes = [each.shape for each in model.forward_intermediates(image, [1, 2], intermediates_only=True)]
    patch.apply(model, start=1, keep_ratio=0.5)
    assert [each.shape for each in model.forward_intermediates(image, [1, 2], intermediates_only=True)] == shapes


@pytest.mark.parametrize('name', ['timm vit', 'timm swin', 'transformers sam', 'transformers dinov3', 'plain'])
def test_wrapped_blocks_are_refused_by_name(name):
    model = models.make(name)
    layout = find_layout(model)
    holder = next(m for m in model.modules() if any(each is layout.blocks[1] for each in m._modules.values()))
    holder[1] = Forwarding(layout.blocks[1])
    with pytest.raises(ValueError, match=r'block 1 of .* is wrapped in Forwarding'):
        patch.apply(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize('name', ['transformers sam', 'timm sam2'])
def test_windows_inside_a_wrapper_are_refused(name):
    model = models.make(name)
    layout = find_layout(model)
    holder = next(m for m in model.modules() if any(each is layout.blocks[1] for each in m._modules.values()))
    holder[1] = Plain(layout.blocks[1])
    with pytest.raises(ValueError, match=r'Plain|holds no transformer'):
        patch.apply(model)


@pytest.mark.parametrize('part', ['patch_embed', 'blocks.1', 'head', 'norm', ''])
def test_compiled_parts(part):
    model = models.make('timm vit')
    whole = torch.nn.Module()
    whole.vit = model
    parent, _, name = f'vit.{part}'.rstrip('.').rpartition('.')
    parent = whole.get_submodule(parent)
    setattr(parent, name, torch.compile(getattr(parent, name), backend='eager'))
    with pytest.raises(ValueError, match=r'compiled|OptimizedModule'):
        patch.apply(whole, start=1)
    model = models.make('timm vit')
    model.compile(backend='eager')
    with pytest.raises(ValueError, match='compiled already'):
        patch.apply(model)


def test_compiled_parts_elsewhere_do_not_matter():
    whole = torch.nn.Module()
    whole.vit = models.make('timm vit')
    whole.head = torch.compile(torch.nn.Linear(3, 3), backend='eager')
    patch.apply(whole, start=1)


def test_a_wrapped_projection_is_refused_and_the_wrapper_named():
    model = models.make('plain')
    model.patch_embed = Forwarding(model.patch_embed)
    with pytest.raises(ValueError, match=r'holds no transformer.*wrapped \(Forwarding\)'):
        patch.apply(model)


def test_scripted_models_are_refused():
    model = torch.jit.trace(models.make('timm vit'), models.picture(1))
    with pytest.raises(ValueError, match='holds no transformer'):
        patch.apply(model)


def test_own_parts_only():
    inner = torch.nn.Module()
    inner.a = torch.nn.Module()
    inner.a.b = torch.nn.Linear(2, 2)
    assert own(inner, 'a.b') is inner.a.b
    assert own(Forwarding(inner), 'a.b') is None
    assert own(inner, 'a.c') is own(inner, 'a.b.weight') is own(None, 'a') is None


class Scrambled(models.PlainTransformer):
    """Blocks and projection under the usual names, but with something in them that reduced tokens break."""

    def __init__(self, change):
        super().__init__()
        change(self)


@pytest.mark.parametrize(
    'change',
    [
        lambda m: setattr(m, 'rope', torch.nn.Identity()),
        lambda m: m.blocks[2].register_buffer('relative_position_index', torch.zeros(2)),
        lambda m: m.blocks[1].register_parameter('rel_pos_h', torch.nn.Parameter(torch.zeros(2))),
        lambda m: setattr(m.blocks[3], 'window_size', 0),
        lambda m: setattr(m.blocks[2], 'norm1', torch.nn.LayerNorm(64)),  # a stage of another width
    ],
    ids=['rope', 'relative', 'rel_pos', 'window', 'width'],
)
def test_names_alone_make_no_plain_transformer(change):
    with pytest.raises(ValueError, match='holds no transformer'):
        patch.apply(Scrambled(change))


def test_hiera_of_timm_is_refused_and_that_of_sam_2_found():
    import timm

    model = timm.create_model('hiera_tiny_224', pretrained=False)
    with pytest.raises(ValueError, match='Hiera holds no transformer'):
        patch.apply(model)
    assert find_layout(models.make('timm sam2')).host == 'sam'


@torch.no_grad()
@pytest.mark.parametrize('span', [(0, 6), (1, 4), (2, 3)])
def test_sam_hq_hands_out_maps_of_one_size(span):
    from transformers import SamHQVisionConfig
    from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionEncoder

    torch.manual_seed(0)
    config = SamHQVisionConfig(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=64, patch_size=8, window_size=3,
        global_attn_indexes=[1, 2, 5], output_channels=8, num_pos_feats=4, mlp_dim=64, initializer_range=0.02,
    )  # fmt: skip
    model, image = SamHQVisionEncoder(config).eval(), models.picture(2)
    plain = models.tensors(model(image))
    patch.apply(model, start=span[0], end=span[1], keep_ratio=0.5)
    reduced = models.tensors(model(image))
    assert [each.shape for each in plain] == [each.shape for each in reduced]
    assert not torch.equal(plain[0], reduced[0])
    patch.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(plain, models.tensors(model(image))))


def test_registering_a_name_of_ours_replaces_one_and_keeps_the_others(monkeypatch):
    monkeypatch.setattr(finders, '_BUILT_IN', {})  # nobody has asked for a host yet
    monkeypatch.setattr(finders, '_REGISTERED', {})
    patch.register_host('timm', lambda module: None)
    assert set(patch.hosts()) == {
        'plain', 'mm', 'torchvision', 'sam', 'swin', 'open_clip', 'transformers', 'timm',
    }  # fmt: skip
    assert patch.hosts()[-1] == 'timm'
    assert find_layout(models.make('transformers vit')).host == 'transformers'
    with pytest.raises(ValueError, match='holds no transformer'):
        find_layout(models.make('timm vit'))
    patch.register_host('swin', lambda module: 'no layout')
    with pytest.raises(TypeError, match="find of the host 'swin' must return a Layout or None, got str"):
        find_layout(models.make('transformers vit'))
    with pytest.raises(TypeError, match='name must be a string'):
        patch.register_host(3, lambda module: None)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(trunk=None), 'trunk must be a'),
        (dict(projection='conv'), 'projection must be a'),
        (dict(blocks=[]), 'blocks must be'),
        (dict(blocks=[1]), 'blocks must be'),
        (dict(num_prefix=1.5), 'num_prefix must be an int'),
    ],
)
def test_a_layout_checks_its_parts(change, message):
    module = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=message):
        patch.Layout(**dict(host='mine', trunk=module, blocks=[module], projection=module) | change)
