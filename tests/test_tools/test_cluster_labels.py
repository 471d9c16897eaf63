# SPDX-License-Identifier: Apache-2.0
"""tools/cluster_labels.py: the exact top labels, resumed after a kill, with both engines, and bad input."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import clusterplug
from clusterplug.estimators.sharded import ShardFolder, label_shards, top_centers, top_labels

ROOT = Path(clusterplug.__file__).parents[1]


def load_tool():
    spec = importlib.util.spec_from_file_location('cluster_labels', ROOT / 'tools' / 'cluster_labels.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, sizes=(130, 0, 71), dim=6, seed=0):
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(seed)
    kinds = draw.standard_normal((5, dim)) * 4
    parts = [kinds[draw.integers(0, 5, n)] + draw.standard_normal((n, dim)) for n in sizes]
    for number, part in enumerate(parts):
        np.save(folder / f'{number}.npy', part.astype(np.float32))
    return np.concatenate(parts).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize('engine', ['torch', 'faiss'])
def test_end_to_end_gives_the_nearest_centers(tmp_path, capsys, engine):
    pytest.importorskip('faiss') if engine == 'faiss' else None
    rows, out = write(tmp_path / 'in'), tmp_path / 'out'
    arguments = [str(tmp_path / 'in'), str(out), '--num-clusters', '12', '--num-labels', '3', '--engine', engine]
    assert load_tool().main([*arguments, '--block-rows', '50']) == 0
    labels, similar = np.load(out / 'labels.npy', mmap_mode='r'), np.load(out / 'similarities.npy')
    centers = np.load(out / 'centers.npy')
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-6)
    products = unit(rows) @ centers.T
    order = np.argsort(-products, axis=1, kind='stable')[:, :3]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, order)
    np.testing.assert_allclose(similar, np.take_along_axis(products, order, 1), atol=1e-5)
    assert '201 rows with 3 of 12 clusters each' in capsys.readouterr().out
    # done: the same command gives the same at once; other options are refused
    assert load_tool().main([*arguments, '--block-rows', '50']) == 0
    assert load_tool().main([*arguments[:-4], '--num-labels', '2', '--engine', engine, '--block-rows', '50']) == 1
    assert 'other shards, centers or options' in capsys.readouterr().err


def test_blocks_of_centers_change_nothing():
    draw = np.random.default_rng(1)
    points, centers = (unit(draw.standard_normal((n, 8))).astype(np.float32) for n in (40, 33))
    whole = top_centers(points, centers, 5)
    for block in (1, 4, 7, 32):
        found = top_centers(points, centers, 5, block=block)
        np.testing.assert_array_equal(found[0], whole[0])
        np.testing.assert_allclose(found[1], whole[1], rtol=1e-6)
    assert top_centers(points[:0], centers, 5)[0].shape == (0, 5)


def test_goes_on_after_a_kill(tmp_path, monkeypatch):
    rows = write(tmp_path / 'in', sizes=(300, 41))
    shards, centers = ShardFolder(tmp_path / 'in', normalize=True), unit(rows[:9])
    label_shards(shards, centers, tmp_path / 'whole', 4, block_rows=16)
    monkeypatch.setattr(top_labels, '_CHECKPOINT_BLOCKS', 3)
    calls = []
    plain = top_labels.top_centers

    def dies(points, *args):
        calls.append(len(points))
        if len(calls) == 11:
            raise KeyboardInterrupt
        return plain(points, *args)

    monkeypatch.setattr(top_labels, 'top_centers', dies)
    with pytest.raises(KeyboardInterrupt):
        label_shards(shards, centers, tmp_path / 'cut', 4, block_rows=16)
    assert not (tmp_path / 'cut' / 'labels.npy').exists()
    assert json.loads((tmp_path / 'cut' / 'labels.json').read_text())['blocks'] == 9
    label_shards(shards, centers, tmp_path / 'cut', 4, block_rows=16)
    assert len(calls) == 11 + 22 - 9  # 19 + 3 blocks, of which 9 were done
    for name in ('labels.npy', 'similarities.npy', 'centers.npy'):
        np.testing.assert_array_equal(np.load(tmp_path / 'cut' / name), np.load(tmp_path / 'whole' / name))
    assert not list((tmp_path / 'cut').glob('.*.partial'))


def test_centers_of_a_file_and_the_head_that_trains_on_the_labels(tmp_path):
    import torch

    from clusterplug.heads import MultiLabelClusterHead

    rows = write(tmp_path / 'in')
    np.save(tmp_path / 'centers.npy', rows[:20])
    arguments = [str(tmp_path / 'in'), str(tmp_path / 'out'), '--centers', str(tmp_path / 'centers.npy')]
    assert load_tool().main([*arguments, '--num-labels', '2']) == 0
    labels = np.load(tmp_path / 'out' / 'labels.npy', mmap_mode='r')
    assert labels[:20, 0].tolist() == list(range(20))
    head = MultiLabelClusterHead(20, 6, init_centers=str(tmp_path / 'out' / 'centers.npy'), sample_rate=1.0)
    x, known = torch.from_numpy(rows[:32]), torch.from_numpy(np.array(labels[:32]))
    assert head(x, known) < head(x, (known + 7) % 20)


def test_bad_input(tmp_path, capsys):
    write(tmp_path / 'in')
    arguments = [str(tmp_path / 'in'), str(tmp_path / 'out')]
    assert load_tool().main([*arguments, '--num-clusters', '4']) == 1
    assert 'num_labels must be at most num_clusters, 4, got 8' in capsys.readouterr().err
    np.save(tmp_path / 'centers.npy', np.ones((9, 5), np.float32))
    assert load_tool().main([*arguments, '--centers', str(tmp_path / 'centers.npy')]) == 1
    assert 'centers must have shape (K, 6)' in capsys.readouterr().err
    with pytest.raises(ValueError, match='normalize=True'):
        label_shards(ShardFolder(tmp_path / 'in'), np.eye(6), tmp_path / 'out', 2)
