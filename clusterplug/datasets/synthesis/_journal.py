# SPDX-License-Identifier: Apache-2.0
"""Answers of a generator, one JSON line each, added before anything is made of them."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from clusterplug.core.files import append_line, whole_file
from clusterplug.core.outputs import difference

JOURNAL = 'journal.jsonl'
_HEAD = b'{"settings": '
_SECONDS_BETWEEN_SYNCS = 1.0


class Journal:
    """Answers by the key of their question, in memory, and in a file where a folder is given.

    A killed process loses the calls that were under way and no answer: a line is handed to the system as soon as the
    answer is checked. A line that was cut off is dropped when the journal is opened again.

    Args:
        folder: Holds the file; None keeps the answers in memory.
        settings: What the answers depend on; a journal of other settings is refused.

    Raises:
        ValueError: The journal has other settings, or the file is something else.
    """

    def __init__(self, folder: Path | None, settings: dict):
        self._answers: dict[str, dict] = {}
        self._file, self._lock, self._synced = None, threading.Lock(), time.monotonic()
        if folder is not None:
            self._open(folder / JOURNAL, settings)

    def _open(self, path: Path, settings: dict) -> None:
        content = path.read_bytes() if path.exists() else b''
        entries, found, cut = [], None, bool(content) and not content.endswith(b'\n')
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict) or not {'settings', 'call'} & set(entry):
                    raise ValueError('not an entry')
            except ValueError:
                cut = True
                continue
            if 'settings' in entry:
                found = entry['settings'] if found is None else found
            else:
                entries.append(entry)
        if content and found is None and (entries or not _HEAD.startswith(content[: len(_HEAD)])):
            raise ValueError(f'{path} is not a journal of a tree; choose another folder')
        settings = json.loads(json.dumps(settings))
        if found is not None and found != settings:
            raise ValueError(
                f'{path.parent} holds a tree of other settings: {difference(found, settings)}; choose another folder, '
                'or the same settings'
            )
        if found is None or cut:
            with whole_file(path, encoding='utf-8') as file:
                file.writelines(_line(entry) for entry in [{'settings': settings}, *entries])
        self._answers = {entry['call']: entry for entry in entries}
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, 'O_CLOEXEC', 0))

    def get(self, key: str) -> dict | None:
        """The entry of a question, or None."""
        with self._lock:
            return self._answers.get(key)

    def entries(self) -> list[dict]:
        """All entries."""
        with self._lock:
            return list(self._answers.values())

    def add(self, key: str, **entry) -> dict:
        """Keep an entry; returns it as it is read back, so that a run that went on has the same objects.

        Raises:
            TypeError: The answer is nothing that JSON can hold, and there is a file.
        """
        entry = {'call': key, **entry}
        line = None
        if self._file is not None:
            try:
                line = _line(entry)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f'samples must be plain values (texts, numbers, lists, dicts with text keys) to be kept in a '
                    f'folder: {error}; return such values, or pass folder=None'
                ) from error
            entry = json.loads(line)
        with self._lock:
            if line is not None:
                append_line(self._path, line.encode('utf-8', 'surrogateescape'))
                if time.monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
                    os.fsync(self._file)
                    self._synced = time.monotonic()
            self._answers[key] = entry
        return entry

    def close(self) -> None:
        """Make sure that all is on the disk."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


def _line(entry: dict) -> str:
    return json.dumps(entry, allow_nan=False) + '\n'
