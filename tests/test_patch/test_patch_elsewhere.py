# SPDX-License-Identifier: Apache-2.0
"""Patched models where others have their hands in them: other processes, copies, frameworks, checkpoints."""

import copy
import functools
import importlib.util
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.patch._store import Store
from clusterplug.patch.hosts import find_layout

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)
# Not BEiT, whose plain form keeps tensors of inference mode for later passes as well.
KINDS = ['timm vit', 'timm dinov3 rope', 'timm swin v2', 'transformers swin', 'torchvision swin']


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(models.tensors(a), models.tensors(b), strict=True))


def methods(name):
    return ('expedit', 'average') if name in models.GRID_BOUND else ('expedit', 'tome')


@pytest.mark.parametrize('name', KINDS)
def test_in_inference_mode_and_trained_afterwards(name):
    model, image = models.make(name), models.picture(2)
    plain = model(image)
    for method in methods(name):
        patch.apply(model, method, start=1, keep_ratio=0.3)  # sizes that no other test has put into a cache
        with torch.inference_mode():
            found = model(image)
        with torch.no_grad():
            assert same(model(image), found)
        expected = model(image)  # attention whose bias has a gradient runs on another kernel
        for a, b in zip(models.tensors(found), models.tensors(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        models.tensors(expected)[0].square().mean().backward()
        block = find_layout(model).blocks[1]
        assert any(p.grad is not None and p.grad.any() for p in block.parameters())
        model.zero_grad()
        assert same(patch.remove(model)(image), plain)


def hook(module):
    """As accelerate does it: ``forward`` on the module itself, the one before it kept under another name."""
    module._old_forward = module.forward

    def forward(module, *args, **kwargs):
        module.calls = vars(module).get('calls', 0) + 1
        return module._old_forward(*args, **kwargs)

    module.forward = functools.update_wrapper(functools.partial(forward, module), module._old_forward)


def unhook(module):
    module.forward = module.__dict__.pop('_old_forward')


@torch.no_grad()
@pytest.mark.parametrize(
    'name', ['timm vit', 'transformers clip', 'timm swin', 'transformers sam2', 'transformers vit']
)
@pytest.mark.parametrize('order', ['hook apply remove unhook', 'apply hook remove unhook', 'apply hook unhook remove'])
def test_with_a_forward_that_others_set_on_every_module(name, order):
    image = models.picture(1)
    plain = models.make(name)(image)
    for method in methods(name):
        model = models.make(name)
        expected = patch.apply(models.make(name), method, start=0, keep_ratio=0.4)(image)
        patched = hooked = False
        for step in order.split():
            if step == 'apply':
                patch.apply(model, method, start=0, keep_ratio=0.4)
            elif step == 'remove':
                patch.remove(model)
            else:
                for module in model.modules():
                    (hook if step == 'hook' else unhook)(module)
            patched = {'apply': True, 'remove': False}.get(step, patched)
            hooked = {'hook': True, 'unhook': False}.get(step, hooked)
            assert same(model(image), expected if patched else plain)
            assert 'calls' not in vars(model) or vars(model).pop('calls') == 1 or not hooked


@torch.no_grad()
@pytest.mark.parametrize('name', ['timm vit', 'transformers vit'])
def test_a_forward_that_others_put_back_over_ours_is_named(name):
    model, image = models.make(name), models.picture(1)
    plain = model(image)
    for module in model.modules():
        hook(module)
    patch.apply(model, 'tome', start=1)  # needs the forward of its blocks, to count tokens by size
    for module in model.modules():
        unhook(module)
    with pytest.raises(RuntimeError, match=r'the forward of block 1 of .* was replaced after clusterplug'):
        model(image)
    assert same(patch.remove(model)(image), plain)


FRESH = """
import sys, torch
import clusterplug
folder = sys.argv[1]
for name in sys.argv[2:]:
    model, image, expected, plain = torch.load(f'{folder}/{name}.pt', weights_only=False)
    with torch.no_grad():
        assert torch.equal(model(image), expected), name
        assert torch.equal(clusterplug.patch.remove(model)(image), plain), name
"""


@pytest.mark.slow
@torch.no_grad()
def test_saved_models_in_a_fresh_process(tmp_path):
    names, image = ['timm vit', 'timm swin', 'timm dinov3 rope', 'torchvision swin v2'], models.picture(1)
    for name in names:
        model = models.make(name)
        plain = model(image)
        patch.apply(model, methods(name)[-1], start=1, keep_ratio=0.4)
        torch.save((model, image, model(image), plain), tmp_path / f'{name}.pt')
        assert not torch.equal(model(image), plain)
    done = subprocess.run([sys.executable, '-c', FRESH, tmp_path, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _gradients(model, image):
    model.zero_grad(set_to_none=True)
    sum(each.square().mean() for each in models.tensors(model(image))).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    'host',
    [pytest.param('mmdet swin', marks=pytest.mark.slow), 'mmseg swin', 'mmseg vit', 'mmseg vit without class token'],
)
def test_with_cp_of_mm_gives_the_gradients_or_is_refused(host):
    package = host.split()[0]
    pytest.importorskip(package, reason=f'needs {package}')
    from clusterplug import compat

    compat.apply_all()
    backbones = importlib.import_module(f'{package}.models.backbones')
    swin = dict(pretrain_img_size=64, embed_dims=16, patch_size=8, strides=(8, 2), window_size=4, depths=(4, 2))
    vit = dict(img_size=64, patch_size=8, embed_dims=32, num_layers=4, num_heads=2, mlp_ratio=2, out_indices=(1, 3))
    swin |= dict(num_heads=(2, 2), out_indices=(0, 1), drop_path_rate=0.0)
    if 'swin' in host:
        make = functools.partial(backbones.SwinTransformer, **swin)
    else:
        make = functools.partial(backbones.VisionTransformer, **vit, with_cls_token='without' not in host)
    found = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = make(with_cp=with_cp)
        model.train()
        patch.apply(model, start=1, end=3, keep_ratio=0.3)
        if with_cp and 'swin' in host:
            with pytest.raises(RuntimeError, match="'expedit' does not support gradient checkpointing of single"):
                _gradients(model, models.picture(2).requires_grad_())
            return
        found.append(_gradients(model, models.picture(2).requires_grad_()))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ('name', 'method'), [('timm swin', 'expedit'), ('transformers swin', 'average'), ('transformers clip', 'tome')]
)
def test_checkpointing_of_single_blocks_is_refused_in_words_that_help(name, method):
    model, image = models.make(name).train(), models.picture(1).requires_grad_()
    patch.apply(model, method, start=1, keep_ratio=0.3)
    if name.startswith('timm'):
        model.set_grad_checkpointing()
    else:
        model.gradient_checkpointing_enable()
    with pytest.raises(RuntimeError) as caught:
        _gradients(model, image)
    message = str(caught.value)
    assert f"method '{method}' does not support gradient checkpointing of single blocks" in message
    assert 'pass the whole model to torch.utils.checkpoint.checkpoint' in message
    assert 'clusterplug.patch.remove(model)' in message


@pytest.mark.parametrize(
    ('name', 'method'), [('timm swin', 'expedit'), ('transformers swin', 'average'), ('transformers sam', 'average')]
)
def test_a_refusal_that_is_kept_leaves_no_checkpointing_behind(name, method):
    """A notebook keeps the last error, and with it what the error holds, while other cells run."""
    model, image = models.make(name).train(), models.picture(1).requires_grad_()
    other = models.make('plain')
    right = _gradients(other, image)
    patch.apply(model, method, start=1, keep_ratio=0.3)
    if name.startswith('timm'):
        model.set_grad_checkpointing()
    else:
        model.gradient_checkpointing_enable(dict(use_reentrant=False))
    kept = []
    for _ in range(2):
        try:
            _gradients(model, image)
        except RuntimeError as error:
            kept.append(error)
    assert len(kept) == 2
    found = _gradients(other, image)
    assert all(torch.equal(found[name], right[name]) for name in right)
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_checkpointing_around_the_model_is_ended_in_its_order():
    """One checkpoint inside another, both left open by an error: afterwards only what was there before is left."""
    model, image = models.make('plain').train(), models.picture(1)

    class Failing(models.PlainTransformer.Block):
        def forward(self, x):
            return checkpoint(lambda x: checkpoint(self.fail, x, use_reentrant=False), x, use_reentrant=False)

        def fail(self, x):
            raise ArithmeticError

    patch.apply(model, start=1, keep_ratio=0.3)
    model.blocks[2].forward = Failing.forward.__get__(model.blocks[2])
    model.blocks[2].fail = Failing.fail.__get__(model.blocks[2])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        mine = torch._C._autograd._top_saved_tensors_default_hooks(True)
        with pytest.raises(ArithmeticError) as kept:
            model(image)
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) == mine
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    del kept


def test_inputs_of_blocks_are_known_by_their_memory_not_by_its_address():
    np = pytest.importorskip('numpy', reason='needs numpy')
    memory = np.zeros((2, 3), np.float32)
    first, second = torch.from_numpy(memory), torch.from_numpy(memory)  # as after the first one was freed
    assert first.data_ptr() == second.data_ptr()
    store = Store('centerclip')
    store.remember(1, first, (4, None))
    assert store.recall(1, first.detach()) == (4, None)
    assert store.recall(1, second) is None
    assert store.recall(2, first) is None


def replicate(model):
    """As nn.parallel.replicate does it, on the CPU: copies share parameters, hooks and everything else."""
    originals = list(model.modules())
    copies = {id(module): module._replicate_for_data_parallel() for module in originals}
    for module in originals:
        other = copies[id(module)]
        for key, child in module._modules.items():
            other._modules[key] = None if child is None else copies[id(child)]
        for key, value in module._parameters.items():
            # Not parameters any more, but attributes that a backward pass goes through.
            if value is None:
                other._parameters[key] = None
            else:
                setattr(other, key, value.clone())
        for key, value in module._buffers.items():
            other._buffers[key] = None if value is None else value.clone()
    return copies[id(model)]


@torch.no_grad()
@pytest.mark.parametrize('how', [replicate, copy.deepcopy])
@pytest.mark.parametrize(
    'name', ['plain', 'timm swin', 'timm swin v2', 'torchvision swin', 'segment_anything', 'timm vit']
)
def test_copies_in_threads_give_the_numbers_of_the_model(name, how):
    model = models.make(name)
    images = [models.picture(1, seed=seed) for seed in range(3)]
    for method in methods(name):
        patch.apply(model, method, start=1, keep_ratio=0.4)
        expected, found = [model(image) for image in images], {}

        def work(index, other, images=images, found=found):
            try:
                with torch.no_grad():
                    found[index] = [other(images[index]) for _ in range(2)]
            except Exception as error:
                found[index] = error

        threads = [threading.Thread(target=work, args=(index, how(model))) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index in range(3):
            assert isinstance(found[index], list), found[index]
            assert all(same(each, expected[index]) for each in found[index])
        patch.remove(model)


@torch.no_grad()
@pytest.mark.parametrize('name', ['transformers vit', 'transformers beit', 'transformers sam', 'transformers clip'])
@pytest.mark.parametrize('first', [False, True])
def test_the_input_of_the_first_block_is_handed_out_full(name, first):
    model, image = models.make(name), models.picture(2)
    plain = model(image, output_hidden_states=True) if first else None
    for method in methods(name):
        patch.apply(model, method, start=0, keep_ratio=0.4)
        expected = model(image)
        found = model(image, output_hidden_states=True)
        assert len({state.shape for state in found.hidden_states}) == 1
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        if first:
            assert torch.equal(found.hidden_states[0], plain.hidden_states[0])
        assert same(model(image), expected)
        patch.remove(model)
        assert all('forward' not in vars(module) for module in model.modules())


@torch.no_grad()
def test_beit_for_segmentation_from_its_first_block_on():
    from transformers import BeitConfig, BeitForSemanticSegmentation

    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64)
    config = BeitConfig(
        **sizes, patch_size=8, use_relative_position_bias=True, out_indices=[1, 2, 3, 4], pool_scales=[1, 2],
    )  # fmt: skip
    model, image = BeitForSemanticSegmentation(config).eval(), models.picture(2)
    shape = model(image).logits.shape
    assert patch.apply(model, start=0, keep_ratio=0.5)(image).logits.shape == shape


def test_maps_of_attention_are_refused():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64)
    model = ViTForImageClassification(ViTConfig(**sizes, patch_size=8, attn_implementation='eager')).eval()
    image = models.picture(1)
    patch.apply(model, start=1)
    with pytest.raises(ValueError, match='output_attentions must be False'):
        model(image, output_attentions=True)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match='output_attentions must be False'):
        model(image)
    patch.remove(model)
    assert len(model(image).attentions) == 4


@torch.no_grad()
@pytest.mark.parametrize('name', ['timm swin', 'transformers swin v2', 'transformers sam2', 'timm vit'])
def test_a_share_that_keeps_all_tokens_is_no_secret(name):
    model, image = models.make(name), models.picture(1)
    plain = model(image)
    patch.apply(model, start=1, keep_ratio=0.9 if name != 'timm vit' else 0.99)
    with pytest.warns(UserWarning, match=r'keeps all 8 x 8 tokens of .*nothing is reduced'):
        assert same(model(image), plain)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model(image)  # once is enough
        patch.remove(model)
        patch.apply(model, start=1, keep_ratio=1.0)(image)
        patch.remove(model)
        patch.apply(model, start=1, grid=(8, 8))(image)
