# SPDX-License-Identifier: Apache-2.0
"""The one writer of files: a file appears complete or not at all, and never somewhere else than asked."""

import errno
import io
import json
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

PART = '.part'
_HEADER = '__header__'
_REASONS: dict[int | None, str] = {
    errno.ENOSPC: 'the disk is full; make room and run the same command again',
    errno.EDQUOT: 'the disk quota is used up; make room and run the same command again',
    errno.EACCES: 'no permission to write; choose another folder or change its permissions',
    errno.EFBIG: 'File too large for `ulimit -f` or the file system; raise the limit',
    errno.EROFS: 'the file system is read-only; choose another folder',
}


@contextmanager
def whole_file(path: str | os.PathLike, mode: str = 'w', **options) -> Iterator[IO]:
    """Like ``open(path, mode)`` for writing, but ``path`` changes only when everything has been written.

    The permissions of a file that is replaced are kept; a new file gets those of ``open`` (the umask's). A link stays
    a link. Temporary files that processes of this machine left when they were killed are removed on the next write.

    Args:
        path: The file; its folder must exist.
        mode: ``'w'`` or ``'wb'``.
        **options: Further arguments of ``open``.

    Yields:
        A temporary file in the same folder, under a name that cannot be guessed.

    Raises:
        OSError: As ``open`` and ``write`` raise it (full disk, no permission), with the path, and what was there
            before is still there.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), 'checkpoint')
        >>> with whole_file(path) as file:
        ...     _ = file.write('complete')
        >>> path.read_text()
        'complete'
    """
    target = os.path.realpath(path)
    temporary = _temporary_name(target)
    problems: list[OSError] = []
    try:
        permissions = _permissions(target)
        with _opened(temporary, mode, problems, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # some file systems report a full disk only here
            if problems:
                raise problems[0]  # whoever wrote has kept it to himself
        if permissions is not None:
            os.chmod(temporary, permissions)
        os.replace(temporary, target)
        remove_leftovers([target])
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        # What writes may say something of its own (torch: "enforce fail, unexpected pos") where the disk was full.
        if problems and isinstance(error, Exception):
            raise _named(problems[0], target, 'it was not written, older files are untouched') from error
        # The caller's own errors inside the block (reading another file) keep their text.
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary, target):
            raise _named(error, target, 'it was not written, older files are untouched') from error
        raise


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a whole file as :func:`whole_file` does, and make its folder where that is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'wb') as file:
        file.write(content)


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write plain values as JSON in UTF-8, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=1) + '\n').encode('utf-8', 'surrogateescape'))


def save_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], header: dict) -> None:
    """Write arrays and a header of plain values into one .npz file, whole or not at all and without pickle.

    Raises:
        ValueError: If an array has the name that the header takes, or holds objects.
    """
    if _HEADER in arrays:
        raise ValueError(f'{_HEADER!r} is the name of the header; rename that array')
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise ValueError(f'arrays of numbers or strings can be saved, got objects in {objects}; convert them')
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    # np.savez takes names of arrays as arguments, and has arguments of its own: 'file', 'allow_pickle'
    with whole_file(path, 'wb') as file, zipfile.ZipFile(file, 'w') as archive:
        for name, array in {_HEADER: text, **arrays}.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def load_arrays(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict]:
    """Read what :func:`save_arrays` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut off or was not written by :func:`save_arrays`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except (KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is cut off or was not saved by clusterplug ({error}); save it again') from error
    return arrays, header


def append_line(path: str | os.PathLike, line: bytes) -> None:
    """Add a line to a file that one process writes, whole or not at all: a part of it is taken back.

    Args:
        path: The file; it is created where it is missing.
        line: With its end.

    Raises:
        OSError: As ``open`` and ``write`` raise it (full disk, no permission), with the path.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), 'journal')
        >>> append_line(path, b'one' + bytes([10]))
        >>> path.read_bytes()
        b'one\\n'
    """
    descriptor = None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0), 0o666)
        size = os.fstat(descriptor).st_size
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    except OSError as error:
        raise _named(error, os.fspath(path), 'the line was not added, what it holds is untouched') from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def mapped_array(path: str | os.PathLike, dtype: str | type, shape: tuple[int, ...]) -> np.memmap:
    """Create a .npy file that is written in place, with its room on the disk reserved.

    Without that, a disk that fills up later ends the process with a signal (SIGBUS) rather than an error. What lay
    under the name is replaced, and a link there is not followed.

    Args:
        path: The file, a temporary name: it is not complete until its owner has filled and renamed it.
        dtype: Of the array.
        shape: Of the array.

    Raises:
        OSError: If there is no room or no permission, with the path.

    Example:
        >>> import tempfile, pathlib
        >>> mapped_array(pathlib.Path(tempfile.mkdtemp(), '.a.partial'), 'int32', (3,)).shape
        (3,)
    """
    path = os.fspath(path)
    array: np.memmap | None = None
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        array = np.lib.format.open_memmap(path, mode='w+', dtype=dtype, shape=shape)
        if hasattr(os, 'posix_fallocate'):
            with open(path, 'r+b') as file:
                os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))
        return array
    except OSError as error:
        if array is not None and error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return array  # a file system that reserves nothing
        with suppress(OSError):
            os.unlink(path)
        raise _named(error, path, 'it was not written') from error


def _named(error: OSError, path: str, outcome: str) -> OSError:
    """The same error with the reason in words, the path and what became of the file."""
    return OSError(error.errno, f'{_REASONS.get(error.errno, error.strerror)}; {outcome}', path)


def _create_only(path, flags: int) -> int:
    """Create a file that was not there: a link that somebody put under the name is refused, not followed."""
    return os.open(path, flags | os.O_CREAT | os.O_EXCL | getattr(os, 'O_NOFOLLOW', 0), 0o666)


class _Noting(io.FileIO):
    """A file that remembers why a write failed."""

    def __init__(self, path: str, problems: list):
        super().__init__(path, 'w', opener=_create_only)
        self._problems = problems

    def write(self, content):
        """Write; an error is kept besides being raised."""
        try:
            return super().write(content)
        except OSError as error:
            self._problems.append(error)
            raise


def _opened(path: str, mode: str, problems: list, **options) -> IO:
    """Open a new file as ``open`` does."""
    if mode not in ('w', 'wb'):
        raise ValueError(f"mode must be 'w' or 'wb', got {mode!r}")
    file = io.BufferedWriter(_Noting(path, problems))
    return io.TextIOWrapper(file, **options) if mode == 'w' else file


def _permissions(target: str) -> int | None:
    with suppress(FileNotFoundError):
        return stat.S_IMODE(os.stat(target).st_mode)
    return None


def _cut(name: str) -> str:
    # A name of 255 bytes is the longest most file systems take, so a long one is cut.
    return os.fsdecode(os.fsencode(name)[:160])


def _temporary_name(target: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f'.{_cut(name)}.{_machine()}.{os.getpid()}.{secrets.token_hex(8)}{PART}')


def _machine() -> str:
    return re.sub(r'[^A-Za-z0-9_-]', '_', os.uname().nodename)[:40] if hasattr(os, 'uname') else 'local'


def remove_leftovers(targets: Iterable[str | os.PathLike]) -> None:
    """Remove temporary files of :func:`whole_file` whose process, on this machine, is gone.

    A process that is killed, or told to end while it removes its own, may leave one; :func:`whole_file` removes those
    of the same target with the next write. For whoever has ended such processes and writes no more.

    Args:
        targets: The files whose temporary files are meant; each folder is read once.

    Example:
        >>> remove_leftovers([])
    """
    names: dict[str, set[str]] = {}
    for target in targets:
        folder, name = os.path.split(os.path.realpath(target))
        names.setdefault(folder, set()).add(_cut(name))
    pattern = re.compile(rf'\.(.*)\.{re.escape(_machine())}\.(\d+)\.[0-9a-f]{{16}}{re.escape(PART)}', re.DOTALL)
    for folder, wanted in names.items():
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                found = pattern.fullmatch(entry.name)
                if found is None or found.group(1) not in wanted:
                    continue
                process = int(found.group(2))
                if process != os.getpid() and not _is_running(process):
                    with suppress(OSError):
                        os.unlink(entry.path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def read_rows(path: str | os.PathLike, first: int, last: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return rows ``first`` to ``last`` of a .npy file (floats in fp32) and its whole shape; no more is read."""
    array = np.load(path, mmap_mode='r', allow_pickle=False)
    kind = np.float32 if np.issubdtype(array.dtype, np.floating) else array.dtype
    return np.array(array[first:last], dtype=kind), array.shape
