# SPDX-License-Identifier: Apache-2.0
"""Long-tail means against scikit-learn and a plain loop, groups, the metric over parts."""

import numpy as np
import pytest
import torch

from clusterplug.evaluation import LongTailMetric, long_tail_accuracy, long_tail_groups


def test_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 255, -1])
    predicted = torch.tensor([0, 0, 1, 1, 9, 0, 0, 0])
    found = long_tail_accuracy(labels, predicted, [90, 9, 1])
    assert (found.head, found.medium, found.tail) == pytest.approx((2 / 3, 0.5, 0.0))
    assert found.class_mean == pytest.approx((2 / 3 + 0.5) / 3)
    assert found.overall == 0.5
    iou = long_tail_accuracy(labels, predicted, [90, 9, 1], kind='iou')
    assert iou.per_class.tolist() == pytest.approx([2 / 4, 1 / 3, 0.0])


def test_equals_sklearn_and_loop():
    sklearn = pytest.importorskip('sklearn.metrics')
    rng = np.random.default_rng(0)
    for _ in range(5):
        labels, scores = rng.integers(0, 10, 400), rng.normal(size=(400, 10))
        scores[np.arange(400), labels] += 1
        counts = rng.integers(1, 500, 10)
        found = long_tail_accuracy(torch.tensor(labels), torch.tensor(scores), torch.tensor(counts))
        predicted = scores.argmax(1)
        recall = sklearn.recall_score(labels, predicted, average=None)
        assert np.allclose(found.per_class, recall)
        assert found.class_mean == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted))
        order = sorted(range(10), key=lambda c: (-counts[c], c))
        for name, group in zip(('head', 'medium', 'tail'), (order[:3], order[3:7], order[7:])):
            assert getattr(found, name) == pytest.approx(np.mean([recall[c] for c in group]))
        iou = long_tail_accuracy(torch.tensor(labels), torch.tensor(scores), counts, kind='iou')
        assert np.allclose(iou.per_class, sklearn.jaccard_score(labels, predicted, average=None))


def test_groups_by_number_and_ties():
    assert long_tail_groups([101, 100, 20, 19], thresholds=(100, 20)).tolist() == [0, 1, 1, 2]
    assert long_tail_groups([5] * 10).tolist() == [0] * 3 + [1] * 4 + [2] * 3
    assert long_tail_groups([7]).tolist() == [1]


def test_class_without_rows_has_no_part():
    found = long_tail_accuracy(torch.tensor([0, 0]), torch.tensor([0, 2]), [5, 4, 3])
    assert found.head == found.class_mean == 0.5
    assert np.isnan(found.tail)
    assert np.isnan(found.per_class[2])


def test_metric_over_parts_equals_the_whole():
    labels, predicted = torch.arange(60) % 4, torch.arange(60) % 3
    whole = long_tail_accuracy(labels, predicted, [9, 5, 2, 1], kind='iou')
    metric = LongTailMetric([9, 5, 2, 1], kind='iou')
    for part in range(3):
        rows = slice(20 * part, 20 * part + 20)
        sample = dict(
            eval_ann_info=dict(pts_semantic_mask=labels[rows].numpy()),
            pred_pts_seg=dict(pts_semantic_mask=predicted[rows]),
        )
        metric.process(None, [sample])
    found = metric.evaluate(3)
    assert found['long_tail/class_mean'] == pytest.approx(100 * whole.class_mean)
    assert found['long_tail/overall'] == pytest.approx(100 * whole.overall)


def test_metric_reads_classifiers():
    metric = LongTailMetric([9, 1])
    metric.process(None, [dict(gt_label=torch.tensor([1]), pred_label=torch.tensor([1]))])
    metric.process(None, [dict(gt_label=torch.tensor([0]), pred_score=torch.tensor([0.2, 0.8]))])
    found = metric.evaluate(2)
    assert found['long_tail/overall'] == 50
    assert found['long_tail/class_mean'] == 50


def test_bad_input():
    y = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match='counts'):
        long_tail_accuracy(y, y, [])
    with pytest.raises(ValueError, match='each of counts'):
        long_tail_accuracy(y, y, [1, -1])
    with pytest.raises(TypeError, match='labels must be integers'):
        long_tail_accuracy(y.float(), y, [1])
    with pytest.raises(ValueError, match='same N'):
        long_tail_accuracy(y, y[:2], [1])
    with pytest.raises(ValueError, match='at least one row'):
        long_tail_accuracy(y - 1, y, [1])
    with pytest.raises(ValueError, match='NaN'):
        long_tail_accuracy(y, torch.full((3, 1), torch.nan), [1])
    with pytest.raises(ValueError, match='sum to 1'):
        long_tail_groups([1, 2], shares=(0.5, 0.4, 0.3))
    with pytest.raises(ValueError, match='thresholds'):
        long_tail_groups([1, 2], thresholds=(20, 100))
    with pytest.raises(ValueError, match='gt_label'):
        LongTailMetric([1]).process(None, [{}])
