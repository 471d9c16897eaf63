# SPDX-License-Identifier: Apache-2.0
"""Clustering of shards: exactness, resume after a kill, several processes, bad input."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clusterplug
from clusterplug.core.outputs import LOCK, FolderInUse, locked_folder
from clusterplug.estimators.sharded import ShardedOptions, ShardFolder, cluster_shards, group
from clusterplug.estimators.sharded.ordered_sum import Node, OrderedSum, layout
from clusterplug.functional.kmeans import kmeans
from clusterplug.testing.distributed import run_gloo

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


@pytest.mark.parametrize('dtype', ['float16', 'float64', 'int8'])
def test_raw_files(tmp_path, dtype):
    x = (np.random.default_rng(0).normal(size=(50, 4)) * 10).astype(dtype)
    x.tofile(tmp_path / 'a.bin')
    x[:9].tofile(tmp_path / 'b.memmap')
    (tmp_path / 'c.raw').touch()
    shards = ShardFolder(tmp_path, dim=4, dtype=dtype)
    assert shards.rows == [50, 9, 0]
    blocks = [shards.read(block) for block in shards.blocks(20)]
    np.testing.assert_array_equal(np.concatenate(blocks), np.concatenate([x, x[:9]]).astype(np.float32))


@pytest.mark.parametrize('form', ['fixed', 'list', 'columns'])
def test_parquet(tmp_path, form):
    arrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    if form == 'columns':
        table = arrow.table({f'x{i}': x[:, i] for i in range(4)})
    else:
        kind = arrow.list_(arrow.float32(), 4) if form == 'fixed' else arrow.list_(arrow.float32())
        table = arrow.table({'id': np.arange(50), 'vector': arrow.array(x.tolist(), kind)})
    parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=15)
    shards = ShardFolder(tmp_path)
    assert (shards.rows, shards.dim) == ([50], 4)
    np.testing.assert_array_equal(np.concatenate([shards.read(block) for block in shards.blocks(11)]), x)
    np.testing.assert_array_equal(shards.take(np.array([3, 14, 15, 49])), x[[3, 14, 15, 49]])
    if form != 'columns':
        with pytest.raises(ValueError, match='list column'):
            ShardFolder(tmp_path, column='id')
    (tmp_path / 'a.parquet').write_bytes((tmp_path / 'a.parquet').read_bytes()[:-20])
    with pytest.raises(ValueError, match='cut off'):
        ShardFolder(tmp_path)


def test_parquet_without_pyarrow_names_the_command(tmp_path, monkeypatch):
    (tmp_path / 'a.parquet').write_bytes(b'PAR1')
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(ImportError, match='pip install pyarrow'):
        ShardFolder(tmp_path)


def test_faiss_missing_names_the_command(tmp_path, monkeypatch):
    write_shards(tmp_path / 'data')
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(ImportError, match='pip install faiss-cpu'):
        cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options(engine='faiss'))


def test_bad_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match='not a folder'):
        ShardFolder(tmp_path / 'nothing')
    with pytest.raises(FileNotFoundError, match='no shard'):
        ShardFolder(tmp_path)
    np.save(tmp_path / 'a.npy', np.zeros((9, 4), np.float32))
    np.save(tmp_path / 'b.npy', np.zeros((9, 5), np.float32))
    with pytest.raises(ValueError, match=r'b\.npy has dimension 5, but .*a\.npy says 4'):
        ShardFolder(tmp_path)
    whole = (tmp_path / 'a.npy').read_bytes()
    for cut in (whole[:-7], whole[:50], b''):
        (tmp_path / 'b.npy').write_bytes(cut)
        with pytest.raises(ValueError, match=r'b\.npy is cut off'):
            ShardFolder(tmp_path)
    for wrong in (np.zeros(9), np.zeros((2, 2, 2)), np.zeros((3, 4), complex), np.array([['a']])):
        np.save(tmp_path / 'b.npy', wrong)
        with pytest.raises(ValueError, match='real numbers'):
            ShardFolder(tmp_path)
    (tmp_path / 'b.npy').unlink()
    (tmp_path / 'c.bin').write_bytes(bytes(30))
    with pytest.raises(ValueError, match='--dim'):
        ShardFolder(tmp_path)
    with pytest.raises(ValueError, match=r'c\.bin is cut off'):
        ShardFolder(tmp_path, dim=4)


def test_nan_and_overflow_name_shard_and_row(tmp_path):
    x = write_shards(tmp_path / 'data', sizes=(100, 100)).astype(np.float64)
    for value, words in ((np.nan, 'NaN or infinity'), (-np.inf, 'NaN or infinity'), (-1e39, 'numbers beyond fp32')):
        x[137, 2] = value
        np.save(tmp_path / 'data' / 'part1.npy', x[100:])
        with pytest.raises(ValueError, match=rf'part1\.npy holds {words}.* in row 37'):
            cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / words, options(sample_rows=5, seed=1))
        shutil.rmtree(tmp_path / words)


def test_too_few_rows_other_run_and_bad_options(tmp_path, capsys):
    write_shards(tmp_path / 'data', sizes=(4,))
    with pytest.raises(ValueError, match='number of rows, 4, got 5'):
        cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options())
    tool = load_tool()
    assert tool.main([str(tmp_path / 'data'), str(tmp_path / 'out'), '--num-clusters=5']) == 1
    assert 'number of rows, 4' in capsys.readouterr().err
    write_shards(tmp_path / 'data', sizes=(50,))
    cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options())
    with pytest.raises(ValueError, match='other num_clusters'):
        cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options(num_clusters=3))
    write_shards(tmp_path / 'data', sizes=(50, 3))
    with pytest.raises(ValueError, match='other shards'):
        cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options())
    for change, words in (
        ({'num_clusters': 0}, 'num_clusters'), ({'algorithm': 'dbscan'}, 'lloyd'), ({'engine': 'cuml'}, 'engine'),
        ({'tol': -1.0}, 'tol'), ({'sample_rows': 2}, 'sample_rows'), ({'block_rows': 0}, 'block_rows'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            options(**change)


def test_tool_prints_progress_and_writes_the_summary(tmp_path, capsys):
    write_shards(tmp_path / 'data')
    arguments = [str(tmp_path / 'data'), str(tmp_path / 'out'), '--num-clusters=5', '--sample-rows=100']
    assert load_tool().main(arguments) == 0
    printed = capsys.readouterr()
    assert '502 rows of dimension 6' in printed.err
    assert 'pass 1: inertia' in printed.err
    assert 'inertia' in printed.out
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['num_rows'] == 502
    assert summary['iterations'] == len(summary['history'])


def test_rewritten_shards_are_another_run(tmp_path):
    x = write_shards(tmp_path / 'data', sizes=(60, 50))
    cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options())
    path = tmp_path / 'data' / 'part1.npy'
    before = path.stat()
    np.save(path, x[60:][::-1])  # the same name, shape, size and, below, the same time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r'other shards; choose another output folder$'):
        cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options())


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


def test_targets_among_the_shards_are_refused(tmp_path):
    data = tmp_path / 'data'
    write_shards(data, sizes=(40, 30))
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    link, linked = tmp_path / 'link', tmp_path / 'linked'
    link.symlink_to(data)
    linked.mkdir()
    (linked / 'labels').symlink_to(data)
    single = tmp_path / 'single'
    single.mkdir()
    (single / 'centers.npy').symlink_to(data / 'part0.npy')
    for out in (data, data / 'out', link, linked, single):
        with pytest.raises(ValueError, match='which is only read; nothing was written') as error:
            cluster_shards(ShardFolder(data), out, options())
        assert 'delete' not in str(error.value)
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


@pytest.mark.parametrize('name', ['centers.npy', 'summary.json', 'labels/part0.npy.npy', 'checkpoint.npz'])
def test_files_of_other_origin_stay(tmp_path, name):
    write_shards(tmp_path / 'data', sizes=(40,))
    foreign = tmp_path / 'out' / name
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b'mine')
    with pytest.raises(ValueError, match=str(Path(name).name)):
        cluster_shards(ShardFolder(tmp_path / 'data'), tmp_path / 'out', options())
    assert foreign.read_bytes() == b'mine'


def test_one_run_in_a_folder_and_no_leftovers(tmp_path):
    write_shards(tmp_path / 'data')
    out = tmp_path / 'out'
    with locked_folder(out), pytest.raises(FolderInUse, match='being written by another process'):
        cluster_shards(ShardFolder(tmp_path / 'data'), out, options())
    (out / '.checkpoint.rank7.npz.elsewhere.1.0123456789abcdef.part').write_bytes(b'half')
    cluster_shards(ShardFolder(tmp_path / 'data'), out, options())
    assert not list(out.rglob('*.part'))


def test_tool_says_in_one_line_what_cannot_be_done(tmp_path, capsys):
    write_shards(tmp_path / 'data', sizes=(40,))
    (tmp_path / 'file').write_text('here')
    for arguments, words in (
        ([tmp_path / 'data', tmp_path / 'file', '--num-clusters=2'], 'is a file'),
        ([tmp_path / 'data', tmp_path / 'file' / 'out', '--num-clusters=2'], 'file'),
        ([tmp_path / 'none', tmp_path / 'out', '--num-clusters=2'], 'not a folder'),
        ([tmp_path / 'data', tmp_path / 'out', '--num-clusters=2', '--tol=nan'], 'tol must be'),
    ):
        assert load_tool().main([str(each) for each in arguments]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert [line for line in lines if line.startswith('error: ')] == lines[-1:]
        assert words in lines[-1]


def test_ranks_exchange_bytes_without_code():
    value = {'rows': np.arange(3), 'pair': ({'a': 1.5}, None, [np.float64(2), 'text'])}
    again = group._unpack(group._pack(value))
    assert again['rows'].tolist() == [0, 1, 2]
    assert again['pair'] == ({'a': 1.5}, None, [2.0, 'text'])
    with pytest.raises((TypeError, ValueError)):
        group._pack({'code': print})


def test_every_option_says_what_it_does_and_its_default(capsys):
    with pytest.raises(SystemExit):
        load_tool().parse_arguments(['--help'])
    text = ' '.join(capsys.readouterr().out.split('options:')[1].split())
    for part in text.split(' --')[2:]:
        assert 'default' in part, part
