# SPDX-License-Identifier: Apache-2.0
"""What is finished of a KITTI preparation, kept as JSON: plain values and arrays of numbers or strings, never code."""

import json
import os
from pathlib import Path

import numpy as np

from clusterplug.core.files import write_bytes
from clusterplug.core.outputs import fingerprint

_ARRAY = '__array__'


def save_part(path: Path, infos: list[dict], reduced: dict[str, Path]) -> None:
    """Keep infos of a few frames with size and time of their reduced point files, by frame."""
    content = dict(reduced={frame: fingerprint(file) for frame, file in reduced.items()}, infos=_encode(infos))
    if path.is_symlink():
        path.unlink()
    write_bytes(path, json.dumps(content).encode())


def load_part(path: Path, reduced: dict[str, Path] | None = None) -> list[dict] | None:
    """Infos of a part; None if there is none, it is damaged, or a reduced point file is not the one it was made with.

    Example:
        >>> load_part(Path('/no/such/part.json')) is None
        True
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        infos = [_decode(info) for info in content['infos']]
        same = reduced is None or content['reduced'] == {frame: fingerprint(file) for frame, file in reduced.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return infos if same else None


def _encode(value):
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in 'biufU':
            raise TypeError(f'an array of numbers or strings can be kept, got {array.dtype}')
        return {_ARRAY: array.dtype.str, 'shape': array.shape, 'data': array.ravel().tolist()}
    if isinstance(value, dict):
        return {key: _encode(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _decode(value):
    if isinstance(value, dict) and _ARRAY in value:
        dtype = np.dtype(value[_ARRAY])
        if dtype.kind not in 'biufU':
            raise ValueError(f'an array of numbers or strings was kept, got {dtype}')
        return np.array(value['data'], dtype=dtype).reshape(value['shape'])
    if isinstance(value, dict):
        return {key: _decode(each) for key, each in value.items()}
    return [_decode(each) for each in value] if isinstance(value, list) else value
