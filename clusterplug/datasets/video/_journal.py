# SPDX-License-Identifier: Apache-2.0
"""What the files of a folder were made of, one line each, added as they are made."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from clusterplug.core.files import append_line, whole_file

JOURNAL = '.prepared_videos.jsonl'


class Journal:
    """Records of the files below a folder; hold the folder's lock.

    A line is added when a file is begun and when it is complete, so nothing is lost with a killed process: of a file
    that was begun only, it is known that it was made here and is not complete. Lines that are cut off are ignored.

    Args:
        folder: The folder.

    Raises:
        OSError: The journal cannot be read or written.
    """

    def __init__(self, folder: Path):
        self._folder, self._path, self._records = folder, folder / JOURNAL, {}
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                name, record = json.loads(line)
            except (ValueError, TypeError):
                continue
            if isinstance(name, str) and isinstance(record, dict):
                self._records[name] = record
            elif isinstance(name, str):
                self._records.pop(name, None)
        if len(lines) > len(self._records):  # once a run, so that it does not grow with every one
            with whole_file(self._path, encoding='utf-8') as file:
                file.writelines(_line(name, record) for name, record in self._records.items())

    def state(self, name: str, record: dict | None) -> str:
        """Return the state of a file.

        Args:
            name: Path below the folder.
            record: What it would be made of now.

        Returns:
            ``'done'``: made of the same and complete; ``'foreign'``: there, but not made here; else ``'left'``.
        """
        try:
            size = os.stat(self._folder / name).st_size
        except (OSError, ValueError):
            return 'left'
        if name not in self._records:
            return 'foreign'
        return 'done' if record is not None and self._records[name] == {**record, 'made': size} else 'left'

    def begin(self, names: Iterable[str]) -> None:
        """Note that files will be made."""
        self._add(_line(name, {}) for name in names)

    def finish(self, name: str, record: dict) -> None:
        """Note that a file is complete."""
        self._add([_line(name, record)])

    def give_up(self, name: str) -> None:
        """Note that a file could not be made: what somebody puts in its place was not made here."""
        if not os.path.lexists(self._folder / name):
            self._add([_line(name, None)])

    def _add(self, lines: Iterable[str]) -> None:
        append_line(self._path, ''.join(lines).encode())


def _line(name: str, record: dict | None) -> str:
    return json.dumps([name, record]) + '\n'
