# SPDX-License-Identifier: Apache-2.0
"""A bank of features: one file a view, mapped into memory, and a list of what the rows are."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from clusterplug.core.files import mapped_array, write_json

__all__ = ['is_current', 'read_bank', 'write_view']

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
    content = _read(path)
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


def write_view(
    folder: str | Path,
    name: str,
    blocks,
    rows: list[str],
    dtype: str = 'float16',
    made_of: dict | None = None,
    unreadable: dict[str, str] | None = None,
) -> tuple[int, int]:
    """Write the blocks (B, D) of a view one after the other into a mapped file, and list it in the bank.

    The view is listed only when it is complete. Returns its shape.

    Args:
        folder: Of the bank.
        name: Of the view and its file.
        blocks: Arrays (B, D), together one row for each of ``rows``.
        rows: Names of the rows, the same in all views.
        dtype: Type of the file.
        made_of: Plain values that :func:`is_current` compares later.
        unreadable: Inputs that have no row, with the reason.

    Raises:
        ValueError: The blocks hold another number of rows than ``rows``, or NaN or infinity (also by overflow of
            ``dtype``), or the bank is one of other rows, or ``name`` names no file, or one that is not of the bank.
        OSError: A full disk, no permission.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not name or name != Path(name).name or not name.isprintable() or name.startswith('.'):
        raise ValueError(f'the name of a view must be the name of a file, without a folder, got {name!r}')
    path, target = folder / _LIST, folder / f'{name}.npy'
    content: dict[str, Any] = _read(path) if path.is_file() else {'views': [], 'rows': list(rows)}
    if content['rows'] != list(rows):
        raise ValueError(f'{folder} is a bank of other inputs; choose another folder')
    if os.path.lexists(target) and name not in (*content['views'], content.get('pending')):
        raise ValueError(f'{target} is not of this bank; move it, or choose another name for the view')
    part, done, file = folder / f'.{name}.npy.partial', 0, None
    for block in blocks:
        block = np.asarray(block)
        if file is None:
            file = mapped_array(part, dtype, (len(rows), block.shape[1]))
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
    # Between these lines the file may be of other settings than the list says, so it is not listed there.
    content['views'] = [each for each in content['views'] if each != name]
    content['made_of'] = {each: value for each, value in content.get('made_of', {}).items() if each != name}
    write_json(path, {**content, 'pending': name})
    part.replace(target)
    content['views'].append(name)
    content['made_of'][name] = made_of or {}
    content['unreadable'] = unreadable or content.get('unreadable', {})
    content.pop('pending', None)
    write_json(path, content)
    return shape


def is_current(folder: str | Path, name: str, made_of: dict) -> bool:
    """Return whether a bank holds a view, complete and made of the same.

    Args:
        folder: Of the bank.
        name: Of the view.
        made_of: As :func:`write_view` got it.

    Raises:
        ValueError: The list of the bank is damaged.
    """
    path = Path(folder) / _LIST
    if not path.is_file() or not (Path(folder) / f'{name}.npy').is_file():
        return False
    content = _read(path)
    return name in content['views'] and content.get('made_of', {}).get(name) == json.loads(json.dumps(made_of))


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(content['rows'], list) and isinstance(content['views'], list):
            return content
        reason = 'it has no lists of views and rows'
    except (ValueError, KeyError, TypeError) as error:
        reason = f'{type(error).__name__}: {error}'
    raise ValueError(f'{path} is damaged or not the list of a bank ({reason}); choose another folder')
