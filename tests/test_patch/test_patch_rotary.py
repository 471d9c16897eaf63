# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings between tokens: the angles of the host's own formula, on maps of any size."""

import math

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug.patch._geometry import SharedTable, rotation_at
from clusterplug.patch.hosts import find_layout

SIZES = [(1, 5), (2, 2), (2, 7), (3, 3), (3, 9), (4, 4), (4, 3), (5, 5), (6, 2), (14, 14)]


def places(size):
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])
    corner = torch.tensor([[0.0, 0.0], [size[0] - 1.0, size[1] - 1.0]])
    return torch.cat([corner, torch.rand(7, 2, generator=generator) * (torch.tensor(size) - 1)])


def timm_vit(**options):
    import timm

    sizes = dict(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, dynamic_img_size=True)
    return timm.create_model('eva02_tiny_patch14_224', pretrained=False, **(sizes | options)).eval()


def dinov3_timm():
    import timm

    return timm.create_model(
        'vit_small_patch16_dinov3', pretrained=False, img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2
    ).eval()


def dinov3_transformers():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(
        DINOv3ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8)
    ).eval()


def angles_of(model, size, at):
    """Angles (M, D / 2) of all frequencies at positions, written out by the formula of each embedding."""
    rope = model.rope if hasattr(model, 'rope') else model.rope_embeddings
    if hasattr(rope, 'bands'):
        if rope.in_pixels:
            at = at / (torch.tensor(size) - 1).clamp_min(1) * 2 - 1
        if rope.ref_feat_shape is not None:
            at = at / torch.tensor(size) * torch.tensor(rope.ref_feat_shape)
        bands = rope.bands
    else:
        at = (at + 0.5) / torch.tensor(size) * 2 - 1
        bands = 2 * math.pi * (1 / rope.periods if hasattr(rope, 'periods') else rope.inv_freq)
    return (at[:, :, None] * bands).flatten(1)


def tables(model, size):
    if hasattr(model, 'rope'):
        rope = model.rope
        if hasattr(rope, 'bands'):
            rope._use_cached_embed = False
            sine, cosine = rope.get_embed(list(size)).chunk(2, -1)
        else:
            sine, cosine = rope.get_embed(list(size)).chunk(2, -1)
        return cosine, sine, getattr(rope, 'rotate_half', hasattr(rope, 'periods'))
    return *model.rope_embeddings(torch.zeros(1, 3, 8 * size[0], 8 * size[1])), True


MODELS = {
    'timm eva with a reference map': lambda: timm_vit(ref_feat_shape=(16, 16)),
    'timm eva without': lambda: timm_vit(ref_feat_shape=None),
    'timm dinov3': dinov3_timm,
    'transformers dinov3': dinov3_transformers,
}


@torch.no_grad()
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', MODELS)
def test_angles_are_those_of_the_formula(name, size):
    model = MODELS[name]()
    cosine, sine, halves = tables(model, size)
    at = places(size)
    angle = angles_of(model, size, at)
    angle = angle.tile(2) if halves else angle.repeat_interleave(2, -1)
    table = SharedTable(size, None, at, 1)
    got = table.rotation(cosine, sine, find_layout(model).adapt._steps)
    torch.testing.assert_close(got[0], angle.cos(), rtol=0, atol=2e-4)
    torch.testing.assert_close(got[1], angle.sin(), rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize('size', [(3, 3), (4, 6)], ids=str)
def test_what_the_blocks_receive(size):
    from clusterplug import patch

    for model in (dinov3_timm(), dinov3_transformers()):
        image = torch.randn(1, 3, 8 * size[0], 8 * size[1], generator=torch.Generator().manual_seed(0))
        seen = []
        patch.apply(model, start=1, grid=(2, 3))
        block = find_layout(model).blocks[1]
        block.register_forward_pre_hook(lambda block, args, kwargs, seen=seen: seen.append(kwargs), with_kwargs=True)
        if hasattr(model, 'rope'):
            model.set_input_size(img_size=(8 * size[0], 8 * size[1]))
        model(image)
        cells = torch.tensor([[r, c] for r in range(2) for c in range(3)], dtype=torch.float32)
        at = (cells + 0.5) * torch.tensor([size[0] / 2, size[1] / 3]) - 0.5
        angle = angles_of(model, size, at).tile(2)
        if 'rope' in seen[0]:
            sine, cosine = seen[0]['rope'].chunk(2, -1)
        else:
            cosine, sine = seen[0]['position_embeddings']
        torch.testing.assert_close(cosine, angle.cos(), rtol=0, atol=2e-4)
        torch.testing.assert_close(sine, angle.sin(), rtol=0, atol=2e-4)


def test_learned_frequencies():
    model = timm_vit(rope_type='mixed', dynamic_img_size=False)
    freqs = model.rope.freqs
    for size in ((3, 4), (8, 8)):
        at = places(size)
        angle = (at[:, 1:] * freqs[0].unsqueeze(-2) + at[:, :1] * freqs[1].unsqueeze(-2)).repeat_interleave(2, -1)
        if model.rope.grid_indexing == 'ij':
            angle = (at[:, :1] * freqs[0].unsqueeze(-2) + at[:, 1:] * freqs[1].unsqueeze(-2)).repeat_interleave(2, -1)
        sine, cosine = model.rope.get_embed(list(size)).chunk(2, -1)
        got = SharedTable(size, None, at, 1).rotation(cosine[1], sine[1], find_layout(model).adapt._steps)
        torch.testing.assert_close(got[0], angle[1].cos(), rtol=0, atol=2e-4)
    with torch.no_grad():
        freqs[0, 0, 0, 0] = 3.5
    with pytest.raises(ValueError, match='learned frequencies'):
        find_layout(model).adapt._steps((3, 4))


def test_tables_alone_do_not_say_the_steps_of_small_maps():
    cosine, sine = torch.ones(12, 4), torch.zeros(12, 4)
    with pytest.raises(ValueError, match=r'map of 3 x 4 tokens.*pass steps'):
        rotation_at(cosine, sine, (3, 4), torch.zeros(1, 2))
    steps = torch.tensor([0.0, 0.0, 2 * math.pi, 0.0]), torch.zeros(4)
    got = rotation_at(cosine, sine, (3, 4), torch.tensor([[0.5, 0.0]]), steps, check=True)[0]
    torch.testing.assert_close(got, torch.tensor([[1.0, 1.0, -1.0, 1.0]]))
    wrong = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.zeros(4)
    with pytest.raises(ValueError, match='not that of its formula'):
        rotation_at(cosine, sine, (3, 4), torch.tensor([[0.5, 0.0]]), wrong, check=True)


def test_positions_that_training_stretches_are_refused_on_small_maps():
    model = dinov3_transformers().train()
    table = SharedTable((3, 3), None, torch.zeros(1, 2), 1)
    cosine, sine = model.rope_embeddings(torch.zeros(1, 3, 24, 24))
    with pytest.raises(ValueError, match='stretched up to 2 times in training'):
        table.rotation(cosine, sine, find_layout(model).adapt._steps)
    large = SharedTable((14, 14), None, torch.tensor([[0.5, 3.0]]), 1)
    cosine, sine = model.rope_embeddings(torch.zeros(1, 3, 112, 112))
    assert torch.isfinite(large.rotation(cosine, sine, find_layout(model).adapt._steps)[0]).all()
