# SPDX-License-Identifier: Apache-2.0
"""Every block of docs/own_data.md, on a tiny data set with ids of its own; and numbers that do not agree."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from torch import nn

from clusterplug.hooks.label_check import label_faults
from clusterplug.losses import PointClusterLoss

ROOT = Path(__file__).resolve().parents[2]
IDS = (0, 1, 7, 1000)


def write_scans(folder, scans=2, points=1500):
    random = np.random.default_rng(0)
    for sequence in ('00', '01'):
        for kind in ('velodyne', 'labels'):
            (folder / 'sequences' / sequence / kind).mkdir(parents=True)
        for number in range(scans):
            position = random.uniform(-20, 20, (points, 4)).astype('f4')
            label = np.array(IDS, 'u4')[(position[:, 0] > 0).astype(int) + 2 * (position[:, 1] > 0)]
            base = folder / 'sequences' / sequence
            position.tofile(base / 'velodyne' / f'{number:06d}.bin')
            (label | np.uint32(5 << 16)).astype('u4').tofile(base / 'labels' / f'{number:06d}.label')


def blocks(language):
    """Blocks of the part on scans."""
    text = (ROOT / 'docs/own_data.md').read_text().partition('\n## Videos')[0]
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def run(line, folder, *more):
    command = [sys.executable if word == 'python' else word for word in shlex.split(line)]
    command = [str(ROOT / word) if word.startswith('tools/') else word for word in command]
    return subprocess.run([*command, *more], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_page_as_it_stands(tmp_path):
    write_scans(tmp_path / 'data/mine')
    (config,) = blocks('python')
    assert len(config.strip().splitlines()) <= 10
    (tmp_path / 'own.py').write_text(config)
    short = [
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0',
    ]
    short += [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]
    short += [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
    for line in ''.join(blocks('bash')).splitlines():
        line = line.replace('epoch_5', 'epoch_1')  # two iterations instead of five epochs
        done = run(line, tmp_path, *(short if 'prepare' not in line else []))
        assert done.returncode == 0, line + done.stdout[-2000:] + done.stderr[-3000:]
    assert all(f'| {name} ' in done.stdout for name in ('ground', 'tree', 'car'))
    wrong = config.replace('num_classes=3', 'num_classes=5')
    (tmp_path / 'own.py').write_text(wrong)
    done = run('python tools/train.py own.py --work-dir work_dirs/wrong', tmp_path, *short)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('train:')]
    assert 'has 3 classes (ground, tree, car), and model.decode_head has num_classes=5' in line


def test_raw_labels_become_classes(tmp_path):
    from clusterplug import compat
    from clusterplug.datasets.own_scans import OwnScansDataset

    compat.apply_all()
    labels = {1000: 'car', 1: 'ground', 8: 'ground', 3: None}
    options = dict(pipeline=[], lazy_init=True, metainfo=dict(classes=['of', 'a', 'base']), ignore_index=19)
    dataset = OwnScansDataset(labels, **options)
    assert dataset.metainfo['classes'] == ('car', 'ground')
    assert dataset.ignore_index == 2
    table = dataset.seg_label_mapping
    assert [int(table[raw]) for raw in (1000, 1, 8, 3, 0, 999)] == [0, 1, 1, 2, 2, 2]
    assert len(dataset.metainfo['palette']) == 2
    for bad in ({-1: 'a'}, {70000: 'a'}, {'1': 'a'}, {True: 'a'}, {1: None}):
        with pytest.raises(ValueError, match='labels must'):
            OwnScansDataset(bad, **options)


def model(num_classes=5, ignore_index=5, loss=None):
    whole, head = nn.Module(), nn.Module()
    head.num_classes, head.ignore_index = num_classes, ignore_index
    whole.decode_head = head
    if loss is not None:
        whole.clustering = nn.Module()
        whole.clustering.loss = PointClusterLoss(in_channels=4, num_clusters=2, embed_dims=4, **loss)
    return whole


def data(classes=5, ignore_index=5, mapping=None):
    names = [f'c{number}' for number in range(classes)]
    return SimpleNamespace(metainfo=dict(classes=names), ignore_index=ignore_index, seg_label_mapping=mapping)


@pytest.mark.parametrize(
    ('case', 'words'),
    [
        ((model(), data()), []),
        ((model(6, 5), data()), []),  # Cylinder3D: an output for what is ignored
        ((model(19, 19), data()), ['num_classes=19', 'ignore_index=19']),
        ((model(6, 6), data()), ['num_classes=6', 'ignore_index=6']),
        ((model(5, 255), data()), ['model.decode_head has ignore_index=255']),
        ((model(loss=dict(num_classes=5, ignore_index=5)), data()), []),
        ((model(loss=dict(num_classes=4, ignore_index=5)), data()), ['the clustering loss has num_classes=4']),
        ((model(loss=dict(num_classes=5, ignore_index=9)), data()), ['the clustering loss has 9']),
        ((model(), data(mapping={0: 0, 40: 5, 99: 7})), [r'maps to \[7\]']),
        ((model(), data(mapping=np.array([0, 4, 5, -1]))), [r'maps to \[-1\]']),
        ((model(), data(mapping=np.array([0, 4, 5]))), []),
        ((nn.Linear(2, 2), data()), []),
        ((model(), SimpleNamespace()), []),
    ],
)
def test_numbers_that_do_not_agree(case, words):
    faults = label_faults(*case)
    assert len(faults) == len(words)
    for fault, word in zip(faults, words):
        assert re.search(word, fault)


def test_weights_of_other_classes():
    whole = model()
    whole.decode_head.loss_decode = SimpleNamespace(class_weight=[1.0] * 19)
    (fault,) = label_faults(whole, data())
    assert '19 numbers in class_weight' in fault
    whole.decode_head.loss_decode.class_weight = [1.0] * 5
    assert label_faults(whole, data()) == []
