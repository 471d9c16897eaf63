# SPDX-License-Identifier: Apache-2.0
"""sample_anchors: the hard / easy rule, as a loop states it, on every path."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional.contrast import draw_anchors, sample_anchors
from clusterplug.testing import count_host_syncs, count_launches


def _quota_by_rule(hard, easy, budget):
    """How many of each kind, in the words of the paper's code."""
    if hard >= budget / 2 and easy >= budget / 2:
        return budget // 2, budget - budget // 2
    if hard >= budget / 2:
        return min(hard, budget - easy), easy
    if easy >= budget / 2:
        return hard, min(easy, budget - hard)
    return hard, easy


def _check(labels, predictions, sample, num_classes, budget):
    seen_hard = labels != predictions if predictions is not None else torch.zeros_like(labels, dtype=torch.bool)
    for c in range(num_classes):
        rows = sample.rows[c][sample.valid[c]]
        assert len(set(rows.tolist())) == len(rows), 'a row was drawn twice'
        assert (labels[rows] == c).all()
        hard = int(((labels == c) & seen_hard).sum())
        easy = int(((labels == c) & ~seen_hard).sum())
        num_hard = int(seen_hard[rows].sum())
        assert (num_hard, len(rows) - num_hard) == _quota_by_rule(hard, easy, budget), (c, hard, easy, budget)


@pytest.mark.parametrize('budget', [1, 2, 3, 4, 5, 8])
def test_quota_for_every_number_of_hard_and_easy_rows(budget):
    cases = list(itertools.product(range(8), range(8)))
    labels = torch.cat([torch.full((h + e,), c) for c, (h, e) in enumerate(cases)])
    wrong = torch.cat([torch.tensor([1] * h + [0] * e, dtype=torch.long) for h, e in cases])
    predictions = (labels + wrong) % len(cases)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(budget))
    sample = sample_anchors(labels[order], predictions[order], num_classes=len(cases), num_anchors_per_class=budget)
    _check(labels[order], predictions[order], sample, len(cases), budget)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), num_rows=st.integers(1, 3000), num_classes=st.integers(1, 6),
    budget=st.integers(1, 9), with_predictions=st.booleans(), skew=st.sampled_from([0, 1, 3]),
)  # fmt: skip
def test_rule_on_random_labels(seed, num_rows, num_classes, budget, with_predictions, skew):
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(num_rows, generator=g) ** (1 + skew) * (num_classes + 1)).long().clamp(max=num_classes) - 1
    predictions = torch.randint(0, num_classes, (num_rows,), generator=g) if with_predictions else None
    sample = sample_anchors(
        labels, predictions, num_classes=num_classes, num_anchors_per_class=budget, num_slots=budget + 1, generator=g
    )
    assert sample.rows.shape == sample.valid.shape == (num_classes, budget + 1)
    assert not sample.valid[:, -1].any()
    assert sample.rows.min() >= -1
    assert sample.rows.max() < num_rows
    _check(labels, predictions, sample, num_classes, budget)


def test_rule_when_large_groups_are_thinned():
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(60_000, generator=g) ** 6 * 5).long() - 1
    labels[:3] = 4  # a class with three rows among many
    predictions = torch.where(torch.rand(60_000, generator=g) < 0.01, 0, labels)
    for _ in range(5):
        sample = sample_anchors(labels, predictions, num_classes=5, num_anchors_per_class=20, generator=g)
        _check(labels, predictions, sample, 5, 20)
    assert sample.valid[4].sum() == 3


@pytest.mark.parametrize('num_rows', [60, 30_000])
def test_every_row_of_a_group_is_drawn_equally_often(num_rows):
    """Both with a full sort and with thinning; the first 30 rows of class 0 stand for all."""
    g = torch.Generator().manual_seed(1)
    labels = torch.zeros(num_rows, dtype=torch.long)
    bins, draws, budget = 6, 400, 10
    counts = torch.zeros(bins)
    for _ in range(draws):
        rows = sample_anchors(labels, None, num_classes=1, num_anchors_per_class=budget, generator=g).rows
        counts += torch.bincount(rows.flatten() * bins // num_rows, minlength=bins)
    expected = draws * budget / bins
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 30  # 5 degrees of freedom: above 30 once in 70,000 times


def test_first_few_of_a_class_hold_both_kinds():
    labels = torch.zeros(100, dtype=torch.long)
    predictions = torch.arange(100) % 2
    rows = sample_anchors(labels, predictions, num_classes=2, num_anchors_per_class=20).rows[0]
    hard = predictions[rows] == 1
    assert hard[:10].sum() == 5
    assert hard.sum() == 10


@pytest.mark.parametrize(('max_anchors', 'budget'), [(12, 4), (13, 4), (2, 1), (1000, 10), (None, 10)])
def test_bound_on_all_anchors_is_shared_by_the_classes_present(max_anchors, budget):
    labels = torch.tensor([0, 2, 3, -1]).repeat(50)
    predictions = torch.zeros_like(labels)
    sample = sample_anchors(labels, predictions, num_classes=5, num_anchors_per_class=10, max_anchors=max_anchors)
    _check(labels, predictions, sample, 5, budget)


@pytest.mark.parametrize('num_rows', [1, 5, 20_000])
@pytest.mark.parametrize('max_anchors', [None, 7])
def test_nothing_but_ignored_rows_gives_no_anchors(num_rows, max_anchors):
    labels = torch.full((num_rows,), -1)
    sample = sample_anchors(labels, labels, num_classes=3, num_anchors_per_class=4, max_anchors=max_anchors)
    assert not sample.valid.any()
    assert sample.rows.shape == (3, 4)


def test_same_generator_state_same_anchors():
    labels = torch.randint(-1, 4, (5000,), generator=torch.Generator().manual_seed(2))
    samples = [
        sample_anchors(labels, None, num_classes=4, num_anchors_per_class=9, generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    ]
    assert torch.equal(samples[0].rows, samples[1].rows)
    assert not torch.equal(samples[0].rows, samples[2].rows)


def test_launches_do_not_grow_with_classes_and_nothing_waits():
    totals = []
    for num_classes in (2, 50):
        labels = torch.arange(120_000) % num_classes
        step = lambda: draw_anchors(labels, labels, num_classes=num_classes, num_anchors_per_class=20)  # noqa: B023, E731
        step()
        totals.append(count_launches(step).total())
        assert count_host_syncs(step).total() == 0
    assert totals[0] == totals[1] <= 45
