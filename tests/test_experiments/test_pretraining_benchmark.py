# SPDX-License-Identifier: Apache-2.0
"""Tables of benchmarks/pretraining.py: what is not measured is called so, pairs are compared as pairs."""

import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet3d')
sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from _pretraining_images import METHODS, configured, image_lines, wanted
from _pretraining_scans import few_labels, frozen_lines, probed, scan_lines


def test_images_by_hand():
    runs = [dict(knn=40.0, linear=50.0, kmeans=20.0, rank=3.0), dict(knn=42.0, linear=50.0, kmeans=24.0, rank=5.0)]
    lines = image_lines({('long-tailed', 'SwAV'): runs})
    assert '| SwAV, 48 epochs | 41.0 ± 1.4 | 50.0 ± 0.0 | 22.0 ± 2.8 | 4.0 ± 1.4 | 2 |' in lines
    assert sum('not measured' in line for line in lines) == len(wanted()) - 1 == 3 * len(METHODS) - 3


def test_random_batches_differ_in_nothing_else(tmp_path):
    names = 'G-SimCLR', 'SimCLR (G-SimCLR in random batches)'
    ours, random = (configured(name, 'balanced, longer', 0, tmp_path) for name in names)
    assert ours.train_dataloader.pop('batch_sampler').type == 'clusterplug.ClusterDisjointBatchSampler'
    assert random.train_dataloader.pop('sampler') == dict(type='DefaultSampler', shuffle=True)
    ours.train_dataloader.pop('sampler', None)
    assert [hook.type for hook in ours.custom_hooks if hook not in random.custom_hooks] == [
        'clusterplug.ClusterRefreshHook'
    ]
    ours.custom_hooks = random.custom_hooks
    assert ours.to_dict() == random.to_dict()
    assert ours.train_cfg.max_epochs == 120


def test_scans_by_hand():
    pairs = [
        dict(seed=seed, found=dict(scratch=dict(miou=a), pretrained=dict(miou=b)))
        for seed, (a, b) in enumerate(((0.30, 0.31), (0.32, 0.35)))
    ]
    lines = scan_lines({(1, 5): pairs, (1, 20): pairs[:1], (2, 5): []})
    assert lines[2:] == [
        '| 1, 5 | 2 | 31.0 | 33.0 | +2.0 | -10.7 to +14.7 |',
        '| 1, 20 | 1 | 30.0 | 31.0 | +1.0 | one pair |',
        '| 2, 5 | 0 | not measured | not measured | | |',
        '| all, mean of each pre-trained backbone | 2 | 31.0 | 33.0 | +2.0 | -10.7 to +14.7 |',
    ]
    lines = scan_lines(
        {(1, 5): pairs, (1, 20): [dict(pairs[0], found=dict(scratch=dict(miou=0.2), pretrained=dict(miou=0.23)))]}
    )
    assert lines[-1] == '| all, mean of each pre-trained backbone | 2 | 28.5 | 31.0 | +2.5 | -3.9 to +8.9 |'


def test_one_seed_in_two_cities_is_two_backbones():
    pair = dict(seed=0, found=dict(scratch=dict(miou=0.30), pretrained=dict(miou=0.32)))
    other = dict(seed=0, found=dict(scratch=dict(miou=0.40), pretrained=dict(miou=0.41)))
    lines = scan_lines({(1, 5): [pair], (2, 5): [other]})
    assert lines[-1] == '| all, mean of each pre-trained backbone | 2 | 35.0 | 36.5 | +1.5 | -4.9 to +7.9 |'


def test_frozen_features_by_hand():
    def probes(linear, near):
        return {'linear_probe/accuracy': linear, 'knn_probe/accuracy': near, 'linear_probe/class_mean': 5.0}

    found = [
        dict(found=dict(random=probes(40.0, 41.0), pretrained=probes(50.0, 42.0))),
        dict(found=dict(random=probes(42.0, 41.0), pretrained=probes(54.0, 41.0))),
    ]
    assert frozen_lines({1: found, 2: []})[2:] == [
        '| 1, linear probe | 2 | 41.0 | 52.0 | +11.0 | -1.7 to +23.7 |',
        '| 1, 20-NN | 2 | 41.0 | 41.5 | +0.5 | -5.9 to +6.9 |',
        '| 2, linear probe | 0 | not measured | not measured | | |',
        '| 2, 20-NN | 0 | not measured | not measured | | |',
    ]


def test_probes_see_other_streets(tmp_path):
    config = probed(tmp_path, tmp_path / 'run', 10, 0)
    chosen = config.test_dataloader.dataset.indices
    assert len(set(chosen)) == 20
    assert (chosen[0], chosen[-1]) == (0, 149)
    assert 'val' in config.test_dataloader.dataset.ann_file
    assert 'train' in config.train_dataloader.dataset.ann_file


def test_a_seed_draws_its_scans(tmp_path):
    configs = [few_labels(tmp_path, tmp_path / 'run', 10, seed, 5, 50) for seed in (0, 0, 1)]
    chosen = [config.train_dataloader.dataset.indices for config in configs]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(set(each)) == 5 and max(each) < 140 for each in chosen)
    tested = configs[0].test_dataloader.dataset.indices
    assert len(set(tested)) == 50
    assert (tested[0], tested[-1]) == (0, 149)
