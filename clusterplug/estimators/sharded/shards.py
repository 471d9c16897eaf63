# SPDX-License-Identifier: Apache-2.0
"""A folder of .npy, raw or parquet files as one long matrix that is read in blocks."""

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clusterplug.core.checks import check_count
from clusterplug.core.outputs import fingerprint, refuse_source_targets

RAW_SUFFIXES = ('.bin', '.dat', '.raw', '.memmap')
SUFFIXES = ('.npy', '.parquet', *RAW_SUFFIXES)
# Content that tells a rewritten shard: 64 pieces of 4 KB, which costs no more than opening the file.
_PIECES, _PIECE_BYTES = 64, 4096


class Block(NamedTuple):
    """Rows ``start`` to ``stop`` of one shard; ``first`` is the number of its first row in the whole matrix."""

    shard: int
    start: int
    stop: int
    first: int


class ShardFolder:
    """The shards of a folder, ordered by name, with all headers checked.

    Args:
        folder: Folder with .npy files, parquet files, or raw files (.bin, .dat, .raw, .memmap).
        dim: D of raw files, which have no header; elsewhere optional and compared.
        dtype: Type of raw files.
        column: Column of parquet files that holds the vectors; None: the only list column, or all numeric columns.
        normalize: Scale every row to length 1 when it is read (zero rows stay zero).

    Raises:
        FileNotFoundError: If the folder does not exist or holds no shard.
        ValueError: If a shard cannot be read, is cut off, or has another dimension than the first.
        ImportError: If a parquet file is there and pyarrow is not installed.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(pathlib.Path(folder, 'a.npy'), np.ones((3, 2), np.float32))
        ...     np.save(pathlib.Path(folder, 'b.npy'), np.zeros((1, 2), np.float16))
        ...     shards = ShardFolder(folder)
        ...     len(shards), shards.dim, [shards.read(block).shape for block in shards.blocks(2)]
        (4, 2, [(2, 2), (1, 2), (1, 2)])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dim: int | None = None,
        dtype: str = 'float32',
        column: str | None = None,
        normalize: bool = False,
    ):
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f'{folder} is not a folder; pass the folder that holds the shards')
        self.folder = folder
        self.paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
        if not self.paths:
            raise FileNotFoundError(f'{folder} holds no shard; shards end in {", ".join(SUFFIXES)}')
        self.normalize = normalize
        self._readers = [_open(path, dim, dtype, column) for path in self.paths]
        self.dim = self._readers[0].shape[1] if dim is None else dim
        for path, reader in zip(self.paths, self._readers):
            if reader.shape[1] != self.dim:
                raise ValueError(
                    f'{path} has dimension {reader.shape[1]}, but '
                    f'{self.paths[0] if dim is None else "dim"} says {self.dim}; remove it from the folder'
                )
        self.rows = [reader.shape[0] for reader in self._readers]
        self.offsets = np.concatenate([[0], np.cumsum(self.rows)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def blocks(self, num_rows: int) -> list[Block]:
        """Return the blocks of at most ``num_rows`` rows, in order; no block spans two shards."""
        return [
            Block(shard, start, min(start + num_rows, rows), int(self.offsets[shard]) + start)
            for shard, rows in enumerate(self.rows)
            for start in range(0, rows, num_rows)
        ]

    def read(self, block: Block) -> np.ndarray:
        """Return the rows of ``block`` in fp32, (n, D), in memory of their own.

        Raises:
            ValueError: If a row holds NaN or infinity, with shard and row.
        """
        with np.errstate(over='ignore'):  # what does not fit in fp32 becomes infinity, and is named below
            points = np.array(self._readers[block.shard][block.start : block.stop], dtype=np.float32)
        if not np.isfinite(points.sum(dtype=np.float64)):
            bad = np.flatnonzero(~np.isfinite(points).all(1))
            if len(bad):
                given = np.asarray(self._readers[block.shard][block.start + bad[0] : block.start + bad[0] + 1])
                where = f'row {block.start + bad[0]} ({len(bad)} such rows from {block.start} to {block.stop - 1})'
                if np.isfinite(given).all():
                    raise ValueError(
                        f'{self.paths[block.shard]} holds numbers beyond fp32 (3.4e38), the type of the clustering, in '
                        f'{where}; scale the data down'
                    )
                raise ValueError(
                    f'{self.paths[block.shard]} holds NaN or infinity in {where}; repair or remove the shard'
                )
        if self.normalize:
            points /= np.linalg.norm(points, axis=1, keepdims=True).clip(np.finfo(np.float32).tiny)
        return points

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with the numbers ``rows`` (ascending) of the whole matrix, in fp32."""
        shards = np.searchsorted(self.offsets, rows, 'right') - 1
        parts = []
        for shard, row in zip(shards.tolist(), rows.tolist()):
            start = row - int(self.offsets[shard])
            parts.append(self.read(Block(shard, start, start + 1, row)))
        return np.concatenate(parts)

    def refuse_targets(self, targets: list[Path]) -> None:
        """Raise if a file that will be written is really a shard, or lies in the folder of the shards."""
        refuse_source_targets(self.folder, targets)
        shards = {os.path.realpath(path): path for path in self.paths}
        for target in targets:
            if os.path.realpath(target) in shards:
                refuse_source_targets(shards[os.path.realpath(target)], [target])

    def describe(self) -> list[list]:
        """Return what must not change before a run goes on: of each shard name, rows, dimension, size and time, and a
        checksum of samples of its content."""
        return [
            [path.name, rows, self.dim, *fingerprint(path).values(), _checksum(path)]
            for path, rows in zip(self.paths, self.rows)
        ]


def _checksum(path: Path) -> str:
    """Return a checksum of pieces spread over the file, its beginning and its end among them."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        last = max(path.stat().st_size - _PIECE_BYTES, 0)
        for position in sorted({last * i // (_PIECES - 1) for i in range(_PIECES)}):
            file.seek(position)
            digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def _open(path: Path, dim: int | None, dtype: str, column: str | None) -> Any:
    if path.suffix == '.parquet':
        return _Parquet(path, column)
    if path.suffix == '.npy':
        try:
            array = np.load(path, mmap_mode='r', allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f'{path} is cut off or not an .npy file ({error}); write it again') from error
    else:
        array = _open_raw(path, dim, dtype)
    if array.ndim != 2 or not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f'{path} must hold real numbers of shape (rows, dimension), got {array.dtype} {array.shape}')
    return array


def _open_raw(path: Path, dim: int | None, dtype: str) -> np.ndarray:
    if dim is None:
        raise ValueError(f'{path} has no header; say how many numbers a row has (dim, --dim)')
    dim = check_count(dim, 'dim', 1)
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise ValueError(f"dtype must be a type of NumPy such as 'float32', got {dtype!r}; correct --dtype") from None
    if kind.kind not in 'fiu':
        raise ValueError(f'dtype must be a type of real numbers, got {dtype!r}; correct --dtype')
    size = path.stat().st_size
    if size % (dim * kind.itemsize):
        raise ValueError(
            f'{path} is cut off or has another type: {size} bytes are not a multiple of {dim} x {kind.itemsize} '
            f'(dim x bytes of {kind}); write it again or correct --dim and --dtype'
        )
    if size == 0:
        return np.empty((0, dim), kind)
    return np.memmap(path, dtype=kind, mode='r').reshape(-1, dim)


class _Parquet:
    """Rows of a parquet file by slices; the row group in use stays in memory."""

    def __init__(self, path: Path, column: str | None):
        try:
            parquet = importlib.import_module('pyarrow.parquet')
        except ImportError as error:
            raise ImportError(f'{path} needs pyarrow; run: pip install pyarrow') from error
        try:
            self.file = parquet.ParquetFile(path)
        except Exception as error:  # pyarrow raises classes of its own for a bad footer
            raise ValueError(f'{path} is cut off or not a parquet file ({error}); write it again') from error
        self.path, self.column = path, column
        self.columns = self._columns(column)
        groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(groups)]).astype(int)
        self.loaded, self.rows = -1, np.empty((0, 0), np.float32)
        dim = self._group(0).shape[1] if groups else 0
        self.shape = (int(self.starts[-1]), dim)

    def _columns(self, column: str | None) -> list[str]:
        schema = self.file.schema_arrow
        kinds = importlib.import_module('pyarrow').types
        lists = [f.name for f in schema if kinds.is_list(f.type) or kinds.is_fixed_size_list(f.type)]
        numbers = [f.name for f in schema if kinds.is_floating(f.type) or kinds.is_integer(f.type)]
        if column is not None and column not in lists:
            raise ValueError(f'column must be a list column of {self.path}, got {column!r}; there are {lists}')
        chosen = [column] if column is not None else lists[:1] if len(lists) == 1 else numbers if not lists else []
        if not chosen:
            raise ValueError(
                f'{self.path} has {len(lists)} list columns {lists}; name the one to use (column, --column)'
            )
        return chosen

    def _group(self, number: int) -> np.ndarray:
        if number != self.loaded:
            table = self.file.read_row_group(number, columns=self.columns)
            if len(self.columns) == 1 and table.num_rows and table[self.columns[0]].type.num_fields == 1:
                rows = [np.asarray(row, dtype=np.float32) for row in table[self.columns[0]].to_pylist()]
                if len({row.shape for row in rows}) != 1:
                    raise ValueError(f'{self.path} holds vectors of different lengths or nulls in row group {number}')
                self.rows = np.stack(rows)
            else:
                columns = [table[name].to_numpy() for name in self.columns]
                self.rows = np.stack(columns, 1).astype(np.float32)
            self.loaded = number
        return self.rows

    def __getitem__(self, part: slice) -> np.ndarray:
        first = int(np.searchsorted(self.starts, part.start, 'right')) - 1
        pieces = []
        for group in range(first, len(self.starts) - 1):
            low, high = int(self.starts[group]), int(self.starts[group + 1])
            if low >= part.stop:
                break
            pieces.append(self._group(group)[max(part.start - low, 0) : min(part.stop, high) - low])
        return np.concatenate(pieces)
