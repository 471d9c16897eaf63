# SPDX-License-Identifier: Apache-2.0
"""What a patch has to know of a transformer, and how its parts are recognized."""

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.patch._geometry import SharedTable
from clusterplug.patch._windows import Windows


@dataclasses.dataclass
class Layout:
    """The parts of one transformer.

    Args:
        host: Name, for messages.
        trunk: The transformer itself, which may be a part of a larger model.
        blocks: Its blocks in the order in which they run. Each takes tokens (B, P + N, C), or maps
            (B, H, W, C), as first argument and returns the same, alone or first in a tuple.
        projection: Whose output (B, C, H, W), or (B, H, W, C) with ``projection_last``, is as high and wide
            as the token map.
        num_prefix: P, tokens in front of the map. Defaults to 0.
        maps: Blocks take maps. Defaults to False.
        needs_grid: Blocks need to know where tokens lie on a grid. Defaults to False.
        norm: Block -> the module that normalizes its input, whose output is compared when tokens
            are matched.
        adapt: ``adapt(block, args, kwargs, table)`` -> (args, kwargs) for reduced tokens:
            positions, resolutions.
        resize: ``resize.parts(block)`` -> the modules of a block that read other attributes in
            reduced blocks, by name, each with the names of these attributes; ``resize.values(block, size, grid)`` ->
            their values for a map of another size, by (module, attribute); ``resize.grid(block, size, keep_ratio)``
            is the grid whose windows need no padding.
        stages: Ranges of blocks over which a map keeps its size; none means one range over all. Tokens are
            reduced inside one range.
        knows_sizes: Blocks call ``scaled_dot_product_attention``, so that reduced tokens can count by size.
            Defaults to True.
        size: ``size(args, kwargs)`` -> (H, W) from what a block is called with, where the map has
            another size than the output of ``projection``.
        scopes: Modules whose call may ask for hidden states (``output_hidden_states``), outermost first.
        taps: Blocks whose output is always read from outside.
        wraps: ``wraps(store)`` -> methods to replace on the trunk, by name.
    """

    host: str
    trunk: nn.Module
    blocks: Sequence[nn.Module]
    projection: nn.Module
    num_prefix: int = 0
    maps: bool = False
    needs_grid: bool = False
    norm: Callable[[nn.Module], nn.Module] | None = None
    adapt: Callable[[nn.Module, tuple, dict, SharedTable], tuple[tuple, dict]] | None = None
    resize: Windows | None = None
    scopes: Sequence[nn.Module] = ()
    taps: Sequence[int] = ()
    wraps: Callable | None = None
    projection_last: bool = False
    stages: Sequence[range] = ()
    knows_sizes: bool = True
    size: Callable[[tuple, dict], tuple[int, int]] | None = None

    def __post_init__(self):
        for name in ('trunk', 'projection'):
            if not isinstance(getattr(self, name), nn.Module):
                raise TypeError(f'{name} must be a torch.nn.Module, got {type(getattr(self, name)).__name__}')
        self.blocks = list(self.blocks)
        if not self.blocks or not all(isinstance(block, nn.Module) for block in self.blocks):
            raise TypeError(f'blocks must be torch.nn.Modules, at least one, got {self.blocks!r}')
        self.num_prefix = check_count(self.num_prefix, 'num_prefix', 0)


def own(module: nn.Module | None, path: str) -> nn.Module | None:
    """Return a part by its path (``'patch_embed.proj'``), or None; never one that a wrapper forwards from another."""
    for name in path.split('.'):
        if not isinstance(module, nn.Module):
            return None
        module = vars(module).get('_modules', {}).get(name)
    return module


def own_parameter(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer that the module itself holds, or None."""
    stores = vars(module)
    return stores.get('_parameters', {}).get(name, stores.get('_buffers', {}).get(name))


def is_wrapper(module: nn.Module) -> bool:
    """Return whether a module answers for attributes that it does not have: compiled, peft, checkpoint, FSDP."""
    return type(module).__getattr__ is not nn.Module.__getattr__ or '__getattribute__' in {
        name for cls in type(module).__mro__ if cls is not object for name in vars(cls)
    }


def comes_from(module: nn.Module, *packages: str) -> bool:
    """Return whether the class of a module, or one it is derived from, is defined in one of the packages."""
    return any(cls.__module__.split('.')[0] in packages for cls in type(module).__mro__)


def class_names(module: nn.Module) -> set[str]:
    """Return the names of the class of a module and of all it is derived from."""
    return {cls.__name__ for cls in type(module).__mro__}


def first_norm(block: nn.Module) -> nn.Module | None:
    """Return the module that normalizes the input of a block, by its usual names."""
    names = ('norm1', 'layernorm_before', 'layer_norm1', 'ln_1', 'ln1')
    return next((norm for name in names if (norm := own(block, name)) is not None), None)
