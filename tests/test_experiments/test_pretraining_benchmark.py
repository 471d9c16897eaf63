# SPDX-License-Identifier: Apache-2.0
"""Tables of benchmarks/pretraining.py: what is not measured is called so, pairs are compared as pairs."""

import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet3d')
sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from _pretraining_images import METHODS, image_lines
from _pretraining_scans import few_labels, scan_lines


def test_images_by_hand():
    runs = [dict(knn=40.0, linear=50.0, kmeans=20.0, rank=3.0), dict(knn=42.0, linear=50.0, kmeans=24.0, rank=5.0)]
    lines = image_lines({('long-tailed', 'SwAV'): runs})
    assert '| SwAV, 48 epochs | 41.0 ± 1.4 | 50.0 ± 0.0 | 22.0 ± 2.8 | 4.0 ± 1.4 | 2 |' in lines
    assert sum('not measured' in line for line in lines) == 2 * len(METHODS) - 1


def test_scans_by_hand():
    pairs = [dict(found=dict(scratch=dict(miou=a), pretrained=dict(miou=b))) for a, b in ((0.30, 0.31), (0.32, 0.35))]
    lines = scan_lines({(1, 5): pairs, (1, 20): pairs[:1], (2, 5): []})
    assert lines[2:] == [
        '| 1, 5 | 2 | 31.0 | 33.0 | +2.0 | -10.7 to +14.7 |',
        '| 1, 20 | 1 | 30.0 | 31.0 | +1.0 | one pair |',
        '| 2, 5 | 0 | not measured | not measured | | |',
    ]


def test_a_seed_draws_its_scans(tmp_path):
    configs = [few_labels(tmp_path, tmp_path / 'run', 10, seed, 5, 50) for seed in (0, 0, 1)]
    chosen = [config.train_dataloader.dataset.indices for config in configs]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(set(each)) == 5 and max(each) < 140 for each in chosen)
    tested = configs[0].test_dataloader.dataset.indices
    assert len(set(tested)) == 50
    assert (tested[0], tested[-1]) == (0, 149)
