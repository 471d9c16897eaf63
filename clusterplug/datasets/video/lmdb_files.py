# SPDX-License-Identifier: Apache-2.0
"""LMDBs of video files: opened once in a process, closed with their last user, enlarged as they are filled."""

import contextlib
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

_ROOM = 1 << 30  # of the map beyond the files: addresses, no bytes on the disk
_OPEN = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


class Environment:
    """An LMDB that is open for reading, shared by the stores and threads of a process; closed with the last of them."""

    def __init__(self, path: Path):
        lmdb = _lmdb('videos in an LMDB need: pip install lmdb')
        folder = path.is_dir()
        try:
            self.environment = lmdb.open(
                str(path), readonly=True, lock=False, readahead=False, subdir=folder, max_spare_txns=8
            )
        except lmdb.Error as error:
            raise ValueError(f'{path} must be a whole LMDB, got {error}; copy or write it again') from error
        weakref.finalize(self, self.environment.close)
        file = path / 'data.mdb' if folder else path
        there, needed = (
            file.stat().st_size,
            (self.environment.info()['last_pgno'] + 1) * self.environment.stat()['psize'],
        )
        if there < needed:
            # Reading behind the end of a mapped file ends the process, whatever Python would do about it.
            raise ValueError(
                f'{path} must be a whole LMDB of {needed:,} bytes, got {there:,}: it is cut off; copy or write it again'
            )


def open_environment(path: Path) -> Environment:
    """Return the open LMDB of a path; lmdb opens a path once in a process, and not across forks.

    Raises:
        ModuleNotFoundError: lmdb is missing.
        ValueError: It is damaged.
    """
    key = (os.getpid(), str(path.resolve()))
    with _LOCK:
        found = _OPEN.get(key)
        if found is None:
            found = _OPEN[key] = Environment(path)
        return found


def _close_inherited() -> None:
    """Close what a forked worker got from its parent: lmdb would not open the same path again, and must not use it."""
    global _LOCK
    for found in list(_OPEN.values()):
        found.environment.close()
    _OPEN.clear()
    _LOCK = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_inherited)


def write_lmdb(path: str | os.PathLike, files: Sequence[str | os.PathLike]) -> int:
    """Write video files into an LMDB, by their names.

    Args:
        path: Folder of the LMDB, or a file ``.lmdb`` that is there; what it holds already stays, except files of the
            same names, which are replaced.
        files: Video files.

    Returns:
        The number of files written.

    Raises:
        ModuleNotFoundError: lmdb is missing.
        OSError: A file cannot be read, or the LMDB cannot be written; files before it are in.
        ValueError: Two files have the same name; the LMDB is open in this process.
    """
    lmdb = _lmdb('writing an LMDB needs: pip install lmdb')
    path, files = Path(path), [Path(file) for file in files]
    if len({file.name for file in files}) < len(files):
        raise ValueError('files must have different names, got some twice; put them under names of their own')
    subdir = not path.is_file()
    there = path / 'data.mdb' if subdir else path
    size = (there.stat().st_size if there.is_file() else 0) + 2 * sum(file.stat().st_size for file in files) + _ROOM
    if (os.getpid(), str(path.resolve())) in _OPEN:
        raise ValueError(f'{path} is open in this process; close the stores that read it first (store.close())')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(lmdb.open(str(path), map_size=size, subdir=subdir)) as environment:
            for file in files:
                _put(lmdb, environment, os.fsencode(file.name), file.read_bytes())
    except lmdb.Error as error:
        raise OSError(f'{path} could not be written: {error}') from error
    return len(files)


def _put(lmdb, environment, name: bytes, content: bytes) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(name, content)
            return
        except lmdb.MapFullError:
            # many small files: each takes whole pages. The map is an address range, not a file size.
            environment.set_mapsize(2 * environment.info()['map_size'])


def _lmdb(advice: str):
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(advice) from error
    return lmdb
