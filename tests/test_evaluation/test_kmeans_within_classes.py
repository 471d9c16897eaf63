# SPDX-License-Identifier: Apache-2.0
"""k-means inside each class."""

import pytest
import torch

from clusterplug.evaluation import kmeans_within_classes, subclass_agreement


def _two_classes_of_three_directions(num_points=300):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(2, (num_points,), generator=generator)
    kinds = torch.randint(3, (num_points,), generator=generator)
    directions = torch.eye(6)[classes * 3 + kinds]
    lengths = torch.rand(num_points, 1, generator=generator) + 0.5
    return lengths * (directions + 0.01 * torch.randn(num_points, 6, generator=generator)), classes, kinds


def test_finds_separate_directions_whatever_their_length():
    features, classes, kinds = _two_classes_of_three_directions()
    ids = kmeans_within_classes(features, classes, num_classes=2, num_clusters=3)
    assert subclass_agreement(classes, ids, kinds, 2).mean == pytest.approx(1)
    torch.testing.assert_close(ids, kmeans_within_classes(features, classes, 2, 3), rtol=0, atol=0)


def test_a_sample_gives_centers_for_all_points():
    features, classes, kinds = _two_classes_of_three_directions()
    ids = kmeans_within_classes(features, classes, num_classes=2, num_clusters=3, max_points=50)
    assert (ids >= 0).all()
    assert subclass_agreement(classes, ids, kinds, 2).mean == pytest.approx(1)


def test_small_classes_and_ignored_points_get_none():
    classes = torch.tensor([0, 0, 0, 1, 255, -1])
    ids = kmeans_within_classes(torch.randn(6, 4), classes, num_classes=2, num_clusters=2)
    assert (ids[:3] >= 0).all()
    assert ids[3:].tolist() == [-1, -1, -1]


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r'\(6, 4\) and \(5,\)'):
        kmeans_within_classes(torch.randn(6, 4), torch.zeros(5, dtype=torch.long), 2, 2)


def test_regions_are_grouped_by_their_mean():
    """Objects around two directions, each of a point far off to the one and one to the other side of its mean."""
    mean = torch.eye(4)[:2].repeat_interleave(3, 0)  # six objects
    off = torch.tensor([[0.0, 0.0, 5.0, 0.0], [0.0, 0.0, -5.0, 0.0]])
    features = (mean[:, None] + off).flatten(0, 1)
    objects, kinds = torch.arange(6).repeat_interleave(2), torch.arange(2).repeat_interleave(6)
    classes = torch.zeros(12, dtype=torch.long)
    ids = kmeans_within_classes(features, classes, 1, 2, regions=objects)
    assert subclass_agreement(classes, ids, kinds, 1).mean == pytest.approx(1)
    alone = kmeans_within_classes(features, classes, 1, 2, regions=torch.full((12,), -1))
    assert torch.equal(alone, kmeans_within_classes(features, classes, 1, 2))
    assert subclass_agreement(classes, alone, kinds, 1).mean < 0.1
    # more clusters than objects, though not than points
    assert (kmeans_within_classes(features, classes, 1, 7, regions=objects) == -1).all()
