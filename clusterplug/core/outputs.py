# SPDX-License-Identifier: Apache-2.0
"""Output folders: never inside the source, never two writers at once, never taken for what other settings made."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clusterplug.core.files import write_json

LOCK = '.clusterplug.lock'


class SourceOverwritten(ValueError):
    """A target whose real path is, or lies in, the data that is read."""


class FolderInUse(RuntimeError):
    """Another process writes to the output folder."""


def refuse_source_targets(
    sources: str | os.PathLike | Iterable[str | os.PathLike], targets: Iterable[str | os.PathLike]
) -> None:
    """Raise if a file that will be written is a file that is read, or lies in a folder that is read.

    Real paths are compared, each target's for itself: a folder of the output may be a link into the source although
    the output folder itself is elsewhere. Call it before the first byte is written, with every target.

    Args:
        sources: Files or folders that are only read.
        targets: Files or folders that will be created or replaced; they need not exist.

    Raises:
        SourceOverwritten: With the target, where it really is and the source it lies in.

    Example:
        >>> refuse_source_targets('/data/kitti', ['/data/out/infos.pkl'])
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    real_sources = [(source, os.path.realpath(source)) for source in sources]
    for target in targets:
        real = os.path.realpath(target)
        for source, real_source in real_sources:
            if real == real_source or _is_inside(real, real_source) or _same_file(real, real_source):
                via = '' if os.fspath(target) == real else f' (really {real})'
                raise SourceOverwritten(
                    f'{target}{via} lies in {source}, which is only read; nothing was written. Choose an output folder '
                    'outside of it, without links into it'
                )


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _same_file(first: str, second: str) -> bool:
    # Two hard links, or two mounts, of one file or folder.
    with suppress(OSError):
        return os.path.samefile(first, second)
    return False


@contextmanager
def locked_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Hold the one lock of an output folder; it goes with the process, also when that is killed.

    Args:
        folder: Created where it is missing.

    Raises:
        FolderInUse: If another process holds it, with that process's number.
        OSError: If the folder cannot be created or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked_folder(folder):
        ...     pass
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A link under this name is refused by the system: the number of the process would go into another file.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0) | getattr(os, 'O_NOFOLLOW', 0)
    descriptor = os.open(folder / LOCK, flags, 0o666)
    try:
        _take(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'{os.getpid()}\n'.encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: removing it would let two processes lock two files of one name


def _take(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows, which this package does not promise
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        holder = os.pread(descriptor, 32, 0).decode(errors='replace').strip() or 'unknown'
        raise FolderInUse(
            f'{folder} is being written by another process (number {holder}); wait for it, end it, or choose another '
            'folder'
        ) from None


def fingerprint(path: str | os.PathLike) -> dict[str, int]:
    """Return size in bytes and modification time in nanoseconds: what tells a replaced source from the old one."""
    found = os.stat(path)
    return {'size': found.st_size, 'modified': found.st_mtime_ns}


def read_marker(path: str | os.PathLike) -> dict | None:
    """Read a marker that :func:`write_marker` wrote; None if there is none, it is cut off or is not a marker."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_marker(path: str | os.PathLike, settings: dict) -> None:
    """Write the settings and fingerprints that an output was made of; write it last, when the output is complete."""
    write_json(path, settings)


def difference(found: dict, wanted: dict) -> str:
    """Say in one line which settings of a marker differ from the wanted ones, empty if none does.

    Example:
        >>> difference({'size': 224, 'fps': 3}, {'size': 128, 'fps': 3})
        'size: 224 there, 128 now'
    """
    wanted = json.loads(json.dumps(wanted))
    names = [*wanted, *(name for name in found if name not in wanted)]
    return '; '.join(
        f'{name}: {found.get(name)!r} there, {wanted.get(name)!r} now'
        for name in names
        if found.get(name) != wanted.get(name)
    )
