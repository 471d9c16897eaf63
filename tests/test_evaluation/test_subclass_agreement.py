# SPDX-License-Identifier: Apache-2.0
"""Agreement of subclasses and sub-types within classes."""

import math

import pytest
import torch

from clusterplug.evaluation import subclass_agreement


def test_by_hand():
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 5])
    subtypes = torch.tensor([7, 7, 8, 8, 3, 4, 3, 4, 6, 6, 1])
    subclasses = torch.tensor([1, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0])
    result = subclass_agreement(classes, subclasses, subtypes, num_classes=4)
    assert result.per_class[0] == pytest.approx(1)  # the same grouping under other names
    assert result.per_class[1] == pytest.approx(0, abs=1e-12)  # independent
    assert math.isnan(result.per_class[2])  # one sub-type: nothing to discover
    assert math.isnan(result.per_class[3])  # no point
    assert result.mean == pytest.approx(0.5)


def test_unknown_points_are_left_out():
    classes = torch.zeros(6, dtype=torch.long)
    subtypes = torch.tensor([0, 0, 1, 1, -1, 0])
    subclasses = torch.tensor([2, 2, 5, 5, 5, -1])
    assert subclass_agreement(classes, subclasses, subtypes, 1).mean == pytest.approx(1)


def test_nothing_at_all_is_nan():
    empty = torch.empty(0, dtype=torch.long)
    assert math.isnan(subclass_agreement(empty, empty, empty, 2).mean)


def test_shapes_that_differ():
    with pytest.raises(ValueError, match='same N'):
        subclass_agreement(torch.zeros(3), torch.zeros(3), torch.zeros(2), 1)
