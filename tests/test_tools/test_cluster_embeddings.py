# SPDX-License-Identifier: Apache-2.0
"""cluster_embeddings: equal to memory, whatever stops it and on any number of processes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from _shards import RESULTS, ROOT, TOOL, labels_of, load_tool, options, read_result, write_shards

from clusterplug.core.outputs import LOCK
from clusterplug.estimators.sharded import ShardFolder, cluster_shards, group
from clusterplug.estimators.sharded.ordered_sum import Node, OrderedSum, layout
from clusterplug.functional.kmeans import kmeans
from clusterplug.testing.distributed import run_gloo


@pytest.mark.parametrize('engine', ['torch', 'faiss'])
@pytest.mark.parametrize('offset', [0.0, 1000.0])
def test_exact_lloyd_equals_memory(tmp_path, engine, offset):
    if engine == 'faiss':
        pytest.importorskip('faiss')
    x = write_shards(tmp_path / 'data', offset=offset)
    shards = ShardFolder(tmp_path / 'data')
    summary = cluster_shards(shards, tmp_path / 'out', options(engine=engine, num_iters=60))
    centers = np.load(tmp_path / 'out' / 'centers.npy')
    labels = labels_of(tmp_path / 'out', tmp_path / 'data')
    assert summary['converged']
    # A fixed point of Lloyd's iteration: nearest centers, and centers that are means.
    distances = np.linalg.norm(x[:, None].astype(np.float64) - centers[None], axis=-1)
    np.testing.assert_array_equal(labels, distances.argmin(1))
    for k in range(5):
        np.testing.assert_allclose(centers[k], x[labels == k].mean(0, dtype=np.float64), rtol=1e-5, atol=1e-4)
    assert np.load(tmp_path / 'out' / 'counts.npy').tolist() == np.bincount(labels, minlength=5).tolist()
    assert summary['inertia'] == pytest.approx((distances.min(1) ** 2).sum(), rel=1e-4)
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in zip(summary['history'], summary['history'][1:]))
    # From the same place the form in memory does not move.
    again = kmeans(torch.from_numpy(x).double(), 5, init=torch.from_numpy(centers).double(), num_iters=5)
    assert again.labels.tolist() == labels.tolist()


def test_minibatch_and_kmedoids_reach_the_quality_of_memory(tmp_path):
    x = write_shards(tmp_path / 'data', sizes=(400, 500, 300))
    best = min(
        kmeans(torch.from_numpy(x), 5, generator=torch.Generator().manual_seed(seed)).inertia.item()
        for seed in range(5)
    )
    shards = ShardFolder(tmp_path / 'data')
    summary = cluster_shards(shards, tmp_path / 'mini', options('minibatch', sample_rows=300, tol=1e-4))
    assert summary['inertia'] < 1.1 * best
    summary = cluster_shards(shards, tmp_path / 'medoids', options('kmedoids', sample_rows=300))
    medoids = np.load(tmp_path / 'medoids' / 'medoids.npy')
    np.testing.assert_array_equal(np.load(tmp_path / 'medoids' / 'centers.npy'), x[medoids])
    distances = np.linalg.norm(x[:, None] - x[medoids][None], axis=-1)
    assert summary['inertia'] == pytest.approx(distances.min(1).sum(), rel=1e-5)
    assert summary['inertia'] == pytest.approx(min(summary['history']), rel=1e-9)
    centers = np.load(tmp_path / 'mini' / 'centers.npy')
    assert summary['inertia'] < 1.15 * np.linalg.norm(x[:, None] - centers[None], axis=-1).min(1).sum()


class Killed(Exception):
    """Stands for a kill at a given read."""


@pytest.mark.parametrize('algorithm', ['lloyd', 'minibatch', 'kmedoids'])
@pytest.mark.parametrize('every', [23, 50, 70])
def test_a_run_that_is_stopped_again_and_again_ends_the_same(tmp_path, monkeypatch, algorithm, every):
    write_shards(tmp_path / 'data')
    settings = options(algorithm, num_iters=4)
    cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'whole', settings)
    plain, reads, stops = ShardFolder.read, [0], 0

    def read(self, block):
        reads[0] += 1
        if reads[0] % every == 0 and block.stop - block.start > 1:
            raise Killed
        return plain(self, block)

    monkeypatch.setattr(ShardFolder, 'read', read)
    while True:
        reads[0] = 0
        try:
            cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'parts', settings)
            break
        except Killed:
            stops += 1
            assert stops < 200
    assert stops > 0
    assert read_result(tmp_path / 'parts') == read_result(tmp_path / 'whole')


KILL = """
import os, signal, sys
sys.argv[1:2], count = [], int(sys.argv[1])
from clusterplug.estimators.sharded.shards import ShardFolder
plain = ShardFolder.read
def read(self, block):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, block)
ShardFolder.read = read
import runpy
sys.argv[0] = 'tools/cluster_embeddings.py'
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_tool_goes_on_after_a_real_kill(tmp_path):
    write_shards(tmp_path / 'data')
    arguments = [
        str(tmp_path / 'data'), '--num-clusters=5', '--block-rows=16', '--checkpoint-blocks=3', '--sample-rows=60',
        '--num-iters=6', '--tol=0', '--threads=1',
    ]  # fmt: skip
    tool = load_tool()
    assert tool.main([arguments[0], str(tmp_path / 'whole'), *arguments[1:]]) == 0
    out = str(tmp_path / 'parts')
    killed = [sys.executable, '-c', KILL, '150', arguments[0], out, *arguments[1:]]
    done = subprocess.run(killed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / 'parts' / 'summary.json').exists()
    assert tool.main([arguments[0], out, *arguments[1:]]) == 0
    assert read_result(tmp_path / 'parts') == read_result(tmp_path / 'whole')


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    write_shards(tmp_path / 'data')
    first = cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options())
    monkeypatch.setattr(ShardFolder, 'read', lambda *_: pytest.fail('read a block'))
    assert cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options()) == first
    left = {path.name for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    assert left == {*RESULTS, LOCK, 'checkpoint.npz', *(f'part{i}.npy.npy' for i in range(5))}


def cluster_as_rank(rank, world_size, data, out, algorithm):
    torch.set_num_threads(1)
    return cluster_shards(ShardFolder(data), out, options(algorithm, num_iters=5))


@pytest.mark.parametrize(
    ('algorithm', 'world_size'),
    [('lloyd', 3), pytest.param('kmedoids', 2, marks=pytest.mark.slow)],
)
def test_processes_equal_one(tmp_path, algorithm, world_size):
    write_shards(tmp_path / 'data')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'one', options(algorithm, num_iters=5))
    torch.set_num_threads(threads)
    data, out = str(tmp_path / 'data'), str(tmp_path / 'many')
    summaries = run_gloo(cluster_as_rank, world_size, data, out, algorithm)
    assert all(summary == one for summary in summaries)
    assert read_result(tmp_path / 'many') == read_result(tmp_path / 'one')


def stop_with_nan(rank, world_size, data, out):
    try:
        cluster_shards(ShardFolder(data), out, options(sample_rows=5))
    except (ValueError, RuntimeError) as error:
        return str(error)


@pytest.mark.slow
def test_an_error_on_one_rank_stops_all(tmp_path):
    x = write_shards(tmp_path / 'data', sizes=(300, 300))
    x[590, 3] = np.nan
    np.save(tmp_path / 'data' / 'part1.npy', x[300:])
    first, second = run_gloo(stop_with_nan, 2, str(tmp_path / 'data'), str(tmp_path / 'out'))
    assert 'rank 1 stopped' in first
    assert 'row 290' in second


@pytest.mark.slow
def test_tool_under_torchrun(tmp_path):
    write_shards(tmp_path / 'data')
    base = ['--num-clusters=5', '--block-rows=16', '--sample-rows=60', '--num-iters=5', '--threads=1']
    assert load_tool().main([str(tmp_path / 'data'), str(tmp_path / 'one'), *base]) == 0
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(TOOL)]
    done = subprocess.run(
        [*launcher, str(tmp_path / 'data'), str(tmp_path / 'two'), *base], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / 'two') == read_result(tmp_path / 'one')


def test_ordered_sum_is_the_same_for_every_split():
    values = np.random.default_rng(1).normal(size=(37, 3)) * 10.0 ** np.arange(3)
    whole = OrderedSum()
    for index, value in enumerate(values):
        whole.add(Node(0, index, value))
    np.testing.assert_allclose(whole.total(), values.sum(0), rtol=1e-12)
    for cut in range(38):
        parts = [OrderedSum(), OrderedSum()]
        for index, value in enumerate(values):
            parts[index >= cut].add(Node(0, index, value))
        assert [node[:2] for node in parts[1].nodes] == layout(cut, 37)
        for node in parts[1].nodes:
            parts[0].add(node)
        assert parts[0].total().tobytes() == whole.total().tobytes()


def test_empty_clusters_move_to_the_farthest_rows(tmp_path):
    # All sampled rows are equal, so four of five first centers repeat and lose all their rows.
    (tmp_path / 'data').mkdir()
    x = np.zeros((60, 2), np.float32)
    x[50:] = np.arange(20).reshape(10, 2) * 10
    np.save(tmp_path / 'data' / 'a.npy', x)
    summary = cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options(sample_rows=5, num_iters=40))
    assert (np.load(tmp_path / 'out' / 'counts.npy') > 0).all()
    assert summary['converged']


def test_normalize(tmp_path):
    x = write_shards(tmp_path / 'data')
    shards = ShardFolder(tmp_path / 'data', normalize=True)
    rows = shards.take(np.array([0, 131, 500]))
    np.testing.assert_allclose(rows, x[[0, 131, 500]] / np.linalg.norm(x[[0, 131, 500]], axis=1, keepdims=True), 1e-6)


@pytest.mark.parametrize('algorithm', ['lloyd', 'minibatch'])
def test_a_finished_run_goes_on_with_more_passes(tmp_path, algorithm):
    write_shards(tmp_path / 'data')
    for passes in (2, 5):
        summary = cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'on', options(algorithm, num_iters=passes))
        assert summary['iterations'] == passes
    cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'whole', options(algorithm, num_iters=5))
    assert read_result(tmp_path / 'on') == read_result(tmp_path / 'whole')
    with pytest.raises(ValueError, match='num_iters must be at least 5'):
        cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'on', options(algorithm, num_iters=4))
    (tmp_path / 'on' / 'labels' / 'part0.npy.npy').unlink()
    cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'on', options(algorithm, num_iters=5))
    assert read_result(tmp_path / 'on') == read_result(tmp_path / 'whole')


def test_ranks_exchange_bytes_without_code():
    value = {'rows': np.arange(3), 'pair': ({'a': 1.5}, None, [np.float64(2), 'text'])}
    again = group._unpack(group._pack(value))
    assert again['rows'].tolist() == [0, 1, 2]
    assert again['pair'] == ({'a': 1.5}, None, [2.0, 'text'])
    with pytest.raises((TypeError, ValueError)):
        group._pack({'code': print})
