# SPDX-License-Identifier: Apache-2.0
"""Methods of reduction that users register."""

import dataclasses

import pytest
import torch

from clusterplug import patch
from clusterplug.patch.application import APPLY_OPTIONS


class Plain(torch.nn.Module):
    """Three blocks that double their input, so that all that happens between is the method's."""

    class Block(torch.nn.Module):
        def forward(self, tokens):
            return 2 * tokens

    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.Module()
        self.patch_embed.proj = torch.nn.Identity()
        self.blocks = torch.nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, image):
        tokens = self.patch_embed.proj(image).flatten(2).mT
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


@dataclasses.dataclass
class Corner:
    """Keep the first cell of every 2 x 2, plus ``shift``; all four cells become it."""

    shift: float = 0.0
    keeps_grid = True

    def __call__(self, tokens, grid, compared):
        rows, columns = tokens.shape[1] // grid[0], tokens.shape[2] // grid[1]
        kept = tokens[:, ::rows, ::columns] + self.shift
        places = torch.cartesian_prod(torch.arange(grid[0]) * rows, torch.arange(grid[1]) * columns)

        def restore(refined):
            return refined.unflatten(1, grid).repeat_interleave(rows, 1).repeat_interleave(columns, 2)

        return patch.Reduced(kept.flatten(1, 2), restore, places.float())


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr('clusterplug.patch.methods._REGISTERED', {})
    patch.register_method('corner', Corner)


@pytest.fixture
def model():
    patch.register_host(
        'plain test',
        lambda m: patch.Layout('plain test', m, m.blocks, m.patch_embed.proj) if type(m) is Plain else None,
    )
    return Plain()


def test_a_method_of_ones_own(registered, model):
    image = torch.arange(16.0).view(1, 1, 4, 4)
    plain = model(image)
    patch.apply(model, 'corner', start=1, grid=(2, 2), shift=1.0)
    # block 0 doubles, the corners 0 2 8 10 become 1 5 17 21, two more blocks double twice
    expected = torch.tensor([[4.0, 4, 20, 20], [4, 4, 20, 20], [68, 68, 84, 84], [68, 68, 84, 84]])
    assert torch.equal(model(image).view(4, 4), expected)
    assert torch.equal(patch.remove(model)(image), plain)


def test_its_options_are_checked(registered, model):
    with pytest.raises(
        ValueError, match=r"'corner' has the options shift, and apply .*got shfit \(did you mean 'shift'"
    ):
        patch.apply(model, 'corner', shfit=1.0)
    with pytest.raises(ValueError, match=r"method must be one of expedit.*corner or centerclip, got 'korner' \(did"):
        patch.apply(model, 'korner')
    assert not set(APPLY_OPTIONS) & {field.name for field in dataclasses.fields(Corner)}


@pytest.mark.parametrize('tokens', [torch.zeros(1, 3, 1), None])
def test_what_it_returns_is_checked(registered, model, tokens):
    class Wrong:
        keeps_grid = True

        def __call__(self, values, grid, compared):
            return None if tokens is None else patch.Reduced(tokens, lambda x: x, torch.zeros(3, 2))

    patch.register_method('wrong', Wrong)
    patch.apply(model, 'wrong', start=0, grid=(2, 2))
    with pytest.raises(
        ValueError, match=r'Wrong must return a clusterplug.patch.Reduced with tokens \(batch, 4, chann'
    ):
        model(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ('name', 'method', 'error', 'message'),
    [
        (1, Corner, TypeError, 'name must be a string, got int'),
        ('centerclip', Corner, ValueError, "name must not be 'centerclip'"),
        ('x', Corner(), TypeError, 'method must be a class whose objects can be called'),
        ('x', object, TypeError, 'method must be a class whose objects can be called'),
        ('x', type('X', (), {'__call__': lambda self: 0}), TypeError, 'X.keeps_grid must be True'),
    ],
)
def test_bad_methods_are_refused(name, method, error, message):
    with pytest.raises(error, match=message):
        patch.register_method(name, method)


def test_a_method_of_ours_can_be_replaced(registered, model):
    patch.register_method('average', Corner)
    patch.apply(model, 'average', start=1, grid=(2, 2))
    assert model(torch.arange(16.0).view(1, 1, 4, 4)).view(4, 4)[0].tolist() == [0, 0, 16, 16]
