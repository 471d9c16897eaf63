# SPDX-License-Identifier: Apache-2.0
"""The hook of mm test runs, on a backbone in the layout of mmsegmentation's VisionTransformer."""

import types
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')

from mmengine import registry

from clusterplug import patch
from clusterplug.hooks.token_clustering import TokenClusteringHook

CONFIGS = sorted((Path(__file__).resolve().parents[2] / 'configs' / 'token_clustering').glob('*.py'))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.mix = torch.nn.LayerNorm(16), torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.lengths = []

    def forward(self, x):
        self.lengths.append(x.shape[1])
        y = self.ln1(x)
        return x + self.mix(y, y, y, need_weights=False)[0]


class VisionTransformer(torch.nn.Module):
    """Names and forward of mmseg.models.backbones.VisionTransformer: features are read inside the loop."""

    def __init__(self, with_cls_token=True, out_indices=(1, 3)):
        super().__init__()
        self.patch_embed = torch.nn.Module()
        self.patch_embed.projection = torch.nn.Conv2d(3, 16, 8, 8)
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, 16))
        self.with_cls_token, self.out_indices = with_cls_token, out_indices
        self.layers = torch.nn.ModuleList(Layer() for _ in range(4))

    def forward(self, inputs):
        x = self.patch_embed.projection(inputs)
        height, width = x.shape[2:]
        x = x.flatten(2).mT
        if self.with_cls_token:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.out_indices:
                out = x[:, 1:] if self.with_cls_token else x
                outs.append(out.mT.unflatten(2, (height, width)))
        return tuple(outs)


@torch.no_grad()
@pytest.mark.parametrize('with_cls_token', [True, False])
def test_features_read_in_the_loop_are_full(with_cls_token):
    model = VisionTransformer(with_cls_token).eval()
    image = torch.randn(2, 3, 48, 64)
    plain = model(image)
    patch.apply(torch.nn.ModuleDict({'backbone': model}), start=1, grid=(4, 5))
    reduced = model(image)
    assert [out.shape for out in reduced] == [out.shape for out in plain]
    prefix = int(with_cls_token)
    assert [layer.lengths[-1] for layer in model.layers] == [48 + prefix, 20 + prefix, 20 + prefix, 20 + prefix]
    assert not torch.equal(plain[1], reduced[1])


@torch.no_grad()
def test_hook_applies_for_the_test_only():
    hook = registry.HOOKS.build(dict(type='clusterplug.TokenClusteringHook', start=1, grid=[4, 4]))
    assert isinstance(hook, TokenClusteringHook)
    model = VisionTransformer().eval()
    runner, image = types.SimpleNamespace(model=model), torch.randn(1, 3, 64, 64)
    plain = model(image)
    for before, after in ((hook.before_test, hook.after_test), (hook.before_val, hook.after_val)):
        before(runner)
        assert not torch.equal(model(image)[1], plain[1])
        after(runner)
        assert torch.equal(model(image)[1], plain[1])


@torch.no_grad()
def test_a_validation_that_failed_does_not_stop_the_next_ones():
    hook = TokenClusteringHook(start=1, grid=(4, 4))
    model, image = VisionTransformer().eval(), torch.randn(1, 3, 64, 64)
    runner, plain = types.SimpleNamespace(model=model), model(image)[1]
    hook.before_val(runner)  # the validation fails here, so that no hook comes after it
    hook.before_val(runner)
    reduced = model(image)[1]
    hook.before_test(runner)  # a test inside the validation
    hook.after_test(runner)
    assert torch.equal(model(image)[1], reduced)
    hook.after_val(runner)
    assert torch.equal(model(image)[1], plain)
    hook.before_test(runner)
    hook.before_train_iter(runner, 0)
    assert torch.equal(model(image)[1], plain)
    hook.before_val(runner)
    patch.remove(model)
    hook.after_val(runner)
    assert torch.equal(model(image)[1], plain)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_hold_a_base_and_the_hook(path):
    content = {}
    exec(path.read_text(), content)
    bases = content['_base_']
    for base in [bases] if isinstance(bases, str) else bases:
        assert base.startswith('mmseg::')
    (options,) = content['custom_hooks']
    hook = registry.HOOKS.build(dict(options))
    assert 0 < hook.options['start'] < 24
    assert f'a{options["start"]}-{options["grid"][0]}x{options["grid"][1]}' in path.stem


def test_there_are_configs():
    assert CONFIGS
