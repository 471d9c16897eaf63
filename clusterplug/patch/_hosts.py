"""What a patch has to know of a transformer, and the list of those that are known."""

import dataclasses
from collections.abc import Callable, Sequence

from torch import nn

from clusterplug.patch._geometry import SharedTable
from clusterplug.patch._windows import Windows


@dataclasses.dataclass
class Layout:
    """The parts of one transformer.

    Args:
        host (str): Name, for messages.
        trunk (Module): The transformer itself, which may be a part of a larger model.
        blocks (Sequence): Its blocks in the order in which they run. Each takes tokens (B, P + N, C), or maps
            (B, H, W, C), as first argument and returns the same, alone or first in a tuple.
        projection (Module): Whose output (B, C, H, W), or (B, H, W, C) with ``projection_last``, is as high and wide
            as the token map.
        num_prefix (int): P, tokens in front of the map. Defaults to 0.
        maps (bool): Blocks take maps. Defaults to False.
        needs_grid (bool): Blocks need to know where tokens lie on a grid. Defaults to False.
        norm (Callable, optional): Block -> the module that normalises its input, whose output is compared when tokens
            are matched.
        adapt (Callable, optional): ``adapt(block, args, kwargs, table)`` -> (args, kwargs) for reduced tokens:
            positions, resolutions.
        resize (Windows, optional): ``resize.do(block, size, grid)`` changes a windowed block for maps of another size,
            ``resize.undo(block)`` changes it back, both may be called more than once; ``resize.grid(block, size,
            keep_ratio)`` is the grid whose windows need no padding.
        stages (Sequence): Ranges of blocks over which a map keeps its size; none means one range over all. Tokens are
            reduced inside one range.
        knows_sizes (bool): Blocks call ``scaled_dot_product_attention``, so that reduced tokens can count by size.
            Defaults to True.
        size (Callable, optional): ``size(args, kwargs)`` -> (H, W) from what a block is called with, where the map has
            another size than the output of ``projection``.
        scopes (Sequence): Modules whose call may ask for hidden states (``output_hidden_states``), outermost first.
        taps (Sequence): Blocks whose output is always read from outside.
        wraps (Callable, optional): ``wraps(store)`` -> methods to replace on the trunk, by name.
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


_FINDERS: dict[str, Callable[[nn.Module], Layout | None]] = {}


def register_host(name: str, find: Callable[[nn.Module], Layout | None]) -> None:
    """Make a transformer known to :func:`apply`.

    Args:
        name: What messages call it; a name that exists is replaced.
        find: Module -> its Layout, or None where the module is not such a transformer. It is asked for the model and
            all modules inside, after the hosts registered later and before those registered earlier.

    Raises:
        TypeError: ``find`` cannot be called.

    Example:
        >>> from clusterplug.patch import Layout, register_host
        >>> def find(module):
        ...     if type(module).__name__ != 'MyTransformer':
        ...         return None
        ...     return Layout('mine', module, module.stages, module.stem, num_prefix=1)
        >>> register_host('mine', find)
    """
    if not callable(find):
        raise TypeError(f'find must be a function of a module that returns a Layout or None, got {find!r}')
    _FINDERS.pop(name, None)
    _FINDERS[name] = find


def hosts() -> tuple[str, ...]:
    """Names of the transformers that are known.

    Returns:
        tuple: Names, in the order of their registration.

    Example:
        >>> 'timm' in hosts()
        True
    """
    _load()
    return tuple(_FINDERS)


def find_layout(model: nn.Module) -> Layout:
    """Return the layout of the first known transformer in ``model``.

    Raises:
        ValueError: There is none.
    """
    _load()
    for module in model.modules():
        for find in reversed(_FINDERS.values()):
            layout = find(module)
            if layout is not None:
                return layout
    inside = sorted({type(module).__name__ for module in model.modules()})
    number = len(list(model.modules()))
    raise ValueError(
        f'{type(model).__name__} holds no transformer that clusterplug knows ({", ".join(_FINDERS)}). Looked in it and '
        f'all its {number} modules ({", ".join(inside[:12])}{", ..." if len(inside) > 12 else ""}); '
        f'describe its blocks with clusterplug.patch.register_host(name, find)'
    )


def _load() -> None:
    if 'timm' not in _FINDERS:
        from clusterplug.patch import (
            mm_vit,
            open_clip_vit,
            plain,
            sam,
            swin,
            timm_vit,
            torchvision_vit,
            transformers_vit,
        )

        earlier = dict(_FINDERS)
        _FINDERS.clear()
        for module in (plain, mm_vit, torchvision_vit, sam, swin, open_clip_vit, transformers_vit, timm_vit):
            _FINDERS[module.NAME] = module.find
        _FINDERS.update(earlier)


def comes_from(module: nn.Module, package: str) -> bool:
    """Tell whether the class of a module, or one it is derived from, is defined in a package."""
    return any(cls.__module__.split('.')[0] == package for cls in type(module).__mro__)


def class_names(module: nn.Module) -> set[str]:
    """Return the names of the class of a module and of all it is derived from."""
    return {cls.__name__ for cls in type(module).__mro__}


def first_norm(block: nn.Module) -> nn.Module | None:
    """Return the module that normalises the input of a block, by its usual names."""
    for name in ('norm1', 'layernorm_before', 'layer_norm1', 'ln_1', 'ln1'):
        module = getattr(block, name, None)
        if isinstance(module, nn.Module):
            return module
    return None
