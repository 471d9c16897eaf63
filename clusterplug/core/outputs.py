# SPDX-License-Identifier: Apache-2.0
"""Output folders: never inside the source, never two writers at once, never taken for what other settings made."""

import errno
import fnmatch
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from clusterplug.core.files import write_json

LOCK = '.clusterplug.lock'


class SourceOverwritten(ValueError):
    """A target whose real path is, or lies in, the data that is read."""


class FolderInUse(RuntimeError):
    """Another process writes to the output folder."""


class ForeignOutput(ValueError):
    """A file that would be replaced was not written by the tool that asks."""


def check_folder(path: str | os.PathLike, option: str) -> None:
    """Make an output folder, or say in one sentence why that cannot be.

    Raises:
        NotADirectoryError: If a file stands in its place, or in that of one of its parents.
        PermissionError: If it cannot be created or written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f'{option} must be a folder, got {path}, where a file stands in its place') from None
    except OSError as error:
        raise type(error)(f'{option} must be a folder that can be written to, got {path}: {error.strerror}') from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f'{option} must be a folder that can be written to, got {path}: no permission')


def check_output_file(
    path: str | os.PathLike, sources: Iterable[str | os.PathLike] = (), option: str = '--out'
) -> None:
    """Check a single file that a tool will write, before the work that leads to it, and make its folder.

    Args:
        path: The file.
        sources: Files and folders that are read.
        option: How the user named it, for messages.

    Raises:
        SourceOverwritten: If it is a source, or lies in one.
        IsADirectoryError: If it is a folder.
        OSError: If its folder cannot be created or written to.
    """
    refuse_source_targets(sources, [path])
    if os.path.isdir(path):
        raise IsADirectoryError(f'{option} must be a file, got the folder {path}')
    check_folder(os.path.dirname(os.path.realpath(path)), f'the folder of {option}')


@contextmanager
def output_folder(
    folder: str | os.PathLike,
    tool: str,
    *,
    files: Iterable[str] = (),
    sources: Iterable[str | os.PathLike] = (),
    settings: dict | None = None,
    keep: bool = False,
    lock: bool = True,
    option: str = '--out',
) -> Iterator[Path]:
    """Hold the output folder of a tool for a whole run: made, not in a source, locked, without what others wrote.

    A marker ``.TOOL.json`` lists what the tool wrote, with its settings and whether the run came to its end. Files
    that a finished run did not write again (a picture of a cluster that is no longer found) are removed, so that
    results of two runs never stand side by side.

    Args:
        folder: The folder.
        tool: Name of the tool.
        files: Names or patterns (``cluster_*.png``, ``points/*.npz``) of what it writes below the folder.
        sources: Files and folders that are read.
        settings: Plain values that the marker keeps.
        keep: Keep what earlier runs wrote: each run adds files of its own names.
        lock: False for a tool whose own steps hold the folder.
        option: How the user named the folder, for messages.

    Yields:
        The folder.

    Raises:
        SourceOverwritten: If the folder, or a link in it at the place of a file, leads into a source.
        ForeignOutput: If files of these names lie there that the tool did not write.
        FolderInUse: If another process holds the folder.
        OSError: If it cannot be created or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as out, output_folder(out, 'count', files=['count.json']) as folder:
        ...     write_json(folder / 'count.json', 3)
    """
    folder, files = Path(folder), list(files)
    marker = folder / f'.{tool}.json'
    sources = list(sources)
    there = [folder / name for name in _matches(folder, files)]
    refuse_source_targets(sources, [folder, folder / LOCK, marker, *there])
    check_folder(folder, option)
    with locked_folder(folder) if lock else nullcontext():
        before, known = _matches(folder, files), read_marker(marker) or {}
        # a run that was ended in the middle had checked the folder, and what it wrote is not listed yet
        listed = set(before) if known.get('finished') is False else set(known.get('files', ()))
        foreign = sorted(set(before) - listed)
        if foreign:
            more = f' and {len(foreign) - 3} more' if len(foreign) > 3 else ''
            raise ForeignOutput(
                f'{folder} holds {", ".join(foreign[:3])}{more}, not written by {tool}; nothing was changed. Choose '
                f'another folder ({option}), or move what is there'
            )
        about = {'tool': tool, 'settings': settings or {}}
        write_marker(marker, {**about, 'finished': False})
        try:
            yield folder
        except BaseException:
            if _matches(folder, files) == before:  # refused before anything was written
                write_marker(marker, known) if known else marker.unlink(missing_ok=True)
            raise
        found = _matches(folder, files)
        if not keep:
            for name in [name for name, state in found.items() if before.get(name) == state]:
                (folder / name).unlink()
                del found[name]
        kept = sorted({*found, *(listed if keep else ())})
        write_marker(marker, {**about, 'finished': True, 'files': kept})


def settings_of(arguments) -> dict[str, str]:
    """Return the options of a command as text, for the marker of its output.

    Args:
        arguments (argparse.Namespace): What the parser found.

    Example:
        >>> import argparse
        >>> settings_of(argparse.Namespace(seed=0, out=Path('x')))
        {'out': 'x', 'seed': '0'}
    """
    return {name: str(value) for name, value in sorted(vars(arguments).items())}


def _matches(folder: Path, patterns: list[str]) -> dict[str, tuple]:
    """Return what lies below the folder under one of the names, with what changes when it is replaced."""
    found = {}
    for below in sorted({os.path.dirname(pattern) for pattern in patterns}):
        names = [os.path.basename(pattern) for pattern in patterns if os.path.dirname(pattern) == below]
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / below) as entries:
            for entry in entries:
                if any(fnmatch.fnmatchcase(entry.name, name) or entry.name == name for name in names):
                    with suppress(FileNotFoundError):
                        state = os.stat(entry.path) if entry.is_file() else entry.stat(follow_symlinks=False)
                        found[os.path.join(below, entry.name)] = (state.st_ino, state.st_mtime_ns, state.st_size)
    return found


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
    check_folder(folder, 'the output folder')
    # A link under this name is refused by the system: the number of the process would go into another file.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0) | getattr(os, 'O_NOFOLLOW', 0)
    descriptor = os.open(folder / LOCK, flags, 0o666)
    try:
        _take(descriptor, folder)
        with suppress(OSError):  # a full disk: the lock holds, and the first file of the output will say it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f'{os.getpid()}\n'.encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: removing it would let two processes lock two files of one name


@contextmanager
def locked_file(path: str | os.PathLike, say: Callable[[str], None]) -> Iterator[None]:
    """Hold one file that several processes bring up to date, such as an index: a second one waits and says so.

    For readers that also write what is new: refusing them, as :func:`locked_folder` does, would refuse questions. Read
    the file inside, so that what another process has just written is not lost. Where nothing can be written, nothing
    is held.

    Args:
        path: The file; the lock is ``.NAME.lock`` beside it.
        say: Takes the line that tells of the wait.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked_file(Path(folder, 'index.pt'), print):
        ...     pass
    """
    path = Path(os.path.abspath(path))
    flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0) | getattr(os, 'O_NOFOLLOW', 0)
    try:
        descriptor = os.open(path.with_name(f'.{path.name}.lock'), flags, 0o666)
    except OSError:  # no folder or a read-only one: what is written there will say it
        yield
        return
    try:
        try:
            _take(descriptor, path)
        except FolderInUse:
            say(f'{path} is being written by another process; waiting for it')
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
