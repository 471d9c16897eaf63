# SPDX-License-Identifier: Apache-2.0
"""Reading the files that captions come in, so that nothing is lost: text, csv, tsv, json, json lines, parquet.

Every error is a ValueError with the file, the line or entry, what is allowed and what came.
"""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# The field of a video and of its captions, under the names that data sets give them; the first that is there counts.
VIDEO_KEYS = ('video_id', 'video', 'image_id')
CAPTION_KEYS = ('caption', 'captions', 'sentence', 'sentences')
LIST_KEYS = ('annotations', 'sentences', 'data', 'rows')
SUFFIXES = ('.csv', '.tsv', '.json', '.jsonl', '.parquet')

_MARKS = (
    (b'\xef\xbb\xbf', 'utf-8-sig'),
    (b'\xff\xfe\x00\x00', 'utf-32'),
    (b'\x00\x00\xfe\xff', 'utf-32'),
    (b'\xff\xfe', 'utf-16'),
    (b'\xfe\xff', 'utf-16'),
)


class Entry(NamedTuple):
    """One row of a table: where it stands, and its fields by name."""

    where: str
    fields: dict


def existing(path: str | os.PathLike) -> Path:
    """Return the path of a file that is there."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no annotation file {path}; docs/centerclip.md tells where each data set has its own')
    return path


def read_text(path: str | os.PathLike) -> str:
    """Read a text file: UTF-8, or UTF-16 and UTF-32 with a byte order mark; lines end in ``\\n``.

    Raises:
        ValueError: The bytes are of another encoding, with the line; a guess would turn letters into others.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), 'utf-8')
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise ValueError(
            f'{path}, line {line} must be UTF-8 (or UTF-16 with a byte order mark), got the byte '
            f'0x{content[error.start]:02x}; convert it, for instance with: iconv -f latin1 -t utf-8'
        ) from error
    if '\0' in text:
        line = text[: text.index('\0')].count('\n') + 1
        raise ValueError(
            f'{path}, line {line} must be text, got a zero byte; UTF-16 is read where it starts with a byte order mark'
        )
    return text.replace('\r\n', '\n').replace('\r', '\n')


def read_json(path: str | os.PathLike) -> object:
    """Read a JSON file; a name that stands twice in one object is an error, not the loss of the first.

    Raises:
        ValueError: It is no JSON, or an object has a name twice.
    """
    return _parse_json(read_text(path), str(path))


def read_entries(path: Path) -> list[Entry] | dict:
    """Read the rows of a table, or the one object of a JSON file that holds no list of rows.

    Raises:
        ModuleNotFoundError: ``.parquet`` without pyarrow.
        ValueError: An unknown suffix, a row with too few or too many fields, rows that are no objects.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f'{path} must end in {", ".join(SUFFIXES)}, got {path.suffix or "no suffix"}')
    if suffix == '.csv':
        return list(csv_rows(path))
    if suffix == '.tsv':
        return list(tsv_rows(path))
    if suffix == '.parquet':
        return list(_parquet_rows(path))
    if suffix == '.jsonl':
        # not splitlines: JSON may hold U+2028 and its like as they are
        lines = [(number, line) for number, line in enumerate(read_text(path).split('\n'), 1) if line.strip()]
        where = [f'{path}, line {number}' for number, _ in lines]
        return _objects([_parse_json(line, place) for place, (_, line) in zip(where, lines)], where)
    content = read_json(path)
    if isinstance(content, dict):
        wrapped = next((key for key in LIST_KEYS if isinstance(content.get(key), list)), None)
        if wrapped is None:
            return content
        return _objects(content[wrapped], [f'{path}, {wrapped}[{i}]' for i in range(len(content[wrapped]))])
    if not isinstance(content, list):
        raise ValueError(f'{path} must hold a list of entries or an object, got {_kind(content)}')
    return _objects(content, [f'{path}, entry {i}' for i in range(len(content))])


def csv_rows(path: Path) -> Iterator[Entry]:
    """Rows of a csv with a head line; a field with a comma or a quote stands in quotes.

    Raises:
        ValueError: A row has more or fewer fields than the head line, a quote is not closed or closed within a field,
            or a quoted field runs over lines that look like rows themselves: a caption that opens with a quote would
            swallow the videos after it.
    """
    lines = read_text(path).split('\n')
    reader = csv.reader([f'{line}\n' for line in lines], strict=True)
    head, last = None, 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f'{path}, line {last + 1} must be a row of a csv, got {error}; a field that holds a quote or a comma '
                f'is written in quotes, with its own quotes doubled'
            ) from error
        if row is None:
            return
        first, last = last + 1, reader.line_num
        if not any(field.strip() for field in row) and len(row) < 2:
            continue
        if head is None:
            head = _head(row, path, first)
            continue
        if last > first:
            _refuse_swallowed_rows(path, lines, first, last, len(head))
        yield _row(path, first, head, row, 'a field with a comma is written in quotes')


def tsv_rows(path: Path) -> Iterator[Entry]:
    """Rows of a tsv with a head line: fields with tabs between, and quotes are letters as any other."""
    head = None
    for number, line in enumerate(read_text(path).split('\n'), 1):
        if not line.strip():
            continue
        row = line.split('\t')
        if head is None:
            head = _head(row, path, number)
        else:
            yield _row(path, number, head, row, 'a field holds no tab')


def field(entry: Entry, keys: tuple[str, ...], what: str) -> object:
    """Return the first of several fields that an entry has."""
    for key in keys:
        if key in entry.fields:
            return entry.fields[key]
    raise ValueError(f'{entry.where} must name {what}, got {sorted(map(str, entry.fields))}')


def video_name(value: object, where: str) -> str:
    """Return the id of a video: text or a whole number, not empty."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f'{where} must name a video by text or a whole number, got {value!r}')
    try:
        str(value).encode('utf-8', 'surrogateescape')  # as names of files that are no UTF-8 come
    except UnicodeEncodeError as error:
        raise ValueError(f'{where} must name a video by characters, got half of one ({value!a:.60})') from error
    return str(value).strip()


def caption_text(value: object, where: str) -> str:
    """Return a caption without spaces around it; it has a word and only characters that can be written."""
    if not isinstance(value, str):
        raise ValueError(f'{where} must hold captions as text or lists of texts, got {_kind(value)}')
    if not value.strip():
        raise ValueError(f'{where} is empty; remove it from the file')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'{where} must hold characters, got half of one ({value[error.start]!a})') from error
    return value.strip()


def _head(row: list[str], path: Path, line: int) -> list[str]:
    head = [name.strip() for name in row]
    twice = sorted({name for name in head if head.count(name) > 1})
    if twice:
        raise ValueError(f'{path}, line {line} must name each column once, got more than one {", ".join(twice)}')
    return head


def _row(path: Path, line: int, head: list[str], row: list[str], hint: str) -> Entry:
    where = f'{path}, line {line}'
    if len(row) != len(head):
        raise ValueError(f'{where} must have the {len(head)} fields {", ".join(head)}, got {len(row)}; {hint}')
    return Entry(where, dict(zip(head, row)))


def _refuse_swallowed_rows(path: Path, lines: list[str], first: int, last: int, fields: int) -> None:
    for number in range(first + 1, last + 1):
        parts = next(csv.reader([lines[number - 1]]), [])
        if len(parts) >= fields:
            raise ValueError(
                f'{path}, line {first} opens a quote that is closed in line {last}, and line {number} looks like a row '
                f'of its own; double the quotes of the caption and put it in quotes, or take its line breaks out'
            )


def _parse_json(text: str, where: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f'{where} must have each name once in an object, got more than one {twice!r}')
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{where} must hold JSON, got {error.msg} (line {error.lineno}, column {error.colno})'
        ) from error
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f'{where} must hold JSON, got {error}') from error  # a number of too many digits
    except RecursionError as error:
        raise ValueError(f'{where} must hold JSON of few levels, got too many') from error


def _objects(values: list, where: list[str]) -> list[Entry]:
    for value, place in zip(values, where):
        if not isinstance(value, dict):
            raise ValueError(f'{place} must be an object with a video and captions, got {_kind(value)}')
    return [Entry(place, value) for place, value in zip(where, values)]


def _parquet_rows(path: Path) -> Iterator[Entry]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'reading {path} needs: pip install pyarrow') from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name in VIDEO_KEYS + CAPTION_KEYS]
            for batch in file.iter_batches(1024, columns=names):
                for fields in batch.to_pylist():
                    yield Entry(f'{path}, row {number}', fields)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{path} must be a whole parquet file, got {str(error).splitlines()[0]}') from error


def _kind(value: object) -> str:
    names = {type(None): 'null', dict: 'an object', list: 'a list', str: f'the text {str(value)[:40]!r}'}
    return names.get(type(value), f'{value!r:.60}')
