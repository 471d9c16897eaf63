# SPDX-License-Identifier: Apache-2.0
"""Sizes of FEC, and the settings that each task uses."""

from typing import NamedTuple

from clusterplug.core.checks import as_pair


class FECArch(NamedTuple):
    """Four (or another number of) stages; each field holds one value a stage.

    Attributes:
        blocks: Blocks.
        dims: Channels.
        mlp_ratios: Width of the MLP over the channels.
        heads: Clusterings side by side.
        head_dims: Channels of each.
        grid: Cells of centers, one number or (down, across).
        fold: Regions that are clustered on their own; that of a stage also holds for the pooling before it.
        layer_scale: First value of the factors of the branches, one number for all.
    """

    blocks: tuple[int, ...]
    dims: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    grid: tuple = (4, 4, 2, 2)
    fold: tuple = (1, 1, 1, 1)
    layer_scale: float = 1e-5


ARCHS = {
    'small': FECArch((3, 4, 5, 2), (32, 64, 196, 320), (8, 8, 4, 4), (4, 4, 8, 8), (24,) * 4),
    'base': FECArch((2, 2, 6, 2), (64, 128, 320, 512), (8, 8, 4, 4), (4, 4, 8, 8), (32,) * 4),
    'large': FECArch((4, 4, 12, 4), (64, 128, 320, 512), (8, 8, 4, 4), (6, 6, 12, 12), (32,) * 4),
}
# What the authors change for larger images: more centers, and for detection regions.
TASKS = {
    'classification': dict(grid=(4, 4, 2, 2), fold=(1, 1, 1, 1)),
    'segmentation': dict(grid=(10, 10, 5, 5), fold=(1, 1, 1, 1)),
    'detection': dict(grid=(7, 7, 7, 7), fold=(2, 2, 1, 1)),
}


def resolve_arch(arch: str | dict, task: str = 'classification') -> FECArch:
    """Return the sizes of an architecture.

    Args:
        arch: ``'small'``, ``'base'``, ``'large'``, or a dict with the fields of :class:`FECArch`; with a key ``type``
            it names one of the three, and the other keys replace values.
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``: grid and fold, where ``arch`` names none.

    Raises:
        TypeError: ``arch`` is neither str nor dict.
        ValueError: A name, a field or the number of stages is wrong.

    Example:
        >>> resolve_arch('small').dims
        (32, 64, 196, 320)
        >>> resolve_arch(dict(type='small', blocks=(1, 1, 1, 1)), 'segmentation').grid[0]
        (10, 10)
    """
    if task not in TASKS:
        raise ValueError(f'task must be one of {", ".join(TASKS)}, got {task!r}')
    if isinstance(arch, str):
        arch = dict(type=arch)
    if not isinstance(arch, dict):
        raise TypeError(f'arch must be one of {", ".join(ARCHS)} or a dict, got {type(arch).__name__}')
    own = dict(arch)
    name = own.pop('type', None)
    if name is not None and name not in ARCHS:
        raise ValueError(
            f'arch must be one of {", ".join(ARCHS)}, got {name!r}; pass a dict of {", ".join(FECArch._fields)} for '
            f'another size'
        )
    unknown = sorted(set(own) - set(FECArch._fields))
    if unknown:
        raise ValueError(f'arch has the fields {", ".join(FECArch._fields)}, got {", ".join(map(repr, unknown))}')
    base = {} if name is None else ARCHS[name]._asdict()
    if name is not None:
        base.update(TASKS[task])
    try:
        found = FECArch(**{**base, **own})
    except TypeError as error:
        raise ValueError(f'arch without a type needs blocks, dims, mlp_ratios, heads and head_dims: {error}') from error
    return _checked(found)


def _checked(arch: FECArch) -> FECArch:
    stages = len(arch.blocks)
    values = {}
    for field in FECArch._fields[:-1]:
        each = tuple(getattr(arch, field))
        if len(each) != stages or stages < 1:
            raise ValueError(
                f'arch must have {stages} values of {field}, one a stage (blocks has {stages}), got {each}'
            )
        values[field] = each
    for field in ('grid', 'fold'):
        values[field] = tuple(as_pair(each, field) for each in values[field])
    if min(values['blocks']) < 0 or sum(values['blocks']) < 1:
        raise ValueError(f'blocks must be 0 or more, and not all 0, got {values["blocks"]}')
    return FECArch(**values, layer_scale=float(arch.layer_scale))
