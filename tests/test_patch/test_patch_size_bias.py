# SPDX-License-Identifier: Apache-2.0
"""Size bias acts in every attention, the same in each implementation, or is refused."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.patch._size_bias import SizeBias

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


def spread(model):
    """Weights large enough for attention to be far from uniform."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5, generator=generator)
    return model.eval()


def timm_vit(fused, **options):
    import timm

    sizes = dict(img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2)
    model = timm.create_model('vit_tiny_patch16_224', pretrained=False, **sizes, **options)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def timm_eva(fused):
    import timm

    model = timm.create_model(
        'eva02_tiny_patch14_224', pretrained=False, img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2
    )
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def transformers_vit(kind, name='ViT'):
    import transformers

    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64)
    config = getattr(transformers, f'{name}Config')(**sizes, patch_size=8, attn_implementation=kind)
    return getattr(transformers, f'{name}Model')(config)


PAIRS = {
    'timm': (lambda: timm_vit(True), lambda: timm_vit(False)),
    'timm eva': (lambda: timm_eva(True), lambda: timm_eva(False)),
    **{
        name: (
            lambda name=name: transformers_vit('sdpa', name),
            lambda name=name: transformers_vit('eager', name),
        )
        for name in ('ViT', 'Dinov2', 'DINOv3ViT', 'CLIPVision', 'SiglipVision')
    },
}
TOME = [
    dict(method='tome', start=1, keep_ratio=0.3),
    dict(method='tome', every_block=True, keep_ratio=0.3),
    dict(method='expedit', start=1, end=3, grid=(5, 6), size_bias=True),
]


@torch.no_grad()
@pytest.mark.parametrize('setting', TOME, ids=['tome', 'every block', 'expedit'])
@pytest.mark.parametrize('name', PAIRS)
def test_fused_and_written_out_attention_agree(name, setting):
    image, found = models.picture(2), []
    for make in PAIRS[name]:
        torch.manual_seed(0)
        model = patch.apply(spread(make()), **setting)
        found.append(models.tensors(model(image))[0])
        patch.remove(model)
        plain = models.tensors(model(image))[0]
        assert not torch.allclose(found[-1], plain, atol=1e-3)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5 * float(found[0].abs().max()))


class MultiheadBlock(nn.Module):
    """As in torchvision, open_clip and mmcv."""

    def __init__(self, batch_first, need_weights=False):
        super().__init__()
        self.norm1, self.fc = nn.LayerNorm(32), nn.Linear(32, 32)
        self.attn = nn.MultiheadAttention(32, 2, batch_first=batch_first)
        self.batch_first, self.need_weights = batch_first, need_weights

    def forward(self, x):
        y = self.norm1(x)
        y = y if self.batch_first else y.transpose(0, 1)
        y = self.attn(y, y, y, need_weights=self.need_weights)[0]
        x = x + (y if self.batch_first else y.transpose(0, 1))
        return x + self.fc(x).relu()


class WrittenOut(nn.Module):
    """The attention of MultiheadBlock on repeated keys: every token as often as it stands for."""

    def __init__(self, block, sizes):
        super().__init__()
        self.block, self.sizes = block, sizes

    def forward(self, x):
        block = self.block
        q, k, v = nn.functional.linear(block.norm1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.mT / 4
        weights = scores.exp() * self.sizes[:, None, None]
        y = (weights / weights.sum(-1, keepdim=True)) @ v
        x = x + block.attn.out_proj(y.transpose(1, 2).flatten(2))
        return x + block.fc(x).relu()


@torch.no_grad()
@pytest.mark.parametrize('block', [(True, False), (True, True), (False, False)], ids=str)
def test_multihead_attention_counts_sizes(block):
    torch.manual_seed(0)
    module = spread(MultiheadBlock(*block)).double()
    x, sizes = torch.randn(3, 9, 32).double(), torch.rand(3, 9).double() * 4 + 0.5
    with SizeBias(sizes, 0) as mode:
        got = module(x)
    assert mode.uses == 1
    torch.testing.assert_close(got, WrittenOut(module, sizes)(x))


@pytest.mark.parametrize('library', ['torchvision', 'open_clip', 'mm'])
def test_sizes_act_in_hosts_with_multihead_attention(library):
    image = models.picture(2)
    if library == 'torchvision':
        model = spread(models.make('torchvision vit'))
    elif library == 'open_clip':
        pytest.importorskip('open_clip', reason='needs open_clip: pip install open-clip-torch')
        from open_clip.transformer import VisionTransformer

        model = spread(VisionTransformer(64, 8, 32, 4, 2, 2.0, output_dim=16))
    else:
        pytest.importorskip('mmseg', reason='needs mmsegmentation: pip install mmsegmentation')
        from mmseg.models.backbones import VisionTransformer

        model = VisionTransformer(img_size=64, patch_size=8, embed_dims=32, num_layers=4, num_heads=2, mlp_ratio=2)
        spread(model)
    found = []
    for size_bias in (True, False):
        for grad in (False, True):  # other kernels run where gradients are wanted
            patch.apply(model, 'tome', start=1, keep_ratio=0.3, size_bias=size_bias)
            with torch.set_grad_enabled(grad):
                found.append(models.tensors(model(image))[0].detach())
            patch.remove(model)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


class Odd(models.PlainTransformer.Block):
    """Attention by another function than those that are seen."""

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / 4).exp()
        attended = (weights / weights.sum(-1, keepdim=True)) @ v
        return x + self.proj(attended.transpose(1, 2).flatten(2))


def test_attention_that_is_not_seen_is_refused_in_the_first_pass():
    model = models.make('plain')
    model.blocks[2] = Odd()
    patch.apply(model, 'tome', start=1, keep_ratio=0.5)
    with pytest.raises(ValueError, match='size_bias=True has no effect in Odd'):
        model(models.picture(1))
    patch.remove(model)
    patch.apply(model, 'tome', start=1, keep_ratio=0.5, size_bias=False)
    assert torch.isfinite(model(models.picture(1))).all()


@torch.no_grad()
def test_a_block_whose_forward_others_replaced():
    image, model = models.picture(2), spread(models.make('plain'))
    expected = patch.apply(model, 'tome', start=1, keep_ratio=0.3)(image)
    patch.remove(model)
    calls = []
    for block in model.blocks:
        own = block.forward
        block.forward = lambda x, own=own: (calls.append(1), own(x))[1]
    replaced = [block.forward for block in model.blocks]
    torch.testing.assert_close(patch.apply(model, 'tome', start=1, keep_ratio=0.3)(image), expected)
    assert len(calls) == 4
    patch.remove(model)
    assert [block.forward for block in model.blocks] == replaced


@pytest.mark.parametrize('fused', [True, False])
def test_attention_dropout_in_training(fused):
    model, image = spread(timm_vit(fused, attn_drop_rate=0.5)).train(), models.picture(2)
    found = []
    for size_bias in (True, False):
        patch.apply(model, 'tome', start=1, keep_ratio=0.3, size_bias=size_bias)
        torch.manual_seed(0)
        found.append(model.forward_features(image).detach())
        patch.remove(model)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_masks_and_other_calls():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 8).double()
    sizes = torch.rand(2, 5).double() + 0.5
    attention = nn.functional.scaled_dot_product_attention
    added, kept = torch.randn(2, 1, 5, 5).double(), torch.rand(2, 1, 5, 5) > 0.3
    kept[..., 0] = True
    bias = sizes.log()[:, None, None]
    with SizeBias(sizes, 0) as mode:
        both = attention(q, k, v, attn_mask=added), attention(query=q, key=k, value=v, attn_mask=kept)
        assert mode.uses == 2
        other = attention(q[:, :, :4], k[:, :, :4], v[:, :, :4]), torch.softmax(q, -1), q.softmax(2)
        causal = attention(q, k, v, is_causal=True)
        assert mode.uses == 2
    torch.testing.assert_close(both[0], attention(q, k, v, attn_mask=added + bias))
    torch.testing.assert_close(both[1], attention(q, k, v, attn_mask=bias.masked_fill(~kept, -torch.inf)))
    torch.testing.assert_close(other[0], attention(q[:, :, :4], k[:, :, :4], v[:, :, :4]))
    assert torch.equal(other[1], q.softmax(-1))
    assert torch.equal(causal, attention(q, k, v, is_causal=True))


@pytest.mark.parametrize('name', ['transformers sam', 'timm swin', 'timm sam2'])
def test_windows_refuse_sizes(name):
    with pytest.raises(ValueError, match='size_bias needs blocks in which every token attends to all others'):
        patch.apply(models.make(name), size_bias=True)
