# SPDX-License-Identifier: Apache-2.0
"""benchmarks/_kitti_weights.py: its precision, its matches and its folds, by hand."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet3d')
sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from _kitti_weights import FOLDS, FRAMES, NEAR_CARS, Fold, average_precision, matches


def test_average_precision_by_hand():
    # by score: hit (1/1), miss, hit (2/3); one of three objects is never found
    assert average_precision([0.2, 0.9, 0.5], [True, True, False], 3) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision([0.9, 0.5], [False, True], 1) == pytest.approx(1 / 2)
    assert average_precision([], [], 4) == 0


def test_an_object_is_found_once_by_the_best_score():
    truth = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0], [20.0, 0.0, 4.0, 2.0, 0.0]])
    boxes = torch.tensor([
        [0.2, 0.0, 4.0, 2.0, 0.0], [0.0, 0.0, 4.0, 2.0, 0.0], [23.0, 0.0, 4.0, 2.0, 0.0], [20.0, 0.0, 4.0, 2.0, 0.0],
    ])  # fmt: skip
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1])
    # the second is on an object that the first has taken; the third overlaps its object by 1 / 7
    assert matches(boxes, scores.numpy(), truth).tolist() == [True, False, False, True]
    assert matches(boxes, scores.numpy(), truth[:0]).tolist() == [False] * 4
    assert matches(boxes[:0], scores[:0].numpy(), truth).tolist() == []


def test_every_frame_is_held_out_once_and_the_wet_one_is_trained_on(tmp_path):
    options = SimpleNamespace(steps=10, out=tmp_path)
    for repeat in range(3):
        folds = [Fold(options, repeat, fold, None) for fold in range(FOLDS)]
        assert sorted(frame for fold in folds for frame in fold.held_out) == list(range(FRAMES))
        for fold in folds:
            assert set(fold.frames) == set(range(FRAMES)) - set(fold.held_out)
            assert fold.wet in set(fold.frames) & set(NEAR_CARS)
