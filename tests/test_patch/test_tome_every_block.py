# SPDX-License-Identifier: Apache-2.0
"""Tome that merges in front of every block: a plain loop in float64, sizes, positions, full maps, settings."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.patch.hosts import find_layout
from clusterplug.patch.methods import Tome

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)
SEQUENCES = [name for name in models.MODELS if name not in models.GRID_BOUND]


def block_by_hand(block, x, sizes):
    q, k, v = block.qkv(block.norm1(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 4).exp() * sizes[:, None, None]
    x = x + block.proj((weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))
    return x + block.fc(block.norm2(x)).relu()


def loop(model, x, counts, start, residual, bias):
    """One image (1, 1 + N, C): groups of tokens as lists, merged pair by pair."""
    groups = [[n] for n in range(x.shape[1])]
    history = []
    for index, block in enumerate(model.blocks):
        number = counts[index - start] if start <= index < start + len(counts) else 0
        if number:
            unit = block.norm1(x)[0]
            unit = unit / unit.norm(dim=1, keepdim=True)
            pairs = []
            for source in range(2, x.shape[1], 2):
                score, partner = max((float(unit[source] @ unit[n]), -n) for n in range(1, x.shape[1], 2))
                pairs.append((-score, source, -partner))
            goes = {source: partner for _, source, partner in sorted(pairs)[:number]}
            stay = [n for n in range(x.shape[1]) if n not in goes]
            members = {n: [n] + [source for source, partner in goes.items() if partner == n] for n in stay}
            rows = [
                sum(x[0, m] * len(groups[m]) for m in members[n]) / sum(len(groups[m]) for m in members[n])
                for n in stay
            ]
            target = [stay.index(goes.get(n, n)) for n in range(x.shape[1])]
            groups = [[each for m in members[n] for each in groups[m]] for n in stay]
            history.append((x, torch.stack(rows)[None], target))
            x = history[-1][1]
        sizes = torch.tensor([[float(len(group)) for group in groups]], dtype=x.dtype)
        x = block_by_hand(block, x, sizes if bias else torch.ones_like(sizes))
        if index == start + len(counts) - 1:
            for before, short, target in reversed(history):
                prefix = x[:, :1]
                x = before + (x - short)[:, target] if residual else x[:, target]
                x = torch.cat([prefix, x[:, 1:]], 1)
            groups = [[n] for n in range(x.shape[1])]
    return x


@torch.no_grad()
@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('start', 'end', 'number'), [(0, 4, 9), (1, 3, 20)])
def test_a_plain_loop_in_float64(residual, bias, start, end, number):
    model, image = models.make('plain').double(), models.picture(1).double()
    x = model.patch_embed.proj(image).flatten(2).mT
    x = torch.cat([model.cls_token, x], 1)
    expected = loop(model, x, [number] * (end - start), start, residual, bias)
    options = dict(every_block=True, tokens_per_block=number, residual=residual, size_bias=bias)
    patch.apply(model, 'tome', start=start, end=end, **options)
    torch.testing.assert_close(model(image), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize('name', SEQUENCES)
def test_every_host(name):
    model, image = models.make(name), models.picture(2)
    plain = models.tensors(model(image))
    patch.apply(model, 'tome', every_block=True, tokens_per_block=10)
    layout, lengths, sizes = find_layout(model), [], []
    store = model._clusterplug_patch.store
    for block in layout.blocks:
        block.register_forward_pre_hook(lambda block, args: lengths.append(args[0].shape[1] - layout.num_prefix))
        block.register_forward_pre_hook(lambda block, args: sizes.append(store.current.sizes))
    reduced = models.tensors(model(image))
    assert lengths[:4] == [64, 54, 44, 34]
    assert all(each.sum(1).tolist() == pytest.approx([64, 64]) for each in sizes[1:4])
    assert [each.shape for each in plain] == [each.shape for each in reduced]
    patch.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(plain, models.tensors(model(image))))
    patch.apply(model, 'tome', every_block=True, tokens_per_block=0)
    for a, b in zip(plain, models.tensors(model(image))):
        torch.testing.assert_close(a, b)


@torch.no_grad()
@pytest.mark.parametrize('name', ['timm vit', 'timm dinov3 rope'])
def test_full_features_on_the_way_do_not_change_the_rest(name):
    model, image = models.make(name), models.picture(2)
    patch.apply(model, 'tome', every_block=True, keep_ratio=0.4)
    expected = model.forward_features(image)
    final, features = model.forward_intermediates(image)
    torch.testing.assert_close(final, expected)
    assert {feature.shape for feature in features} == {(2, 32, 8, 8)}


@torch.no_grad()
def test_hidden_states_and_gradients():
    model, image = models.make('transformers dinov2'), models.picture(1)
    patch.apply(model, 'tome', every_block=True, keep_ratio=0.4)
    assert {tuple(s.shape) for s in model(image, output_hidden_states=True).hidden_states} == {(1, 65, 32)}
    with torch.enable_grad():
        image.requires_grad_()
        model(image).last_hidden_state.square().sum().backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.any()


def test_what_is_left_out_is_spread_over_the_blocks():
    method = Tome(every_block=True)
    assert method.schedule(64, 32, 4) == [8, 8, 8, 8]
    assert method.schedule(64, 30, 4) == [8, 9, 8, 9]
    assert method.schedule(9, 9, 3) == [0, 0, 0]
    assert Tome(every_block=True, tokens_per_block=3).schedule(10, 1, 3) == [3, 3, 3]


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(tokens_per_block=5), ValueError, 'needs every_block=True'),
        (dict(every_block=True, tokens_per_block=-1), ValueError, 'tokens_per_block must be at least 0'),
        (dict(every_block=True, tokens_per_block=2.0), TypeError, 'tokens_per_block must be an int'),
        (dict(every_block=True, tokens_per_block=2, keep_ratio=0.5), ValueError, 'not both'),
        (dict(every_block=True, tokens_per_block=2, grid=(2, 2)), ValueError, 'not both'),
        (dict(every_blocks=True), ValueError, r"did you mean 'every_block'\?"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        patch.apply(models.make('plain'), 'tome', **options)


def test_more_than_there_are_tokens_is_refused_in_the_pass():
    model = patch.apply(models.make('plain'), 'tome', every_block=True, tokens_per_block=22)
    with pytest.raises(ValueError, match='at most 21 for 64 tokens and 3 blocks, got 22'):
        model(models.picture(1))
    patch.remove(model)
