# SPDX-License-Identifier: Apache-2.0
"""Means over the regions of anchors, against a plain loop."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional.contrast.region_means import region_means
from clusterplug.testing import count_host_syncs


def plain(features, regions, anchors, valid, feature_rows):
    values = features if feature_rows is None else features[feature_rows]
    means, first, leader, seen = [], [], [], {}
    for number, row in enumerate(anchors.tolist()):
        region = int(regions[row])
        if not valid[number] or region < 0:
            means.append(values[row].float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
            first.append(True)
            leader.append(number)
            continue
        members = values[(regions == region) & values.isfinite().all(1)].float()
        means.append(members.mean(0) if len(members) else torch.zeros(features.shape[1]))
        first.append(region not in seen)
        leader.append(seen.setdefault(region, number))
    return torch.stack(means), torch.tensor(first), torch.tensor(leader)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), anchors=st.integers(1, 12), coarse=st.booleans())
def test_equals_a_loop(seed, rows, anchors, coarse):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(5 if coarse else rows, 3, generator=g)
    feature_rows = torch.randint(0, 5, (rows,), generator=g) if coarse else None
    regions = torch.randint(-1, 4, (rows,), generator=g) * (1 << 61)
    chosen = torch.randint(0, rows, (anchors,), generator=g)
    valid = torch.rand(anchors, generator=g) < 0.8
    expected = plain(features, regions, chosen, valid, feature_rows)
    found = region_means(features, regions, chosen, valid, feature_rows)
    torch.testing.assert_close(found.means, expected[0])
    assert torch.equal(found.first, expected[1])
    assert torch.equal(found.leader, expected[2])


def test_odd_rows_do_not_reach_the_mean():
    features = torch.tensor([[1.0], [float('nan')], [3.0], [float('inf')]])
    anchors = torch.tensor([0, 2])
    found = region_means(features, torch.zeros(4, dtype=torch.int64), anchors, torch.ones(2, dtype=torch.bool))
    assert found.means.tolist() == [[2.0], [2.0]]


def test_no_waits():
    features, regions = torch.randn(50, 4), torch.randint(-1, 5, (50,))
    anchors, valid = torch.randint(0, 50, (20,)), torch.rand(20) < 0.8
    assert count_host_syncs(lambda: region_means(features, regions, anchors, valid)).total() == 0


def test_bad_shapes():
    ones = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match='one entry for each label row, got 3 for 2 features'):
        region_means(torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1]), ones)
    with pytest.raises(ValueError, match=r'features \(M, C\)'):
        region_means(torch.zeros(2), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), ones)
