# SPDX-License-Identifier: Apache-2.0
"""Episodes: what is drawn, accuracy against a plain loop, the interval, speed, bad input."""

import numpy as np
import pytest
import torch

from clusterplug.evaluation import FewShotEpisodes


def blobs(classes=8, rows=40, dims=6, spread=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(rows)[torch.randperm(classes * rows, generator=generator)]
    centers = torch.randn(classes, dims, generator=generator)
    return centers[labels] + spread * torch.randn(len(labels), dims, generator=generator), labels


def test_draws_are_what_they_say():
    _, labels = blobs()
    episodes = FewShotEpisodes(ways=3, shots=[1, 2, 3], queries=[4, 5, 6], episodes=1).draw(labels * 10, 50)
    assert episodes.support.shape == (50, 6)
    assert episodes.queries.shape == (50, 15)
    for e in range(50):
        assert len(set(episodes.classes[e].tolist())) == 3
        rows = torch.cat([episodes.support[e], episodes.queries[e]])
        assert len(rows.unique()) == 21
        assert torch.equal(labels[episodes.support[e]] * 10, episodes.classes[e][episodes.support_labels[e]])
        assert torch.equal(labels[episodes.queries[e]] * 10, episodes.classes[e][episodes.query_labels[e]])


def test_classes_of_different_size_are_drawn_evenly():
    labels = torch.cat([torch.zeros(20), torch.ones(500), torch.full((3,), 2.0), torch.full((30,), 3.0)]).long()
    episodes = FewShotEpisodes(ways=2, shots=1, queries=5, episodes=1).draw(labels, 3000)
    share = torch.bincount(episodes.classes.flatten(), minlength=4) / 6000
    assert share[2] == 0
    assert (share[[0, 1, 3]] - 1 / 3).abs().max() < 0.02
    rows = torch.bincount(episodes.queries.flatten(), minlength=len(labels))[:20]
    assert rows.min() > 0.7 * rows.max()


def test_equals_a_plain_loop():
    features, labels = blobs()
    metric = FewShotEpisodes(ways=4, shots=2, queries=7, episodes=30, batch_size=8, seed=3)
    drawn = metric.draw(labels, 8, torch.Generator().manual_seed(3))
    accuracies = []
    for e in range(8):
        support, queries = features[drawn.support[e]], features[drawn.queries[e]]
        means = torch.stack([support[drawn.support_labels[e] == way].mean(0) for way in range(4)])
        way = torch.cdist(queries.double(), means.double()).argmin(1)
        accuracies.append(float((way == drawn.query_labels[e]).double().mean()))
    found = metric(features, labels)
    assert found.accuracies[:8].tolist() == pytest.approx(accuracies)
    assert found.interval == pytest.approx(1.96 * np.std(found.accuracies.numpy(), ddof=1) / np.sqrt(30))
    assert torch.equal(metric(features, labels).accuracies, found.accuracies)


def test_batches_of_another_classifier():
    features, labels = blobs()
    right = FewShotEpisodes(
        ways=4,
        queries=3,
        episodes=10,
        classifier=lambda s, y, q: torch.arange(12).div(3).long().expand(len(q), -1),
    )
    assert right(features, labels).mean == 1.0
    scores = FewShotEpisodes(ways=4, queries=3, episodes=10, classifier=lambda s, y, q: -torch.cdist(q, s))
    centroid = FewShotEpisodes(ways=4, queries=3, episodes=10)
    assert torch.equal(scores(features, labels).accuracies, centroid(features, labels).accuracies)
    wrong = FewShotEpisodes(ways=4, queries=3, episodes=10, classifier=lambda s, y, q: q)
    with pytest.raises(ValueError, match='classifier must return'):
        wrong(features, labels)


def test_as_a_metric():
    features, labels = blobs()
    metric = FewShotEpisodes(episodes=50)
    for x, y in zip(features, labels):
        metric.process(None, [dict(feats=(x,), gt_label=y[None])])
    found = metric.evaluate(len(features))
    alone = FewShotEpisodes(episodes=50)(features, labels)
    assert found['few_shot/accuracy'] == pytest.approx(100 * alone.mean)
    assert found['few_shot/ci95'] == pytest.approx(100 * alone.interval)


def test_a_thousand_episodes_at_once():
    features, labels = blobs(classes=20, rows=600, dims=64, spread=3)
    found = FewShotEpisodes(ways=5, shots=5, queries=15, episodes=1000)(features, labels)
    assert 0.2 < found.mean < 1
    assert found.interval < 0.01


def test_bad_input():
    features, labels = blobs()
    with pytest.raises(ValueError, match='fewer ways'):
        FewShotEpisodes(ways=9)(features, labels)
    with pytest.raises(ValueError, match='fewer ways'):
        FewShotEpisodes(queries=40)(features, labels)
    with pytest.raises(ValueError, match='shots must be one int'):
        FewShotEpisodes(shots=[1, 2])
    with pytest.raises(ValueError, match='ways'):
        FewShotEpisodes(ways=1)
    with pytest.raises(ValueError, match='finite'):
        FewShotEpisodes()(features.masked_fill(features > 1, torch.nan), labels)
    with pytest.raises(ValueError, match='must be'):
        FewShotEpisodes()(features, labels[:-1])
    with pytest.raises(TypeError, match='integers'):
        FewShotEpisodes()(features, labels.float())
    with pytest.raises(ValueError, match='feature'):
        FewShotEpisodes().process(None, [{}])
    ignored = FewShotEpisodes(episodes=5)(features, labels.masked_fill(labels == 0, -1))
    assert len(ignored.accuracies) == 5
