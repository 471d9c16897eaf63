# SPDX-License-Identifier: Apache-2.0
"""Accuracy under the best matching, NMI, ARI: by hand, against scikit-learn and scipy, bad input."""

import itertools
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional.metrics import (
    adjusted_rand_index,
    agreement as metrics,
    clustering_accuracy,
    normalized_mutual_info,
)
from clusterplug.functional.metrics.assignment import shortest_augmenting_paths

labelings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-2, 6), min_size=n, max_size=n) for _ in range(2)])
)


def test_by_hand():
    true, pred = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 1, 0, 0, 0, 2])
    assert clustering_accuracy(true, pred) == 4 / 6
    # pairs: 15; together in both 2, in classes 6, in clusters 4: (2 - 6 * 4 / 15) / ((6 + 4) / 2 - 6 * 4 / 15)
    assert adjusted_rand_index(true, pred) == pytest.approx((2 - 1.6) / (5 - 1.6), abs=1e-15)
    independent = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert normalized_mutual_info(*independent) == 0.0


@settings(max_examples=80, deadline=None)
@given(labelings)
def test_equals_scikit_learn(pair):
    sklearn = pytest.importorskip('sklearn.metrics')
    true, pred = torch.tensor(pair[0]), torch.tensor(pair[1])
    assert adjusted_rand_index(true, pred) == pytest.approx(sklearn.adjusted_rand_score(*pair), abs=1e-12)
    for average in ('arithmetic', 'geometric', 'min', 'max'):
        if average == 'min' and 1 in (len(set(pair[0])), len(set(pair[1]))):
            continue  # scikit-learn divides by an entropy of zero guarded by eps
        oracle = sklearn.normalized_mutual_info_score(*pair, average_method=average)
        assert normalized_mutual_info(true, pred, average=average) == pytest.approx(oracle, abs=1e-12)


def test_large_equals_scikit_learn():
    sklearn = pytest.importorskip('sklearn.metrics')
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(20, (300_000,), generator=generator)
    pred = torch.where(torch.rand(300_000, generator=generator) < 0.3, true, torch.randint(30, (300_000,)))
    oracle = sklearn.adjusted_rand_score(true.numpy(), pred.numpy())
    assert adjusted_rand_index(true, pred) == pytest.approx(oracle, abs=1e-12)
    oracle = sklearn.normalized_mutual_info_score(true.numpy(), pred.numpy())
    assert normalized_mutual_info(true.int(), pred) == pytest.approx(oracle, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=25))
def test_accuracy_equals_trying_every_matching(pairs):
    best = 0
    for matching in itertools.permutations(range(5)):
        best = max(best, sum(matching[b] == a for a, b in pairs))
    true, pred = (torch.tensor(column) for column in zip(*pairs))
    assert clustering_accuracy(true, pred) == best / len(pairs)


@pytest.mark.parametrize('shape', [(1, 1), (6, 6), (4, 9), (9, 4), (25, 25)])
def test_own_assignment_equals_scipy(shape, monkeypatch):
    optimize = pytest.importorskip('scipy.optimize')
    for seed in range(5):
        cost = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).double()
        rows, cols = shortest_augmenting_paths(cost)
        assert len(set(rows.tolist())) == len(set(cols.tolist())) == min(shape)
        oracle = cost[optimize.linear_sum_assignment(cost.numpy())].sum()
        assert cost[rows, cols].sum() == oracle
    monkeypatch.setitem(sys.modules, 'scipy.optimize', None)
    assert clustering_accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 2, 1])) == 0.75


def test_invariants():
    generator = torch.Generator().manual_seed(0)
    true, pred = torch.randint(6, (500,), generator=generator), torch.randint(6, (500,), generator=generator)
    renamed = torch.randperm(6, generator=generator)[pred]
    for score in (clustering_accuracy, adjusted_rand_index, normalized_mutual_info):
        assert score(true, renamed) == pytest.approx(score(true, pred), abs=1e-14)
        assert score(true, renamed) == pytest.approx(score(renamed, true), abs=1e-14)
        assert score(true, true) == pytest.approx(1.0, abs=1e-14)
        assert isinstance(score(true, pred), float)


def test_degenerate_labelings():
    one, many = torch.zeros(5, dtype=torch.long), torch.arange(5)
    assert adjusted_rand_index(one, one) == normalized_mutual_info(one, one) == 1.0
    assert adjusted_rand_index(many, many) == 1.0
    assert adjusted_rand_index(one, many) == normalized_mutual_info(one, many) == 0.0
    assert clustering_accuracy(one, many) == 0.2
    nothing = torch.zeros(0, dtype=torch.long)
    assert adjusted_rand_index(nothing, nothing) == normalized_mutual_info(nothing, nothing) == 1.0


@pytest.mark.parametrize('score', [clustering_accuracy, adjusted_rand_index, normalized_mutual_info])
def test_bad_input(score):
    labels = torch.arange(4)
    with pytest.raises(TypeError, match='labels_pred must have an integer dtype'):
        score(labels, labels.float())
    with pytest.raises(TypeError, match=r'labels_true must be a torch\.Tensor'):
        score([0, 1], labels)
    with pytest.raises(ValueError, match=r'labels_pred must have shape \(4,\), got \(3,\)'):
        score(labels, labels[:3])
    with pytest.raises(ValueError, match=r'shape \(N,\)'):
        score(labels.view(2, 2), labels.view(2, 2))


def test_bad_options():
    with pytest.raises(ValueError, match='average'):
        normalized_mutual_info(torch.arange(3), torch.arange(3), average='mean')
    with pytest.raises(ValueError, match='at least one point'):
        clustering_accuracy(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int8, torch.int32, torch.uint16, torch.uint64])
def test_every_integer_type(dtype):
    sklearn = pytest.importorskip('sklearn.metrics')
    true = torch.tensor([0, 1, 1, 0, 1, 1, 0])
    pred = torch.tensor([3, 1, 3, 3, 7, 7, 1])
    assert clustering_accuracy(true.to(dtype), pred) == 4 / 7
    oracle = sklearn.normalized_mutual_info_score(true, pred)
    assert normalized_mutual_info(true.to(dtype), pred) == pytest.approx(oracle, abs=1e-14)
    assert adjusted_rand_index(pred, true.to(dtype)) == pytest.approx(sklearn.adjusted_rand_score(true, pred))


def test_huge_and_negative_values_are_only_names():
    true = torch.tensor([2**63 - 1, -(2**63), 2**63 - 1, 0, -1])
    pred = torch.tensor([-5, 2**40, -5, 2**40, 2**62])
    small = torch.tensor([0, 1, 0, 2, 3]), torch.tensor([0, 1, 0, 1, 2])
    for score in (clustering_accuracy, adjusted_rand_index, normalized_mutual_info):
        assert score(true, pred) == pytest.approx(score(*small), abs=1e-14)


@pytest.mark.parametrize('has_scipy', [True, False])
def test_the_three_forms_of_the_matching_agree(has_scipy, monkeypatch):
    if has_scipy:
        pytest.importorskip('scipy')
    else:
        monkeypatch.setitem(sys.modules, 'scipy.sparse.csgraph', None)
        monkeypatch.setitem(sys.modules, 'scipy.optimize', None)
    generator = torch.Generator().manual_seed(1)
    for num_points, num_labels in ((1, 1), (30, 4), (40, 25), (60, 300)):
        true, pred = torch.randint(num_labels, (2, num_points), generator=generator)
        whole = clustering_accuracy(true, pred)
        with monkeypatch.context() as patch:
            patch.setattr(metrics, '_DENSE_ENTRIES', 0)
            assert clustering_accuracy(true, pred) == whole


def test_memory_follows_the_pairs_that_occur():
    # A table of these labels would hold 4e9 entries: 32 GB.
    generator = torch.Generator().manual_seed(0)
    true, other = torch.randperm(200_000, generator=generator), torch.randint(20_000, (200_000,), generator=generator)
    assert normalized_mutual_info(true, true) == pytest.approx(1.0, abs=1e-12)
    assert adjusted_rand_index(true, other) == 0.0
    # Every class is one point: each cluster can match one of its points.
    assert clustering_accuracy(true, other) == len(other.unique()) / 200_000
