# SPDX-License-Identifier: Apache-2.0
"""Reading a feature inside a model: the input or output of a named layer, as rows."""

import difflib
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Rows(NamedTuple):
    """A feature as rows, and where they lie if it is sparse.

    Attributes:
        features: (M, C).
        indices: (M, 4) voxel coordinates with the batch index first, or None.
        spatial_shape: the grid they lie in, or None.
        grid: height and width of the map of an image, whose rows are its pixels, or None.
    """

    features: Tensor
    indices: Tensor | None = None
    spatial_shape: tuple | None = None
    grid: tuple[int, int] | None = None


def to_rows(value, path: str) -> Rows:
    """Rows of a tensor (N, C), (B, C, N) or (B, C, H, W), or a sparse one of spconv, torchsparse, MinkowskiEngine."""
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    if isinstance(value, Tensor):
        if value.dim() == 2:
            return Rows(value)
        if value.dim() == 3:
            return Rows(value.transpose(1, 2).flatten(0, 1))
        if value.dim() == 4:
            return Rows(value.permute(0, 2, 3, 1).flatten(0, 2), grid=tuple(value.shape[2:]))
        raise ValueError(
            f"the layer '{path}' gives a tensor of shape {tuple(value.shape)}; a tap needs rows: (N, C), (B, C, N), "
            f'(B, C, H, W) or a sparse tensor'
        )
    if hasattr(value, 'indices') and hasattr(value, 'features'):
        return Rows(value.features, value.indices, tuple(int(size) for size in value.spatial_shape))
    if isinstance(getattr(value, 'F', None), Tensor):
        return Rows(value.F)
    raise TypeError(
        f"the layer '{path}' gives a {type(value).__name__}; a tap needs a tensor or a sparse tensor: name a layer "
        f'inside it'
    )


class Tap:
    """Keeps the latest input or output of one layer while it is open.

    Args:
        model: where the layer is.
        path: dotted name of the layer as in ``model.named_modules()``; with ``':input'`` at the end its (first) input
            is kept, else its output.

    Raises:
        ValueError: no such layer; the message lists near matches.
    """

    def __init__(self, model: nn.Module, path: str):
        self.path = path
        name, _, side = path.partition(':')
        if side not in ('', 'input', 'output'):
            raise ValueError(f"a tap is 'layer', 'layer:input' or 'layer:output', got {path!r}")
        self.side = side or 'output'
        layers = dict(model.named_modules())
        if not name or name not in layers:
            near = difflib.get_close_matches(name, layers, n=5, cutoff=0.5) or [n for n in layers if n and '.' not in n]
            raise ValueError(f'the model {type(model).__name__} has no layer {name!r}; near matches: {", ".join(near)}')
        layer = layers[name]
        self.channels = _width(layer, self.side)
        self.open = False
        self.value = None
        self.without_gradient = False  # the layer ran with gradients switched off
        layer.register_forward_hook(self._keep)

    def _keep(self, _, inputs, output):
        if self.open:
            self.value = inputs[0] if self.side == 'input' else output
            self.without_gradient = not torch.is_grad_enabled()

    def close(self) -> None:
        """Keep nothing, neither what was kept nor what comes."""
        self.open, self.value = False, None

    def __getstate__(self) -> dict:
        # a step that was interrupted leaves a tensor of its graph, which can neither be copied nor is worth saving
        return {**vars(self), 'open': False, 'value': None}

    def take(self) -> Rows:
        """The rows kept since :meth:`open` was set, which are then forgotten."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError(
                f"the layer '{self.path}' did not run in this training step; tap a layer that the loss passes through"
            )
        return to_rows(value, self.path)


def _width(layer: nn.Module, side: str) -> int | None:
    """Columns of what goes into or comes out of a layer, from its first or last sub-layer that tells, or None."""
    names = ('in_features', 'in_channels') if side == 'input' else ('out_features', 'out_channels', 'num_features')
    layers = list(layer.modules())
    for module in layers if side == 'input' else reversed(layers):
        for name in names:
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
    return None
