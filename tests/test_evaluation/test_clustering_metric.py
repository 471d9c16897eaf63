# SPDX-License-Identifier: Apache-2.0
"""ClusteringMetric: agreement of clusters with classes over a data set, whatever the clusters are called."""

import pytest
import torch

from clusterplug.evaluation import ClusteringMetric


def value(samples, **options):
    metric = ClusteringMetric(**options)
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def test_names_of_clusters_do_not_matter():
    samples = [dict(gt_label=torch.tensor([c]), pred_label=torch.tensor([(c + 5) % 3])) for c in (0, 0, 1, 1, 2, 2)]
    found = value(samples)
    assert found['clustering/accuracy'] == found['clustering/ari'] == 100
    assert found['clustering/nmi'] == pytest.approx(100)
    assert found['clustering/clusters'] == 3


def test_scores_points_and_ignored_rows():
    points = dict(
        eval_ann_info=dict(pts_semantic_mask=torch.tensor([0, 0, 1, 1, 255, -1])),
        pred_pts_seg=dict(pts_semantic_mask=torch.tensor([7, 7, 2, 7, 9, 9])),
    )
    found = value([points], ignore_index=255)
    assert found['clustering/accuracy'] == 75  # three of four under the best matching
    assert found['clustering/clusters'] == 2
    image = dict(gt_label=torch.tensor([1]), pred_score=torch.tensor([0.1, 0.9]))
    assert value([image])['clustering/accuracy'] == 100


@pytest.mark.parametrize(
    ('sample', 'message'),
    [
        (dict(gt_label=torch.tensor([1]), pred_score=torch.tensor([0.1, float('nan')])), 'NaN'),
        (dict(gt_label=torch.tensor([-1]), pred_label=torch.tensor([0])), 'no labeled row'),
        (dict(pred_label=torch.tensor([0])), 'gt_label'),
    ],
)
def test_bad_samples(sample, message):
    with pytest.raises(ValueError, match=message):
        value([sample])
