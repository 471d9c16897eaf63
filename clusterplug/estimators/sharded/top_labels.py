# SPDX-License-Identifier: Apache-2.0
"""The several most similar centers of every row of a folder of shards, in files that a training run maps."""

import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from clusterplug.core.checks import check_choice, check_count
from clusterplug.core.files import mapped_array, whole_file, write_json
from clusterplug.core.outputs import locked_folder, read_marker
from clusterplug.estimators.sharded.nearest import ENGINES
from clusterplug.estimators.sharded.shards import ShardFolder

_FILES = ('labels.npy', 'similarities.npy')
_REPORT_SECONDS = 5.0
_CHECKPOINT_BLOCKS = 16


def label_shards(
    shards: ShardFolder,
    centers: np.ndarray,
    out: str | Path,
    num_labels: int = 8,
    engine: str = 'torch',
    device: str = 'cpu',
    block_rows: int = 8192,
    report: Callable[[str], None] = lambda line: None,
) -> dict:
    """Write the ``num_labels`` centers of highest cosine of every row; go on where a killed run stopped.

    The result does not depend on kills. Memory: a block of rows against a block of centers, never rows x centers.

    Args:
        shards: The rows, with ``normalize=True``.
        centers: (K, D); each is scaled to length 1.
        out: Folder for ``labels.npy`` (N, l) int32, the best center first, ``similarities.npy`` (N, l) fp32 and
            ``centers.npy`` (K, D) fp32 of length 1, in the order of the shards' rows, and ``labels.json``.
        num_labels: l, at most K.
        engine: ``'torch'`` or ``'faiss'``: exact search, both.
        device: Of the torch engine.
        block_rows: Rows at once.
        report: Gets a line of progress now and then.

    Returns:
        ``num_rows``, ``num_clusters``, ``num_labels``, ``empty`` (clusters that are no row's first label) and
        ``mean_similarity`` (of each of the l labels).

    Raises:
        ValueError: More labels than centers, centers of another dimension, or ``out`` holds labels of other shards,
            centers or options.
        FolderInUse: If another run writes to ``out``.

    Source: An et al., "Multi-label Cluster Discrimination", ECCV 2024, arXiv 2407.17331, section 3.1 (the number of
    labels is fixed; a threshold on the similarity was worse there).

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(pathlib.Path(folder, 'a.npy'), np.array([[2.0, 0.1], [0.1, 3.0]]))
        ...     shards = ShardFolder(folder, normalize=True)
        ...     label_shards(shards, np.eye(2), pathlib.Path(folder, 'out'), 2)['empty']
        ...     np.load(pathlib.Path(folder, 'out', 'labels.npy')).tolist()
        0
        [[0, 1], [1, 0]]
    """
    centers = _unit(np.asarray(centers, dtype=np.float32))
    check_choice(engine, 'engine', ENGINES)
    num_labels = check_count(num_labels, 'num_labels', 1)
    check_count(block_rows, 'block_rows', 1)
    if num_labels > len(centers):
        raise ValueError(f'num_labels must be at most the number of clusters, {len(centers)}, got {num_labels}')
    if centers.ndim != 2 or centers.shape[1] != shards.dim:
        raise ValueError(f'centers must have shape (K, {shards.dim}), got {centers.shape}; cluster these shards first')
    if not shards.normalize:
        raise ValueError('shards must be read with normalize=True: labels are by cosine')
    out = Path(out)
    names = (*_FILES, *(f'.{name}.partial' for name in _FILES), 'centers.npy', 'labels.json')
    shards.refuse_targets([out / name for name in names])
    with locked_folder(out):
        return _label(shards, centers, out, num_labels, _search(engine, device, centers), block_rows, report)


def top_centers(points: np.ndarray, centers: np.ndarray, num_labels: int, device: str = 'cpu', block: int = 65536):
    """Return (n, l) int32 centers of highest product with each point, best first, and (n, l) fp32 products.

    Equal products are ordered by the number of the center where they are in different blocks of centers.

    Args:
        points: (n, D) fp32, rows of length 1.
        centers: (K, D) fp32, rows of length 1, K at least ``num_labels``.
        num_labels: l.
        device: Where products are taken.
        block: Centers at once.

    Example:
        >>> top_centers(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 1)[0].tolist()
        [[0], [1]]
    """
    x = torch.from_numpy(points).to(device)
    best = x.new_empty(len(x), 0)
    labels = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for start in range(0, len(centers), block):
        part = torch.from_numpy(centers[start : start + block]).to(device)
        values, found = (x @ part.T).topk(min(num_labels, len(part)), dim=1)
        best, labels = torch.cat([best, values], 1), torch.cat([labels, found + start], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :num_labels]
        best, labels = best.gather(1, order), labels.gather(1, order)
    return labels.to(torch.int32).cpu().numpy(), best.cpu().numpy()


def _search(engine: str, device: str, centers: np.ndarray) -> Callable:
    if engine == 'torch':
        return lambda points, number: top_centers(points, centers, number, device)
    try:
        faiss = importlib.import_module('faiss')
    except ImportError as error:
        raise ImportError("engine 'faiss' needs faiss; run: pip install faiss-cpu") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(centers.shape[1])
    index.add(centers)

    def search(points: np.ndarray, number: int):
        similarities, labels = index.search(points, number)
        return labels.astype(np.int32), similarities

    return search


def _label(shards, centers, out: Path, num_labels: int, search: Callable, block_rows: int, report) -> dict:
    state_path = out / 'labels.json'
    identity = {'shards': shards.describe(), 'num_labels': num_labels, 'block_rows': block_rows}
    identity |= {'num_clusters': len(centers), 'checksum': float(np.abs(centers).sum(dtype=np.float64))}
    identity |= {'corner': centers[:: max(1, len(centers) // 64), 0].tolist()}
    done, state = 0, {}
    foreign = [name for name in (*_FILES, 'centers.npy') if os.path.lexists(out / name)]
    if foreign and not state_path.exists():
        raise ValueError(
            f'{out} holds {", ".join(foreign)}, which no run of this tool has written; choose another output folder'
        )
    if state_path.exists():
        state = read_marker(state_path) or {}
        if state.get('identity') != json.loads(json.dumps(identity)):
            raise ValueError(
                f'{out} holds labels of other shards, centers or options, or a damaged {state_path.name}; '
                'choose another output folder'
            )
        if state.get('summary') is not None and all((out / name).is_file() for name in _FILES):
            report('already labeled; choose another output folder for another run')
            return state['summary']
        done = state.get('blocks', 0)
    partial = [out / f'.{name}.partial' for name in _FILES]
    if not done or not all(path.exists() for path in partial):
        done = 0
        write_json(state_path, {'identity': identity, 'blocks': 0})  # what lies here from now on is of this run
        for path, kind in zip(partial, (np.int32, np.float32), strict=True):
            mapped_array(path, kind, (len(shards), num_labels)).flush()
    labels, similarities = (np.lib.format.open_memmap(path, mode='r+') for path in partial)
    blocks, begin, clock = shards.blocks(block_rows), time.monotonic(), time.monotonic()
    for number in range(done, len(blocks)):
        block = blocks[number]
        rows = slice(block.first, block.first + block.stop - block.start)
        labels[rows], similarities[rows] = search(shards.read(block), num_labels)
        if (number + 1) % _CHECKPOINT_BLOCKS == 0:
            labels.flush()
            similarities.flush()
            write_json(state_path, {'identity': identity, 'blocks': number + 1})
        if time.monotonic() - clock > _REPORT_SECONDS:
            clock = time.monotonic()
            left = (len(blocks) - number - 1) * (clock - begin) / (number + 1 - done)
            report(f'labels: block {number + 1} of {len(blocks)}, {left:.0f} s to go')
    labels.flush()
    similarities.flush()
    summary = {
        'num_rows': len(shards),
        'num_clusters': len(centers),
        'num_labels': num_labels,
        'empty': int((np.bincount(labels[:, 0], minlength=len(centers)) == 0).sum()),
        'mean_similarity': similarities.mean(0, dtype=np.float64).tolist(),
    }
    with whole_file(out / 'centers.npy', 'wb') as file:
        np.save(file, centers)
    del labels, similarities
    for path, name in zip(partial, _FILES, strict=True):
        os.replace(path, out / name)
    write_json(state_path, {'identity': identity, 'blocks': len(blocks), 'summary': summary})
    return summary


def _unit(rows: np.ndarray) -> np.ndarray:
    if rows.ndim != 2:
        return rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(np.finfo(np.float32).tiny)
