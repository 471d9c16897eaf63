# SPDX-License-Identifier: Apache-2.0
"""cluster_embeddings: kinds of shards, bad ones, folders in use or of other origin, messages."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from _shards import load_tool, options, write_shards

from clusterplug.core.outputs import FolderInUse, locked_folder
from clusterplug.estimators.sharded import ShardFolder, cluster_shards


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


def test_every_option_says_what_it_does_and_its_default(capsys):
    with pytest.raises(SystemExit):
        load_tool().parse_arguments(['--help'])
    text = ' '.join(capsys.readouterr().out.split('options:')[1].split())
    for part in text.split(' --')[2:]:
        assert 'default' in part, part
