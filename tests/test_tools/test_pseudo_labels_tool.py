# SPDX-License-Identifier: Apache-2.0
"""pseudo_labels.py on the generated city: files that the data set reads, shares, the check, what is refused."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')
pytest.importorskip('open3d')

import torch
from _untrained_city import CONFIG, ROOT, write_untrained_city
from mmdet3d.registry import MODELS

from clusterplug.cli import load_config
from clusterplug.registry import DATASETS


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('pseudo_labels', ROOT / 'tools/pseudo_labels.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp('city')
    write_untrained_city(root, num_train=4, num_val=1, columns=128)
    return root


@pytest.fixture
def label(tool, city, tmp_path, capsys):
    data = [f'{split}_dataloader.dataset.data_root={city / "city"}' for split in ('train', 'val', 'test')]

    def call(*arguments, indices=(1,), checkpoint=None):
        given = [] if indices is None else [f'train_dataloader.dataset.indices={",".join(map(str, indices))},']
        code = tool.main([
            CONFIG, str(checkpoint or city / 'start.pth'), '--out', str(tmp_path / 'out'), *map(str, arguments),
            '--cfg-options', *data, *given,
        ])  # fmt: skip
        text = capsys.readouterr()
        return code, text.out, text.err, tmp_path / 'out'

    return call


def training_set(city, out, **changes):
    config = load_config(CONFIG, work_dir=str(out / 'reading'))
    dataset = dict(config.train_dataloader.dataset, data_root=str(city / 'city'), pipeline=config.test_pipeline)
    return DATASETS.build(dict(dataset, ann_file=str(out / 'infos.pkl'), **changes))


def true_labels(city):
    files = sorted(path for path in (city / 'city').glob('sequences/*/labels/*.label') if path.parts[-3] != '08')
    return [np.fromfile(path, '<u4') & 0xFFFF for path in files], files


@pytest.mark.slow
@pytest.mark.parametrize('options', [(), ('--strength', 0.2), ('--method', 'class-confidence')])
def test_the_data_set_reads_what_was_written(label, city, options):
    code, text, error, out = label('--share', 0.4, '--check', *options)
    assert code == 0, error
    dataset = training_set(city, out)
    summary = json.loads((out / 'pseudo_labels.json').read_text())
    table = np.full(260, 19)
    table[list(dataset.metainfo['seg_label_mapping'])] = list(dataset.metainfo['seg_label_mapping'].values())
    seen, known, right, points = 0, 0, 0, 0
    assert len(dataset) == 4
    for number in range(4):
        info = dataset.get_data_info(number)
        true = info['lidar_path'].replace('velodyne', 'labels').replace('.bin', '.label')
        classes = table[np.fromfile(true, '<u4') & 0xFFFF]
        labels = np.asarray(dataset[number]['data_samples'].gt_pts_seg.pts_semantic_mask)
        assert (info['pts_semantic_mask_path'] == true) == (number == 0)  # the labeled one, which keeps its file
        if number == 0:
            np.testing.assert_array_equal(labels, classes)
            continue
        points += len(labels)
        seen += (labels < 19).sum()
        known += ((labels < 19) & (classes < 19)).sum()
        right += ((labels == classes) & (classes < 19)).sum()
    assert abs(summary['share'] - 0.4) < 0.02
    assert seen == round(summary['share'] * points) == sum(summary['points'].values())
    assert sum(each['labels'] for each in summary['check']['classes'].values()) == known
    assert summary['check']['right'] == pytest.approx(right / known)
    assert f'ann_file={out / "infos.pkl"}' in text


@pytest.mark.slow
def test_labels_are_those_of_the_prediction(label, city, tool):
    from mmengine.dataset import pseudo_collate

    code, _, error, out = label('--method', 'confidence', '--threshold', 0)
    assert code == 0, error
    config = load_config(CONFIG, work_dir=str(out / 'reading'))
    model = MODELS.build(config.model)
    model.load_state_dict(torch.load(city / 'start.pth', weights_only=True)['state_dict'])
    dataset = training_set(city, out, test_mode=True)
    for number in (1, 2):  # scan 0 is the labeled one
        (found,) = model.eval().test_step(pseudo_collate([dataset[number]]))
        labels = found.eval_ann_info['pts_semantic_mask']
        np.testing.assert_array_equal(labels, found.pred_pts_seg.pts_semantic_mask.numpy())


def test_labeled_scans_are_listed_as_often_as_asked(tool):
    assert tool.repeats_of(None, 5, 95) == 1
    assert tool.repeats_of(0.5, 5, 95) == 19  # 95 of 190
    assert tool.repeats_of(0.25, 5, 95) == 6  # 30 of 125: the nearest to 31.7
    assert tool.repeats_of(0.01, 5, 95) == 1  # they have more as it is
    for share in (0, 1, -0.5, float('nan')):
        with pytest.raises(ValueError, match='--labeled-share must be between 0 and 1'):
            tool.repeats_of(share, 5, 95)


@pytest.mark.slow
def test_repeated_scans_are_in_the_data_set(label, city):
    code, _, error, out = label('--labeled-share', 0.5)
    assert code == 0, error
    dataset = training_set(city, out)
    paths = [dataset.get_data_info(number)['lidar_path'] for number in range(len(dataset))]
    assert len(paths) == 6  # one labeled scan three times, three others
    assert paths.count(paths[0]) == 3
    assert len(set(paths)) == 4
    assert json.loads((out / 'pseudo_labels.json').read_text())['repeats'] == 3


@pytest.mark.slow
def test_the_tool_runs_alone(city, tmp_path):
    """In a process of its own, where nothing has made the data sets of mmdet3d known before."""
    data = [f'{split}_dataloader.dataset.data_root={city / "city"}' for split in ('train', 'val', 'test')]
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/pseudo_labels.py'), str(CONFIG), str(city / 'start.pth'), '--out',
         str(tmp_path / 'out'), '--cfg-options', *data, 'train_dataloader.dataset.indices=1,'],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '3 scans' in done.stdout
    assert (tmp_path / 'out' / 'infos.pkl').is_file()


@pytest.mark.slow
def test_errors_are_one_sentence(label, tmp_path):
    for arguments, words, options in (
        ((), 'indices must say which scans', dict(indices=None)),
        ((), 'nothing is left to label', dict(indices=range(4))),
        (('--share', 0), 'share', {}),
        (('--labeled-share', 1), '--labeled-share must be', {}),
        (('--threshold', 0.9), 'of --method confidence', {}),
        ((), 'CHECKPOINT must be a file', dict(checkpoint=tmp_path / 'none.pth')),
    ):
        code, _, error, _ = label(*arguments, **options)
        assert code == 1
        assert error.splitlines()[-1].startswith('pseudo_labels: ')
        assert words in error
