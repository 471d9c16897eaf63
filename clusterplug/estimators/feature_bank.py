# SPDX-License-Identifier: Apache-2.0
"""A bank of features: one file a view, mapped into memory, and a list of what the rows are."""

import json
from pathlib import Path

import numpy as np

from clusterplug.core.files import write_json

__all__ = ['read_bank', 'write_view']

_LIST = 'bank.json'


def read_bank(folder: str | Path) -> dict[str, np.ndarray]:
    """Return the views of a bank by name: arrays (N, D_v) that stay in their files until rows are read.

    Any estimator takes one of them, and :class:`MultiViewClustering` and :class:`CoAssociation` all.

    Args:
        folder: What ``tools/embed.py`` wrote.

    Raises:
        FileNotFoundError: There is no bank.
        ValueError: A view is missing, or holds another number of rows than the bank says.
    """
    path = Path(folder) / _LIST
    if not path.is_file():
        raise FileNotFoundError(f'{folder} holds no {_LIST}; write a bank with tools/embed.py')
    content = json.loads(path.read_text(encoding='utf-8'))
    views = {}
    for name in content['views']:
        file = Path(folder) / f'{name}.npy'
        if not file.is_file():
            raise ValueError(f'{folder} lists the view {name} but holds no {file.name}; run tools/embed.py again')
        views[name] = np.load(file, mmap_mode='r')
        if views[name].ndim != 2 or len(views[name]) != len(content['rows']):
            raise ValueError(
                f'{file} has shape {views[name].shape}, the bank {len(content["rows"])} rows; run tools/embed.py again'
            )
    return views


def write_view(folder: str | Path, name: str, blocks, rows: list[str], dtype: str = 'float16') -> tuple[int, int]:
    """Write the blocks (B, D) of a view one after the other into a mapped file, and list it in the bank.

    The view is listed only when it is complete. Returns its shape.

    Raises:
        ValueError: The blocks hold another number of rows than ``rows``, or NaN or infinity (also by overflow of
            ``dtype``), or the bank is one of other rows.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LIST
    content = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {'views': [], 'rows': list(rows)}
    if content['rows'] != list(rows):
        raise ValueError(f'{folder} is a bank of other inputs; choose another folder')
    part, done, file = folder / f'{name}.npy.part', 0, None
    for block in blocks:
        block = np.asarray(block)
        if file is None:
            file = np.lib.format.open_memmap(part, mode='w+', dtype=dtype, shape=(len(rows), block.shape[1]))
        if done + len(block) > len(rows):
            raise ValueError(f'view {name} holds more rows than the {len(rows)} inputs')
        with np.errstate(over='ignore'):
            file[done : done + len(block)] = block
        if not np.isfinite(file[done : done + len(block)]).all():
            raise ValueError(f'view {name} holds NaN or infinity in {dtype}; check the extractor, or use float32')
        done += len(block)
    if done != len(rows) or file is None:
        raise ValueError(f'view {name} holds {done} rows for {len(rows)} inputs')
    shape = file.shape
    file.flush()
    del file
    part.replace(folder / f'{name}.npy')
    content['views'] = [*[each for each in content['views'] if each != name], name]
    write_json(path, content)
    return shape
