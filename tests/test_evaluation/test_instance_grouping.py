# SPDX-License-Identifier: Apache-2.0
"""Objects grouped from above, and panoptic quality by hand and against a plain loop."""

import numpy as np
import pytest

pytest.importorskip('mmengine')
pytest.importorskip('scipy')

from clusterplug.evaluation import group_instances, panoptic_quality


def street(gap=1.0, seed=0):
    """Three cars in a row, ``gap`` meters apart, people far away, and road: points, classes, objects."""
    g = np.random.default_rng(seed)
    cars = [
        np.c_[g.uniform(0, 4, 300) + k * (4 + gap), g.uniform(0, 1.8, 300), g.uniform(0, 1.5, 300)] for k in range(3)
    ]
    people = [np.c_[g.normal(10 * k, 0.1, 40), g.normal(30, 0.1, 40), g.uniform(0, 1.8, 40)] for k in range(2)]
    road = np.c_[g.uniform(-5, 25, 500), g.uniform(-5, 35, 500), np.zeros(500)]
    points = np.concatenate([*cars, *people, road])
    return points, np.repeat([0, 5, 8], [900, 80, 500]), np.repeat([1, 2, 3, 4, 5, 0], [300, 300, 300, 40, 40, 500])


class OneCluster:
    """An estimator that sees one cluster in everything."""

    def fit_predict(self, X):
        return np.zeros(len(X), np.int64)


@pytest.mark.parametrize('method', ['components', 'hdbscan', 'perceptual'])
def test_separate_objects_are_found(method):
    if method == 'hdbscan':
        pytest.importorskip('sklearn')
    points, classes, truth = street(gap=4.0)
    found = group_instances(points, classes, [0, 5], method, estimator=OneCluster())
    assert not found[classes == 8].any()
    quality = panoptic_quality(classes, found, classes, truth, [0, 5])
    assert quality.mean > (0.6 if method == 'hdbscan' else 0.99), quality
    order = np.random.default_rng(1).permutation(len(points))
    again = group_instances(points[order], classes[order], [0, 5], method, estimator=OneCluster())
    again = panoptic_quality(classes, again[order.argsort()], classes, truth, [0, 5])
    assert again.mean == pytest.approx(quality.mean, abs=1e-12)


def test_perceptual_takes_the_estimator_of_the_package():
    points, classes, _ = street()
    found = group_instances(points, classes, [0], 'perceptual')
    assert found[classes == 0].max() >= 1
    assert not found[classes != 0].any()


def test_components_join_at_their_radius():
    points = np.array([[0.0, 0], [0.55, 0], [1.1, 0], [2.1, 0]]).repeat(5, 0) + 0.05
    classes = np.zeros(20, int)
    for radius, count in ((0.6, 2), (0.3, 4), (1.2, 1)):
        found = group_instances(points, classes, [0], radius=radius, min_points=5)
        assert len(np.unique(found)) == count
        assert found.min() == 1
    assert not group_instances(points, classes, [0], radius=0.3, min_points=6).any()
    assert not group_instances(points, classes, [3]).any()
    assert group_instances(np.empty((0, 3)), np.empty(0, int), [0]).shape == (0,)


def plain_quality(classes, found, true_classes, truth, each, min_points):
    keep = ~(np.isin(true_classes, [0, 1, 4]) & (truth <= 0))
    ours = [set(np.flatnonzero((found == i) & (classes == each) & keep)) for i in np.unique(found[found > 0])]
    theirs = [set(np.flatnonzero((truth == i) & (true_classes == each))) for i in np.unique(truth[truth > 0])]
    ours, theirs = [s for s in ours if s], [s for s in theirs if s]
    pairs = [(a, b, len(s & t) / len(s | t)) for a, s in enumerate(ours) for b, t in enumerate(theirs)]
    hits = [(a, b, iou) for a, b, iou in pairs if iou > 0.5]
    met_a, met_b = {a for a, _, _ in hits}, {b for _, b, _ in hits}
    invented = sum(len(s) >= min_points for a, s in enumerate(ours) if a not in met_a)
    missed = sum(len(s) >= min_points for b, s in enumerate(theirs) if b not in met_b)
    bottom = len(hits) + invented / 2 + missed / 2
    return sum(iou for _, _, iou in hits) / bottom if bottom else np.nan


def test_panoptic_quality_is_the_plain_loop():
    g = np.random.default_rng(0)
    for _ in range(20):
        true_classes, truth = g.integers(0, 3, 200), g.integers(0, 4, 200)
        classes = np.where(g.random(200) < 0.8, true_classes, g.integers(0, 3, 200))
        found = np.where(g.random(200) < 0.8, truth + 7, g.integers(0, 4, 200))
        quality = panoptic_quality(classes, found, true_classes, truth, [0, 1, 4], min_points=5)
        expected = [plain_quality(classes, found, true_classes, truth, each, 5) for each in (0, 1, 4)]
        np.testing.assert_allclose(quality.quality, expected)
        assert np.isnan(quality.quality[2])
        assert quality.mean == pytest.approx(np.mean(expected[:2]))


def test_bad_input():
    points, classes, _ = street()
    with pytest.raises(ValueError, match='method must be one of'):
        group_instances(points, classes, [0], 'meanshift')
    with pytest.raises(ValueError, match='classes \\(N,\\)'):
        group_instances(points, classes[1:], [0])
    with pytest.raises(ValueError, match='radius must be'):
        group_instances(points, classes, [0], radius=0)
    points[0] = np.nan
    with pytest.raises(ValueError, match='NaN or infinity in class 0'):
        group_instances(points, classes, [0])
    with pytest.raises(ValueError, match='all four arrays'):
        panoptic_quality(classes, classes, classes, classes[1:], [0])
