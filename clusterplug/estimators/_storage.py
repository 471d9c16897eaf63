"""Files that are whole or absent: written beside their place, flushed, then renamed."""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary file in the folder of ``path`` and rename it: a kill leaves the old file or none.

    Args:
        path: The file to replace; its folder must exist.
        write: Gets the open binary file.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(pathlib.Path(folder, 'a.bin'), lambda file: file.write(b'whole'))
        ...     pathlib.Path(folder, 'a.bin').read_bytes()
        b'whole'
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray], header: dict) -> None:
    """Write arrays and a header of plain values into one .npz file, atomically and without pickle."""
    if '__header__' in arrays:
        raise ValueError("'__header__' is the name of the header; rename that array")
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    write_atomically(path, lambda file: np.savez(file, __header__=text, **arrays))


def load_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read what :func:`save_arrays` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut off or was not written by :func:`save_arrays`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop('__header__').tobytes())
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is cut off or was not saved by clusterplug ({error}); save it again') from error
    return arrays, header
