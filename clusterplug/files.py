"""A file that appears complete or not at all."""

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


@contextmanager
def whole_file(path: str | os.PathLike, mode: str = 'w', **options) -> Iterator[IO]:
    """Like ``open(path, mode)`` for writing, but ``path`` changes only when everything has been written.

    Args:
        path (str | os.PathLike): The file; a link is followed, so that it stays a link.
        mode (str): ``'w'`` or ``'wb'``.
        **options: Further arguments of ``open``.

    Yields:
        IO: A temporary file in the same folder.

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
    temporary = f'{target}.{os.getpid()}.part'
    try:
        with builtins.open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # some file systems report a full disk only here
        os.replace(temporary, target)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(
                error.errno, f'{error.strerror}; it was not written, older files are untouched', target
            ) from error
        raise
