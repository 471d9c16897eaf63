# SPDX-License-Identifier: Apache-2.0
"""What a patch leaves on a model: nothing that threads, failures, copies, files or other tools could stumble over."""

import copy
import gc
import importlib.util
import io
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
sys.modules['_patch_models'] = models  # where pickle looks for the classes in it
_spec.loader.exec_module(models)
WINDOWED = [name for name in models.MODELS if 'swin' in name or 'sam' in name or name == 'segment_anything']
ANY_SIZE = {'torchvision swin', 'torchvision swin v2', 'transformers swin', 'transformers swin v2', 'mmdet swin'}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(models.tensors(a), models.tensors(b), strict=True))


@torch.no_grad()
@pytest.mark.parametrize('name', WINDOWED)
def test_windowed_models_in_threads_give_the_numbers_of_one(name):
    model = models.make(name)
    sizes = (64, 96, 128, 64) if name in ANY_SIZE else (64, 64, 64, 64)
    images = [models.picture(1, size=size, seed=seed) for seed, size in enumerate(sizes)]
    plain = model(images[0])
    patch.apply(model, start=1, keep_ratio=0.5)
    expected = [model(image) for image in images]
    wrong, start = [], threading.Barrier(4)

    def work(index):
        start.wait()
        with torch.no_grad():
            for _ in range(3):
                try:
                    if not same(model(images[index]), expected[index]):
                        wrong.append(index)
                except Exception as error:
                    wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert same(patch.remove(model)(images[0]), plain)


def _raise(error):
    def hook(*_):
        raise error

    return hook


@pytest.mark.parametrize('name', ['timm vit', 'timm swin v2', 'transformers sam2', 'transformers swin'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_failed_pass_leaves_nothing(name, error):
    model, image = models.make(name), models.picture(1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    patch.apply(model, start=1, keep_ratio=0.5)
    layout = find_layout_of(model)
    expected = model(image)
    seen = []

    def keep(module, args, output):
        seen.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    handle = layout.blocks[0].register_forward_hook(keep)
    inner = next(m for m in layout.blocks[2].modules() if isinstance(m, torch.nn.Linear))
    stop = inner.register_forward_pre_hook(_raise(error('stop')))
    with pytest.raises(error):
        model(image)
    handle.remove()
    stop.remove()
    gc.collect()
    assert seen[0]() is None
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert same(model(image), expected)


def find_layout_of(model):
    return next(s for m in model.modules() if (s := vars(m).get('_clusterplug_patch')) is not None).layout


def _gradients(model, call):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # of stochastic depth
    for output in models.tensors(call())[:1]:
        weight = torch.linspace(-1, 1, output.shape[-1])
        (output * weight).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _equal_or_refused(model, right, call, method):
    try:
        found = _gradients(model, call)
    except RuntimeError as error:
        if f"method '{method}' does not support gradient checkpointing" not in str(error):
            raise
        return False
    assert found.keys() == right.keys()
    for name in right:
        # recomputed sums have other last digits; a wrong gradient is off by its own size
        torch.testing.assert_close(found[name], right[name], rtol=1e-4, atol=5e-7)
    return True


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize(
    ('name', 'method', 'options', 'exact'),
    [
        ('transformers vit', 'expedit', {}, True),
        ('transformers vit', 'average', {}, True),
        ('transformers vit', 'expedit', dict(size_bias=True), False),
        ('transformers vit', 'tome', {}, False),
        ('transformers dinov2', 'tome', dict(size_bias=False), True),
        ('transformers swin', 'expedit', {}, False),
        ('transformers sam', 'average', {}, False),
        ('timm vit', 'tome', {}, False),
        ('timm vit', 'expedit', {}, False),
        ('timm swin', 'expedit', {}, False),
    ],
)
def test_checkpointing_gives_the_gradients_or_is_refused(name, method, options, exact, reentrant):
    model, image = models.make(name).train(), models.picture(2).requires_grad_()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    patch.apply(model, method, start=1, keep_ratio=0.3, **options)
    right = _gradients(model, lambda: model(image))

    def whole():
        # Reentrant checkpointing sees tensors alone, not those in structures.
        return checkpoint(lambda x: models.tensors(model(x))[0], image, use_reentrant=reentrant)

    assert _equal_or_refused(model, right, whole, method)
    if name.startswith('timm'):
        model.set_grad_checkpointing()
        if reentrant:
            return  # timm takes that from its environment
    else:
        model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
    assert _equal_or_refused(model, right, lambda: model(image), method) is exact


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_inside_a_block(reentrant):
    class Checkpointed(models.PlainTransformer.Block):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    for method, options, exact in (('expedit', {}, True), ('tome', {}, False), ('tome', dict(size_bias=False), True)):
        model, image = models.make('plain').train(), models.picture(2)
        patch.apply(model, method, start=1, keep_ratio=0.3, **options)
        right = _gradients(model, lambda model=model, image=image: model(image))
        patch.remove(model)
        for block in model.blocks:
            block.__class__ = Checkpointed
        patch.apply(model, method, start=1, keep_ratio=0.3, **options)
        assert _equal_or_refused(model, right, lambda model=model, image=image: model(image), method) is exact


@torch.no_grad()
@pytest.mark.parametrize('name', list(models.MODELS))
def test_saved_and_copied_as_the_plain_model(name):
    model, image = models.make(name), models.picture(1)
    plain = model(image)
    for method in ('expedit', 'average') if name in models.GRID_BOUND else ('expedit', 'tome'):
        patch.apply(model, method, start=1, keep_ratio=0.5)
        expected = model(image)
        others = [copy.deepcopy(model)]
        if name not in ('transformers dinov2 backbone', 'transformers dpt', 'transformers depth anything'):
            # Those of transformers hold local functions after their first pass, without a patch as well.
            stream = io.BytesIO()
            torch.save(model, stream)
            stream.seek(0)
            others.append(torch.load(stream, weights_only=False))
        for other in others:
            assert same(other(image), expected)
            assert same(patch.remove(other)(image), plain)
        assert same(patch.remove(model)(image), plain)


@torch.no_grad()
def test_several_parts_in_one_model():
    pair, image = torch.nn.ModuleDict(dict(teacher=models.make('timm vit'), student=models.make('timm swin'))), None
    image = models.picture(1)
    plain = [model(image) for model in pair.values()]
    with pytest.raises(ValueError, match=r'2 transformers: teacher \(VisionTransformer\), student \(SwinTransformer\)'):
        patch.apply(pair)
    for model in pair.values():
        patch.apply(model, start=1)
    with pytest.raises(ValueError, match='patched already'):
        patch.apply(pair)
    patch.remove(pair)
    assert all(torch.equal(model(image), each) for model, each in zip(pair.values(), plain))
    with pytest.raises(ValueError, match='is not patched'):
        patch.remove(pair)
    outer = torch.nn.Sequential(pair['teacher'])
    patch.apply(outer, start=1)
    with pytest.raises(ValueError, match='patched already'):
        patch.apply(outer[0], keep_ratio=0.25)
    patch.remove(outer[0])
    assert torch.equal(patch.remove(patch.apply(outer, start=1))(image), plain[0])


def test_tied_blocks_are_refused():
    model = models.make('plain')
    model.blocks[2] = model.blocks[1]
    with pytest.raises(ValueError, match='blocks 1, 2 of plain are one module'):
        patch.apply(model, start=1)
    patch.apply(model, start=3)


@torch.no_grad()
@pytest.mark.parametrize('method', ['expedit', 'tome'])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_forward_of_others_stays(method, when):
    model, image, calls = models.make('timm vit'), models.picture(1), []
    plain = model(image)
    expected = patch.apply(copy.deepcopy(model), method, start=1)(image)
    if when == 'after':
        patch.apply(model, method, start=1)
    old = model.blocks[2].forward

    def counted(*args, **kwargs):
        calls.append(1)
        return old(*args, **kwargs)

    model.blocks[2].forward = counted
    if when == 'before':
        patch.apply(model, method, start=1)
    torch.testing.assert_close(model(image), expected)
    patch.remove(model)
    assert vars(model.blocks[2])['forward'] is counted
    assert torch.equal(model(image), plain)
    assert len(calls) == 2


@torch.no_grad()
def test_changed_blocks_are_named():
    model, image = models.make('timm vit'), models.picture(1)
    patch.apply(model, start=1)
    model.prune_intermediate_layers([1])
    with pytest.raises(RuntimeError, match=r'block 2 \(blocks\.2\) is gone.*remove'):
        model.forward_features(image)
    patch.remove(model)
    assert patch.apply(model, start=1).forward_features(image).shape == (1, 65, 32)
    model = patch.apply(models.make('plain'), start=1)
    expected = model(image)
    model.blocks[2] = torch.nn.Sequential(model.blocks[2])  # a wrapper still runs the block
    assert torch.equal(model(image), expected)
    model.blocks[2] = copy.deepcopy(models.make('plain').blocks[2])
    with pytest.raises(RuntimeError, match='block 2'):
        model(image)


@pytest.mark.parametrize('reentrant', [True, False])
def test_centerclip_computes_blocks_again_with_the_frames_of_their_pass(reentrant):
    class Tower(models.PlainTransformer):
        chunk = 0

        def forward(self, image):
            x = self.patch_embed.proj(image).flatten(2).mT
            for first in range(0, 4, self.chunk or 1):
                part = self.blocks[first : first + (self.chunk or 1)]
                run = torch.nn.Sequential(*part)
                x = checkpoint(run, x, use_reentrant=reentrant) if self.chunk else run(x)
            return x

    torch.manual_seed(0)
    model = Tower()
    model.cls_token = None
    options = dict(start=[1, 2], num_segments=[2, 1], num_clusters=[20, 10], num_prefix=0)
    patch.apply(model, 'centerclip', **options)
    a, b = models.picture(12).view(2, 6, 3, 64, 64), models.picture(12, seed=2).view(3, 4, 3, 64, 64)
    both = lambda: model(a).mean(0) + 2 * model(b).mean(0)  # noqa: E731
    right = _gradients(model, both)
    model.chunk = 1
    found = _gradients(model, both)
    assert found.keys() == right.keys()
    for name in right:
        torch.testing.assert_close(found[name], right[name], rtol=1e-4, atol=1e-6)
    model.chunk = 2  # the input of block 1 is computed again as well: nothing says which pass it is of
    with pytest.raises(RuntimeError, match="method 'centerclip' does not support gradient checkpointing"):
        _gradients(model, both)


def test_frame_masks_belong_to_their_thread():
    model = models.make('transformers clip')
    patch.apply(model, 'centerclip', start=2, num_segments=2, num_clusters=8)
    video = models.picture(4)[None]
    expected, found = model(video).pooler_output, []
    with patch.frame_mask(model, torch.tensor([[True, True, True, False]])):
        thread = threading.Thread(target=lambda: found.append(model(video).pooler_output))
        thread.start()
        thread.join()
        masked = model(video).pooler_output
    assert torch.equal(found[0], expected)
    assert not torch.equal(masked, expected)
