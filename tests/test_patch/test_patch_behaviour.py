# SPDX-License-Identifier: Apache-2.0
"""What a patch does between its blocks: a plain loop, features on the way, positions, threads, messages."""

import importlib.util
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.functional import (
    cluster_tokens,
    merge_tokens_to,
    reconstruct_tokens,
    token_spread,
)
from clusterplug.patch._geometry import cell_places, rotation_at

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


def embedded(model, image):
    x = model.patch_embed.proj(image).flatten(2).mT
    return torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)


@torch.no_grad()
def test_expedit_is_clustering_blocks_reconstruction():
    model, image = models.make('plain'), models.picture(2)
    x = model.blocks[0](embedded(model, image))
    tokens = x[:, 1:].unflatten(1, (8, 8))
    state = cluster_tokens(tokens, (5, 6), temperature=0.2 * token_spread(tokens, (5, 6)))
    short = torch.cat([x[:, :1], state.centers.flatten(1, 2)], 1)
    for block in model.blocks[1:3]:
        short = block(short)
    change = short[:, 1:].unflatten(1, (5, 6)) - state.centers
    full = tokens + reconstruct_tokens(change, state, window=5)
    expected = model.blocks[3](torch.cat([short[:, :1], full.flatten(1, 2)], 1))
    patch.apply(model, start=1, end=3, grid=(5, 6))
    torch.testing.assert_close(model(image), expected)


@torch.no_grad()
def test_the_authors_form_is_a_setting():
    model, image = models.make('plain'), models.picture(1)
    x = model.blocks[0](embedded(model, image))
    state = cluster_tokens(x[:, 1:].unflatten(1, (8, 8)), (5, 5), temperature=50)
    short = torch.cat([x[:, :1], state.centers.flatten(1, 2)], 1)
    for block in model.blocks[1:]:
        short = block(short)
    full = reconstruct_tokens(short[:, 1:].unflatten(1, (5, 5)), state, norm='l2')
    patch.apply(model, start=1, grid=(5, 5), temperature=50.0, residual=False, search=None, norm='l2')
    torch.testing.assert_close(model(image), torch.cat([short[:, :1], full.flatten(1, 2)], 1))


@torch.no_grad()
def test_tome_is_merging_blocks_unmerging():
    model, image = models.make('plain'), models.picture(2)
    x = model.blocks[0](embedded(model, image))
    merged = merge_tokens_to(x, 21, metric=model.blocks[1].norm1(x), num_protected=1)  # roles of the whole sequence
    short = merged.tokens
    for block in model.blocks[1:]:
        short = block(short)
    full = x[:, 1:] + merged.unmerge(short - merged.tokens)[:, 1:]
    patch.apply(model, 'tome', start=1, grid=(4, 5), size_bias=False)
    torch.testing.assert_close(model(image), torch.cat([short[:, :1], full], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', ['tome', 'expedit'])
def test_attention_counts_reduced_tokens_by_their_size(method, monkeypatch):
    model, image = models.make('plain'), models.picture(2)
    patch.apply(model, method, start=1, end=3, grid=(4, 5), size_bias=True)
    seen = []
    store = model._clusterplug_patch.store
    model.blocks[1].register_forward_pre_hook(lambda *_: seen.append(store.current.sizes))
    got = model(image)
    (sizes,) = seen
    assert sizes.sum(1).tolist() == pytest.approx([64, 64])
    assert sizes.max() > 1.5
    assert store.current.sizes is None
    patch.remove(model)
    assert all('forward' not in vars(block) for block in model.blocks)
    patch.apply(model, method, start=1, end=3, grid=(4, 5), size_bias=False)
    assert not torch.allclose(model(image), got, atol=1e-4)
    bias = torch.cat([torch.ones(2, 1), sizes], 1).log()[:, None, None]
    original = torch.nn.functional.scaled_dot_product_attention

    def masked(query, key, value):
        return original(query, key, value, attn_mask=bias if key.shape[2] == 21 else None)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', masked)
    torch.testing.assert_close(model(image), got, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sizes_are_forgotten_after_a_failure():
    model, image = models.make('plain'), models.picture(1)
    plain = model(image)
    patch.apply(model, 'tome', start=1, keep_ratio=0.5)
    handle = model.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(image)
    handle.remove()
    q = torch.randn(1, 2, 33, 16)
    expected = (q @ q.mT / 4).softmax(-1) @ q
    torch.testing.assert_close(torch.nn.functional.scaled_dot_product_attention(q, q, q), expected)
    assert torch.equal(patch.remove(model)(image), plain)


@torch.no_grad()
@pytest.mark.parametrize('indices', [None, 2, [0, 2], [-1]])
def test_timm_hands_out_full_features_and_goes_on_with_reduced_ones(indices):
    model, image = models.make('timm vit'), models.picture(2)
    patch.apply(model, start=1, keep_ratio=0.4)
    expected = model.forward_features(image)
    final, features = model.forward_intermediates(image, indices)
    torch.testing.assert_close(final, expected)
    assert all(feature.shape == (2, 32, 8, 8) for feature in features)
    assert len(features) == (4 if indices is None else indices if isinstance(indices, int) else len(indices))
    last = model.get_intermediate_layers(image, 1, norm=True)[0]
    torch.testing.assert_close(last, expected[:, model.num_prefix_tokens :])
    early = model.forward_intermediates(image, [1], stop_early=True, intermediates_only=True)[0]
    assert early.shape == (2, 32, 8, 8)
    torch.testing.assert_close(model.forward_features(image), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    'name', ['vit', 'dinov2', 'dinov2 registers', 'dinov3', 'clip', 'siglip', 'beit', 'beit shared', 'sam']
)
@pytest.mark.parametrize('order', ['hooks first', 'patch first'])
def test_transformers_hands_out_full_hidden_states(name, order):
    model, image = models.make(f'transformers {name}'), models.picture(1)
    if order == 'hooks first':  # transformers puts its own hooks on the blocks when it is first asked
        plain = model(image, output_hidden_states=True).hidden_states
    patch.apply(model, start=1, keep_ratio=0.4)
    expected = model(image).last_hidden_state
    output = model(image, output_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state, expected)
    assert len(output.hidden_states) == 5
    assert {state.shape for state in output.hidden_states} == {output.hidden_states[0].shape}
    if order == 'hooks first':
        assert torch.equal(plain[1], output.hidden_states[1])
        assert not torch.equal(plain[2], output.hidden_states[2])
    torch.testing.assert_close(model(image).last_hidden_state, expected)


@torch.no_grad()
def test_taps_are_full_for_hooks_of_others():
    model, image = models.make('plain'), models.picture(1)
    seen = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda block, args, output, index=index: seen.update({index: output.shape[1]}))
    patch.apply(model, start=1, grid=(4, 4))
    without = model(image)
    assert seen == {0: 65, 1: 17, 2: 17, 3: 65}
    patch.remove(model)
    patch.apply(model, start=1, grid=(4, 4), taps=[1])
    assert torch.equal(model(image), without)
    assert seen == {0: 65, 1: 65, 2: 17, 3: 65}


def test_rotary_embeddings_between_tokens():
    size = (5, 7)
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing='ij')
    bands = torch.tensor([1.0, 0.1, 0.01])

    def table(rows, columns):
        angle = torch.cat([rows[..., None] * bands, columns[..., None] * bands], -1)
        return angle.cos(), angle.sin()

    cosine, sine = table(rows.flatten(), columns.flatten())
    places = torch.tensor([[0.0, 0.0], [4.0, 6.0], [1.25, 3.5], [3.9, 0.1]])
    torch.testing.assert_close(rotation_at(cosine, sine, size, places), table(places[:, 0], places[:, 1]))
    each = torch.stack([places, places.flip(0)])
    got = rotation_at(cosine, sine, size, each)[0]
    assert got.shape == (2, 1, 4, 6)
    torch.testing.assert_close(got[1, 0], table(each[1, :, 0], each[1, :, 1])[0])
    of_heads = rotation_at(cosine.expand(3, -1, -1), sine.expand(3, -1, -1), size, each)[0]
    assert of_heads.shape == (2, 3, 4, 6)
    every = rotation_at(cosine, sine, size, cell_places(size, size, torch.device('cpu')))
    torch.testing.assert_close(every, (cosine, sine))


@torch.no_grad()
def test_maps_that_are_not_square():
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=(32, 96), patch_size=8, embed_dim=32, depth=3, num_heads=2,
        dynamic_img_size=True,
    ).eval()  # fmt: skip
    patch.apply(model, start=1, keep_ratio=0.5)
    for size in ((32, 96), (96, 32), (64, 48)):
        assert model.forward_features(torch.randn(1, 3, *size)).shape[1] == 1 + size[0] * size[1] // 64
        assert model.forward_intermediates(torch.randn(1, 3, *size))[1][-1].shape[2:] == (size[0] // 8, size[1] // 8)


@torch.no_grad()
def test_threads_do_not_disturb_each_other():
    model = models.make('plain')
    patch.apply(model, start=1, keep_ratio=0.5)
    images = [models.picture(1, size=size, seed=size) for size in (32, 64, 96)]
    expected = [model(image) for image in images]
    wrong = []

    def work(index):
        for _ in range(10):
            if not torch.equal(model(images[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_windows_of_sam_are_restored():
    model, image = models.make('transformers sam'), models.picture(1)
    sizes = [layer.window_size for layer in model.layers]
    patch.apply(model, start=0, grid=(5, 5))
    model(image)
    assert [layer.window_size for layer in model.layers] == sizes
    with pytest.raises(ValueError, match='finite'):
        model(torch.full_like(image, torch.nan))
    patch.remove(model)
    assert [layer.window_size for layer in model.layers] == sizes


@torch.no_grad()
def test_a_host_of_ones_own():
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 4, 4)
            self.stages = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, image):
            x = self.stem(image).flatten(2).mT
            for stage in self.stages:
                x = stage(x)
            return x

    model = Mine()
    with pytest.raises(ValueError, match=r'Mine holds no transformer.*Looked in it.*register_host'):
        patch.apply(model)
    patch.register_host(
        'mine',
        lambda module: patch.Layout('mine', module, module.stages, module.stem) if type(module) is Mine else None,
    )
    image = models.picture(1, size=32)
    expected = model(image)
    patch.apply(model, start=1, keep_ratio=0.25)
    assert model(image).shape == expected.shape
    assert 'mine' in patch.hosts()


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(method='magic'), ValueError, 'method must be one of expedit, tome, average or centerclip'),
        (dict(start=3, end=2), ValueError, 'start and end must satisfy 0 <= start < end <= 4'),
        (dict(start=2, end=2), ValueError, 'start and end must satisfy'),
        (dict(end=5), ValueError, 'start and end must satisfy'),
        (dict(start=-1), ValueError, 'start and end must satisfy'),
        (dict(start=1.0), TypeError, 'start must be an int'),
        (dict(grid=(0, 4)), ValueError, 'grid must lie'),
        (dict(grid=4), TypeError, 'grid must be'),
        (dict(grid=(4, 4), keep_ratio=0.5), ValueError, 'not both'),
        (dict(keep_ratio=0), ValueError, 'keep_ratio must lie above 0'),
        (dict(keep_ratio=1.5), ValueError, 'keep_ratio must lie above 0'),
        (dict(taps=[4]), ValueError, 'taps must be numbers of blocks'),
        (dict(taps=3), TypeError, 'taps must be numbers of blocks, 0 to 3, got int'),
        (dict(taps=[1.5]), TypeError, 'taps must be numbers of blocks'),
        (dict(taps='12'), TypeError, 'taps must be numbers of blocks'),
        (dict(num_prefix='1'), TypeError, 'num_prefix must be an int'),
        (dict(num_prefix=True), TypeError, 'num_prefix must be an int'),
        (dict(num_prefix=-27), ValueError, 'num_prefix must be at least 0'),
        (dict(keepratio=0.5), ValueError, r"got keepratio \(did you mean 'keep_ratio'\?\)"),
        (dict(ratio=0.5), ValueError, 'apply itself start, end, grid, keep_ratio, num_prefix, taps'),
        (dict(method='tom'), ValueError, r"did you mean 'tome'\?"),
        (dict(windows=3), ValueError, "method 'expedit' has the options num_iters.*got windows"),
        (dict(window=4), ValueError, 'window must be odd'),
        (dict(search=4), ValueError, 'window must be odd'),
        (dict(temperature=-1.0), ValueError, 'temperature must be above 0'),
        (dict(norm='l2'), ValueError, 'residual=False'),
        (dict(method='tome', compare='keys'), ValueError, 'compare must be'),
    ],
)
def test_bad_settings(change, error, message):
    model = models.make('plain')
    with pytest.raises(error, match=message):
        patch.apply(model, **change)
    with pytest.raises(ValueError, match='is not patched'):
        patch.remove(model)


@torch.no_grad()
def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip('numpy', reason='needs numpy')
    model, image = models.make('plain'), models.picture(1)
    expected = patch.apply(model, start=1, end=3, keep_ratio=0.5, taps=[1])(image)
    patch.remove(model)
    options = dict(start=np.int64(1), end=np.int32(3), keep_ratio=np.float32(0.5), taps=np.array([1]))
    assert torch.equal(patch.apply(model, num_prefix=np.int64(1), **options)(image), expected)


@torch.no_grad()
def test_bad_input():
    model, image = models.make('timm vit'), models.picture(1)
    with pytest.raises(ValueError, match='VisionTransformer is not patched; nothing to remove'):
        patch.remove(model)
    patch.apply(model, start=1, grid=(9, 4))
    with pytest.raises(ValueError, match='patched already'):
        patch.apply(model)
    with pytest.raises(ValueError, match='patched already'):
        patch.apply(torch.nn.Sequential(model))
    with pytest.raises(ValueError, match=r'size of the map, \(8, 8\), got \(9, 4\)'):
        model(image)
    patch.remove(model)
    with pytest.raises(ValueError, match='is not patched'):
        patch.remove(model)
    patch.apply(model, start=1, num_prefix=3)
    with pytest.raises(ValueError, match=r'3 tokens in front of a map of 8 x 8.*num_prefix=1'):
        model(image)
    patch.remove(model)
    patch.apply(model, start=1)
    with pytest.raises(ValueError, match='x must be finite'):
        model(image * torch.nan)
    assert torch.isfinite(model(image)).all()  # a pass that failed leaves nothing behind
    with pytest.raises(TypeError, match='model must be a'):
        patch.apply('vit')
    with pytest.raises(TypeError, match='model must be a'):
        patch.remove(None)


@pytest.mark.slow
def test_a_compiled_model_is_refused():
    with pytest.raises(ValueError, match='compiled already'):
        patch.apply(torch.compile(models.make('plain')))


@torch.no_grad()
def test_an_image_that_does_not_divide_says_so_as_before():
    model = models.make('timm vit')
    patch.apply(model, start=1)
    with pytest.raises(AssertionError, match='height'):
        model(models.picture(1, size=60))


def test_tome_needs_no_grid():
    with pytest.raises(ValueError, match="method 'tome' leaves tokens without a grid"):
        patch.apply(models.make('transformers sam'), 'tome')


@torch.no_grad()
def test_a_mask_is_refused():
    model, image = models.make('transformers dinov2'), models.picture(1)
    patch.apply(model, start=1)
    mask = torch.ones(1, 65, dtype=torch.long)
    mask[:, -3:] = 0
    with pytest.raises(ValueError, match='attention_mask must be None'):
        model(image, attention_mask=mask)


@torch.no_grad()
def test_values_beyond_half_precision_are_named():
    model, image = models.make('plain').half(), models.picture(1).half()
    model.blocks[0].fc.weight.mul_(6e4)
    patch.apply(model, start=1)
    with pytest.raises(ValueError, match='x must be finite'):
        model(image)
