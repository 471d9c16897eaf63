# SPDX-License-Identifier: Apache-2.0
"""Folders of shards, and what a run over them wrote."""

import importlib.util
from pathlib import Path

import numpy as np

import clusterplug
from clusterplug.estimators.sharded import ShardedOptions

ROOT = Path(clusterplug.__file__).parents[1]
TOOL = ROOT / 'tools' / 'cluster_embeddings.py'
RESULTS = ('centers.npy', 'counts.npy', 'summary.json')


def load_tool():
    spec = importlib.util.spec_from_file_location('cluster_embeddings', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_shards(folder, num_clusters=5, dim=6, sizes=(130, 7, 0, 301, 64), offset=0.0, seed=0):
    """Write shards of a mixture; return all rows."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    centers = 3 * generator.normal(size=(num_clusters, dim))
    parts = []
    for number, size in enumerate(sizes):
        rows = centers[generator.integers(num_clusters, size=size)] + generator.normal(size=(size, dim)) + offset
        parts.append(rows.astype(np.float32))
        np.save(folder / f'part{number}.npy', parts[-1])
    return np.concatenate(parts)


def read_result(out):
    """Everything that a run leaves, as bytes."""
    files = [out / name for name in (*RESULTS, 'medoids.npy')] + sorted((out / 'labels').iterdir())
    return {path.name: path.read_bytes() for path in files if path.exists()}


def labels_of(out, folder):
    return np.concatenate([np.load(out / 'labels' / f'{path.name}.npy') for path in sorted(folder.iterdir())])


def options(algorithm='lloyd', **changes):
    return ShardedOptions(**{
        'num_clusters': 5, 'algorithm': algorithm, 'block_rows': 16, 'checkpoint_blocks': 3, 'sample_rows': 60,
        'num_iters': 12, 'tol': 0.0, **changes,
    })  # fmt: skip
