# SPDX-License-Identifier: Apache-2.0
"""What a layer gave, as rows of units: maps, tokens, vectors and sparse tensors."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clusterplug.core.checks import nearest_name

CHANNELS = ('auto', 'first', 'last')


class LayerOutput(NamedTuple):
    """Rows of units of one layer and one batch.

    Attributes:
        rows: (n, C).
        grid: what comes before the units: (B,), (B, L), (B, H, W) ...; (B, n) of a sparse tensor.
        positions: (n, 1 + dims) int coordinates of a sparse tensor, its batch index first; else None.
    """

    rows: Tensor
    grid: tuple[int, ...]
    positions: Tensor | None = None


def check_layers(model: nn.Module, names: Sequence[str], which: str) -> None:
    """Raise unless the model has modules of these names."""
    known = {name for name, _ in model.named_modules()}
    for name in names:
        if name not in known:
            raise ValueError(
                f'layers must be names of modules, got {name!r}, which {which} has not{nearest_name(name, known)}; '
                f'list them with model.named_modules()'
            )


@contextlib.contextmanager
def tapped(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list]]:
    """Keep what the named modules give while the context is open."""
    found = {name: [] for name in names}
    handles = []
    try:
        for name in found:
            module = model.get_submodule(name)
            handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: found[name].append(out)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def layer_output(outputs: list, name: str, channels: str, pool: str) -> LayerOutput:
    """Return the rows of what a module gave in one pass.

    Raises:
        ValueError: It was not called, or several times, or gave something without units.
    """
    if len(outputs) != 1:
        times = f'{len(outputs)} times' if outputs else 'not at all'
        raise ValueError(f'layer {name!r} must be called once in a pass, was called {times}; name another module')
    output = outputs[0]
    if isinstance(output, (tuple, list)) and sum(_holds_units(each) for each in output) == 1:
        output = next(each for each in output if _holds_units(each))
    if not _holds_units(output):
        raise ValueError(
            f'layer {name!r} must give one floating tensor or one sparse tensor, got {type(output).__name__}; name a '
            f'module inside it'
        )
    if not isinstance(output, Tensor):
        return _sparse_rows(output, pool)
    if output.dim() < 2:
        raise ValueError(f'layer {name!r} must give (batch, ..., units), got shape {tuple(output.shape)}')
    if channels == 'first' or (channels == 'auto' and output.dim() > 3):
        output = output.movedim(1, -1)
    grid = tuple(output.shape[:-1])
    if pool == 'mean' and len(grid) > 1:
        output = output.float().flatten(1, -2).mean(1)
        grid = grid[:1]
    return LayerOutput(output.detach().flatten(0, -2), grid)


def _holds_units(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(getattr(value, 'features', None), Tensor) and isinstance(getattr(value, 'indices', None), Tensor)


def _sparse_rows(output: Any, pool: str) -> LayerOutput:
    rows, positions = output.features.detach(), output.indices
    if pool == 'mean':
        batch, number = positions[:, 0].long(), int(output.batch_size)
        sums = rows.new_zeros(number, rows.shape[1], dtype=torch.float32).index_add_(0, batch, rows.float())
        counts = torch.bincount(batch, minlength=number).clamp(min=1).unsqueeze(1)
        return LayerOutput(sums / counts, (number,))
    return LayerOutput(rows, (int(output.batch_size), len(rows)), positions)


def paired(one: LayerOutput, other: LayerOutput, name: str) -> tuple[LayerOutput, LayerOutput]:
    """Return both with row i at the same position.

    Raises:
        ValueError: Layers of different spatial size, or sparse tensors of other positions.
    """
    if one.positions is not None and other.positions is not None and len(one.rows) == len(other.rows):
        if torch.equal(one.positions, other.positions):
            return one, other
        one, other = _in_order(one), _in_order(other)
        if torch.equal(one.positions, other.positions):
            return one, other
    elif (one.positions is None) == (other.positions is None) and _same_grid(one.grid, other.grid):
        return one, other
    raise ValueError(
        f'layers {name} must have the same positions, got {_words(one)} and {_words(other)}: layers of different '
        f"spatial size have no common positions. Compare layers of the same stride, or pass pool='mean'"
    )


def _same_grid(one: tuple, other: tuple) -> bool:
    """Equal, or tokens of one and a map of the other of as many positions."""
    if one == other:
        return True
    tokens = min(len(one), len(other)) == 2
    return tokens and one[0] == other[0] and torch.Size(one).numel() == torch.Size(other).numel()


def _in_order(output: LayerOutput) -> LayerOutput:
    _, order = torch.unique(output.positions, dim=0, return_inverse=True)
    order = order.argsort()
    return output._replace(rows=output.rows[order], positions=output.positions[order])


def _words(output: LayerOutput) -> str:
    return f'{"sparse " if output.positions is not None else ""}{output.grid} x {output.rows.shape[1]} units'
