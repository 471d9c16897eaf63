# SPDX-License-Identifier: Apache-2.0
"""The address that :mod:`clusterplug.core.files` had in 0.1; import from there."""

import os
from collections.abc import Callable
from typing import IO

from clusterplug.core.files import load_arrays, save_arrays, whole_file

__all__ = ['load_arrays', 'save_arrays', 'write_atomically']


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` on a file that appears complete or not at all."""
    with whole_file(path, 'wb') as file:
        write(file)
