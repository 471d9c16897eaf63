# SPDX-License-Identifier: Apache-2.0
"""Hosts with windows and stages: tables of relative positions, shifts, stages, grids without padding."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.patch._geometry import cell_places
from clusterplug.patch._windows import (
    ShiftedWindows,
    _between,
    biases_at,
    coordinates_at,
    fitting_cells,
    pair,
    position_index,
    window_for,
)
from clusterplug.patch.hosts import find_layout

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)
SWINS = [name for name in models.MODELS if 'swin' in name]
STAGED = [*SWINS, 'transformers sam2', 'timm sam2']


def position_holder(block):
    return next(module for module in block.modules() if hasattr(module, 'relative_position_index'))


def everything(model):
    """All that a patch might leave behind: the very objects."""
    return {
        (name, key): id(value) if isinstance(value, torch.Tensor) else repr(value)
        for name, module in model.named_modules()
        for store in (module._parameters, module._buffers, vars(module))
        for key, value in store.items()
        if key in ('window_size', 'shift_size', 'window_area', 'dynamic_mask', 'set_shift_and_window_size')
        or 'relative' in key
    }


@pytest.mark.parametrize('name', SWINS)
def test_the_index_is_that_of_the_host(name):
    model = models.make(name)
    holder = position_holder(find_layout(model).blocks[0])
    expected = holder.relative_position_index
    assert torch.equal(position_index((4, 4), expected.device).view_as(expected), expected)


@torch.no_grad()
@pytest.mark.parametrize('name', SWINS)
def test_windows_for_the_same_size_change_nothing(name):
    model, image = models.make(name), models.picture(2)
    plain = models.tensors(model(image))
    before = everything(model)
    patch.apply(model, start=0, end=4, keep_ratio=1.0)
    session = model._clusterplug_patch
    for block in session.layout.blocks[:4]:
        resize, current = session.layout.resize, session.store.current
        values = resize.values(block, (8, 8), (8, 8))
        assert any(name == 'relative_position_index' for _, name in values)

        def use(block, args, values=values, current=current):
            current.windows = values

        block.register_forward_pre_hook(use)
    for a, b in zip(plain, models.tensors(model(image))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    patch.remove(model)
    assert everything(model) == before
    assert all(torch.equal(a, b) for a, b in zip(plain, models.tensors(model(image))))


@torch.no_grad()
@pytest.mark.parametrize('name', SWINS)
def test_inside_a_pass_windows_are_small_and_the_modules_stay_as_they_are(name):
    model = models.make(name)
    layout = find_layout(model)
    seen, inside = [], []
    model(models.picture(1))  # one host sets windows of small maps in its first pass
    before = everything(model)
    patch.apply(model, start=1, end=4, grid=(6, 6))
    for block in layout.blocks[:4]:
        holder = ShiftedWindows().holder(block)

        def look(*_, holder=holder):
            seen.append(holder.window_size)
            inside.append(everything(model) == before)

        position_holder(block).register_forward_pre_hook(look)
    model(models.picture(1))
    assert [pair(size) for size in seen] == [(4, 4)] + 3 * [(3, 3)]
    assert all(inside)
    assert everything(model) == before


def test_biases_between_tokens_by_hand():
    table = torch.arange(9.0).view(3, 3).flatten()[:, None]  # down 3, across 1
    halves = biases_at(table, (2, 2), (2, 2), (0.5, 1.0)).view(3, 3)
    assert halves.tolist() == [[1.5, 2.5, 3.5], [3.0, 4.0, 5.0], [4.5, 5.5, 6.5]]
    assert torch.equal(biases_at(table, (2, 2), (2, 2), (1.0, 1.0)), table)
    assert torch.equal(biases_at(table, (2, 2), (2, 2), (9.0, 9.0)).view(3, 3)[0, 0], table[0, 0])  # clamped
    table.requires_grad_()
    biases_at(table, (2, 2), (1, 1), (2.0, 2.0)).sum().backward()
    assert table.grad.flatten().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize('name', ['timm swin v2', 'torchvision swin v2', 'transformers swin v2'])
def test_coordinates_are_those_of_the_host(name):
    table = position_holder(find_layout(models.make(name)).blocks[0]).relative_coords_table
    torch.testing.assert_close(coordinates_at(table, (4, 4), (1.0, 1.0)), table)
    twice = coordinates_at(table, (2, 2), (2.0, 2.0))  # cells two tokens apart
    torch.testing.assert_close(twice[0], table[0, 1::2, 1::2])


@pytest.mark.parametrize(
    ('length', 'window', 'side', 'cells'), [(48, 12, 0.5**0.5, 32), (14, 7, 0.5**0.5, 10), (64, 14, 0.5**0.5, 45)]
)
def test_cells_fill_the_windows(length, window, side, cells):
    assert fitting_cells(length, window, side) == cells
    new = window_for((window, window), (length, length), (cells, cells))[0]
    number = -(-length // window)
    assert new * number == cells


def test_windows_as_the_paper_has_them():
    assert window_for((12, 12), (36, 60), (24, 40)) == (8, 8)
    assert window_for(12, (36, 60), (24, 40)) == (8, 8)
    assert window_for(0, (36, 60), (24, 40)) == (0, 0)


@pytest.mark.parametrize('name', STAGED)
def test_reduction_stays_in_a_stage(name):
    model = models.make(name)
    for wrong in (dict(start=2, end=5), dict(start=3, end=6)):
        with pytest.raises(ValueError, match='must lie in one stage'):
            patch.apply(model, **wrong, keep_ratio=0.5)
    patch.apply(model, start=2, keep_ratio=0.5)
    assert model._clusterplug_patch.end == 4
    patch.remove(model)
    patch.apply(model, keep_ratio=0.5)
    session = model._clusterplug_patch
    assert (session.start, session.end) == (2, 4)
    patch.remove(model)


def test_a_block_that_halves_the_map_runs_on_all_tokens():
    for name in ('transformers sam2', 'timm sam2'):
        with pytest.raises(ValueError, match='must lie in one stage'):
            patch.apply(models.make(name), start=4, keep_ratio=0.5)
        assert patch.apply(models.make(name), start=5, keep_ratio=0.5) is not None


@torch.no_grad()
@pytest.mark.parametrize('name', STAGED)
def test_a_later_stage_has_its_own_size(name):
    model, image = models.make(name), models.picture(2)
    plain = models.tensors(model(image))
    patch.apply(model, start=5, grid=(2, 3))
    lengths = []
    layout = find_layout(model)
    for block in layout.blocks:
        block.register_forward_pre_hook(lambda block, args: lengths.append(args[0].flatten(1, -2).shape[1]))
    reduced = models.tensors(model(image))
    assert lengths == [64, 64, 64, 64, lengths[4], 6]
    assert [each.shape for each in plain] == [each.shape for each in reduced]
    assert not torch.equal(plain[-1], reduced[-1])


@torch.no_grad()
def test_mask2former_runs_with_a_reduced_stage():
    model, image = models.make('transformers mask2former'), models.picture(1)
    plain = model(image)
    patch.apply(model, keep_ratio=0.4)  # the second stage, the middle of its 8 x 8 map
    reduced = model(image)
    assert reduced.masks_queries_logits.shape == plain.masks_queries_logits.shape
    assert not torch.equal(reduced.class_queries_logits, plain.class_queries_logits)
    patch.remove(model)
    assert torch.equal(model(image).class_queries_logits, plain.class_queries_logits)


@torch.no_grad()
def test_dpt_hybrid():
    model, image = models.make('transformers dpt hybrid'), models.picture(1, size=128)
    plain = model(image).predicted_depth
    patch.apply(model, start=1, grid=(5, 6))
    reduced = model(image).predicted_depth
    assert reduced.shape == plain.shape
    assert not torch.equal(reduced, plain)
    assert torch.equal(patch.remove(model)(image).predicted_depth, plain)


@torch.no_grad()
def test_maskformer_swin_hands_out_full_states_between_blocks():
    model, image = models.make('transformers maskformer swin'), models.picture(1)
    patch.apply(model, start=1, grid=(4, 4))
    states = model(image, output_hidden_states=True).hidden_states
    assert {state.shape[1] for state in states[1]} == {64}


@torch.no_grad()
@pytest.mark.parametrize('name', ['timm swin', 'torchvision swin v2', 'mmdet swin', 'transformers swin'])
def test_a_map_that_windows_do_not_divide(name):
    model = models.make(name)
    size = 8 * 9
    if 'timm' in name:
        model.set_input_size((size, size), window_size=(4, 4))
    image = models.picture(1, size=size)
    plain = models.tensors(model(image))
    patch.apply(model, start=1, end=3, grid=(5, 7))
    reduced = models.tensors(model(image))
    assert [each.shape for each in plain] == [each.shape for each in reduced]
    assert all(torch.isfinite(each).all() for each in reduced)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize('name', ['timm swin', 'timm swin v2', 'torchvision swin', 'transformers swin'])
def test_compiles(name):
    model, image = models.make(name), models.picture(2)
    patch.apply(model, start=1, keep_ratio=0.5)
    expected = models.tensors(model(image))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager')
    for _ in range(2):
        for a, b in zip(expected, models.tensors(compiled(image))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_tables_under_another_default_type(dtype):
    table = torch.linspace(-1, 1, 7).view(1, 7, 1, 1).expand(1, 7, 7, 2)
    biases = torch.linspace(0, 1, 49)[:, None]

    def made():
        return [
            biases_at(biases, (4, 4), (3, 3), (1.3, 1.3)),
            coordinates_at(table, (3, 3), (1.3, 1.3)),
            cell_places((16, 16), (11, 11), torch.device('cpu')),
        ]

    expected, before = made(), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    _between.cache_clear()
    try:
        found = made()
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
