# SPDX-License-Identifier: Apache-2.0
"""Losses that know no numbers of clusters, and the agreement with a group of raters."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional import (
    adjusted_rand_index,
    group_kappa,
    matched_cross_entropy,
    pair_loss,
    point_agreement,
    williams_index,
)
from clusterplug.testing.counters import count_host_syncs


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ids(*shape, most, seed=0):
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(seed))


def brute_force(logits, labels):
    kinds = labels.unique()
    return min(
        F.cross_entropy(logits, torch.tensor(order)[torch.searchsorted(kinds, labels)])
        for order in itertools.permutations(range(logits.shape[-1]), len(kinds))
    )


def test_matched_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 5.0], [0.0, 5.0], [5.0, 0.0]], dtype=torch.float64)
    assert matched_cross_entropy(logits, torch.tensor([0, 0, 1])).item() == pytest.approx(math.log1p(math.exp(-5)))
    assert matched_cross_entropy(logits, torch.tensor([0, 1, 1])).item() == pytest.approx(
        math.log1p(math.exp(-5)) + 5 / 3
    )


@pytest.mark.parametrize('num_clusters', [1, 2, 4])
def test_matched_cross_entropy_is_the_best_permutation(num_clusters):
    logits, labels = 3 * randn(3, 12, 4), ids(3, 12, most=num_clusters)
    expected = torch.stack([brute_force(*each) for each in zip(logits, labels)])
    torch.testing.assert_close(matched_cross_entropy(logits, labels, reduction='none'), expected)
    torch.testing.assert_close(matched_cross_entropy(logits, labels), expected.mean())


@pytest.mark.parametrize('loss', [matched_cross_entropy, pair_loss])
def test_relabeling_and_order_of_points_change_nothing(loss):
    logits, labels = randn(2, 20, 5), ids(2, 20, most=4)
    names, order = torch.tensor([9, 0, 70, 3]), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    expected = loss(logits, labels)
    torch.testing.assert_close(loss(logits, names[labels]), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(logits[:, order], labels[:, order]), expected, rtol=1e-12, atol=0)


def test_noise_has_its_own_column_or_none():
    logits, labels = randn(10, 4), ids(10, most=3)
    noisy = torch.where(torch.arange(10) < 3, -1, labels)
    torch.testing.assert_close(matched_cross_entropy(logits, noisy), brute_force(logits[3:], labels[3:]))
    log_p = logits.log_softmax(-1)
    best = min(
        -(log_p[:3, 3].sum() + log_p[3:].gather(1, torch.tensor(order)[labels[3:]][:, None]).sum()) / 10
        for order in itertools.permutations(range(3))
    )
    for column in (3, -1):
        torch.testing.assert_close(matched_cross_entropy(logits, noisy, noise_column=column), best)
    moved = matched_cross_entropy(logits[:, [3, 0, 1, 2]], noisy, noise_column=0)
    torch.testing.assert_close(moved, best)
    everything = torch.full((10,), -1)
    assert matched_cross_entropy(logits, everything).item() == 0
    torch.testing.assert_close(matched_cross_entropy(logits[:, :1], everything, noise_column=0).item(), 0.0)


def pair_loop(logits, raters):
    p = logits.softmax(-1)
    losses = []
    for n, m in itertools.permutations(range(len(p)), 2):
        votes = [float(each[n] == each[m]) for each in raters if each[n] >= 0 and each[m] >= 0]
        if votes:
            t, q = sum(votes) / len(votes), (p[n] @ p[m]).clamp(1e-6, 1 - 1e-6)
            losses.append(-(t * q.log() + (1 - t) * (1 - q).log()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize('chunk_size', [1024, 4])
def test_pair_loss_is_the_plain_loop(chunk_size):
    logits = randn(2, 9, 3).requires_grad_()
    raters = torch.where(ids(2, 3, 9, most=6, seed=1) == 0, -1, ids(2, 3, 9, most=3))
    expected = torch.stack([pair_loop(*each) for each in zip(logits, raters)])
    got = pair_loss(logits, raters, reduction='none', chunk_size=chunk_size)
    torch.testing.assert_close(got, expected)
    for one, other in zip(*(torch.autograd.grad(each.sum(), logits) for each in (got, expected))):
        torch.testing.assert_close(one, other)
    single = pair_loss(logits, raters[:, 0], reduction='none', chunk_size=chunk_size)
    torch.testing.assert_close(single, torch.stack([pair_loop(a, b[:1]) for a, b in zip(logits, raters)]))


def test_gradients():
    logits, labels = randn(2, 6, 3).requires_grad_(), ids(2, 6, most=3)
    for call in (matched_cross_entropy, pair_loss):
        assert torch.autograd.gradcheck(lambda x, call=call: call(x, labels), logits)


def test_of_a_step_in_mixed_precision():
    logits, labels = randn(2, 40, 5, dtype=torch.float32), ids(2, 40, most=4)
    for call in (matched_cross_entropy, pair_loss):
        expected = call(logits, labels)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            torch.testing.assert_close(call(logits, labels), expected)
        assert call(logits.half(), labels).dtype == torch.float16
    assert not count_host_syncs(lambda: pair_loss(logits, labels))


def test_sets_that_are_empty_extreme_or_broken():
    assert matched_cross_entropy(randn(0, 5, 3), ids(0, 5, most=3)).item() == 0
    assert matched_cross_entropy(randn(2, 0, 3), ids(2, 0, most=3)).item() == 0
    assert pair_loss(randn(1, 3), ids(1, most=2)).item() == 0
    assert pair_loss(randn(2, 0, 3), ids(2, 0, most=3)).item() == 0
    logits = randn(2, 5, 3)
    logits[0, 1] = torch.nan
    for call in (matched_cross_entropy, pair_loss):
        losses = call(logits, ids(2, 5, most=2), reduction='none')
        assert losses[0].isnan()
        assert losses[1].isfinite()
    forbidden = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])  # the matching avoids what cannot be
    assert matched_cross_entropy(forbidden, torch.tensor([4, 2])).item() == pytest.approx(math.log(2) / 2)
    huge = torch.tensor([[3e38, -3e38], [-3e38, 3e38]])
    assert matched_cross_entropy(huge, torch.tensor([1, 0])).item() == 0


def test_bad_input_of_the_losses():
    with pytest.raises(ValueError, match='at most 3 clusters in a set, a column for each, got 4'):
        matched_cross_entropy(randn(4, 3), torch.arange(4))
    with pytest.raises(ValueError, match='at most 2 clusters in a set'):
        matched_cross_entropy(randn(3, 3), torch.arange(3), noise_column=-1)
    for call in (matched_cross_entropy, pair_loss):
        with pytest.raises(TypeError, match='integer dtype'):
            call(randn(4, 3), randn(4))
        with pytest.raises(ValueError, match=r'shape \(4,\)'):
            call(randn(4, 3), ids(5, most=2))
        with pytest.raises(ValueError, match='reduction must be'):
            call(randn(4, 3), ids(4, most=2), reduction='sum')
    with pytest.raises(ValueError, match='noise_column'):
        matched_cross_entropy(randn(4, 3), ids(4, most=2), noise_column=3)


def group(seed=0, num_points=128):
    """Five raters: a truth of 4 clusters with a tenth of the points relabeled at random."""
    g = np.random.default_rng(seed)
    truth = g.integers(0, 4, num_points)
    changed = g.random((6, num_points)) < 0.1
    raters = np.where(changed, g.integers(0, 4, (6, num_points)), truth)
    return torch.from_numpy(truth), torch.from_numpy(raters[:5]), torch.from_numpy(raters[5])


def test_group_metrics_of_truth_rater_and_chance():
    truth, raters, other = group()
    chance = ids(128, most=4, seed=9)
    kappas = [group_kappa(each, raters) for each in (truth, other, chance, torch.zeros_like(truth))]
    assert kappas[0] > 0.99
    assert 0.7 < kappas[1] < 0.9
    assert abs(kappas[2]) < 0.05
    assert kappas[3] == pytest.approx(0, abs=1e-12)
    williams = [williams_index(each, raters) for each in (truth, other, chance)]
    assert williams[0] > 1.05
    assert 0.8 < williams[1] < 1.1  # one more of the same kind: 1 on average
    assert abs(williams[2]) < 0.05
    same = truth.expand(3, -1)
    assert group_kappa(truth, same) == williams_index(truth, same) == 1
    assert williams_index(raters, truth) == williams[0]  # either order
    assert group_kappa(list(raters), truth) == kappas[0]


def test_one_rater_is_cohens_kappa_of_pairs():
    metrics = pytest.importorskip('sklearn.metrics')
    a, b = ids(40, most=4), ids(40, most=3, seed=1)
    b = torch.where(ids(40, most=3, seed=2) > 0, a, b)
    first, second = torch.triu_indices(40, 40, 1)
    cohen = metrics.cohen_kappa_score(a[first] == a[second], b[first] == b[second])
    assert adjusted_rand_index(a, b) == pytest.approx(cohen, abs=1e-12)
    assert group_kappa(a, b[None]) == pytest.approx(cohen, abs=1e-12)


def kappa_loop(candidate, raters):
    p, x = [], []
    for n, m in itertools.combinations(range(len(candidate)), 2):
        votes = [float(each[n] == each[m]) for each in raters if each[n] >= 0 and each[m] >= 0]
        if votes:
            p.append(sum(votes) / len(votes))
            x.append(float(candidate[n] == candidate[m] and candidate[n] >= 0))
    p, x = np.array(p), np.array(x)
    chance = p.mean() * x.mean() + (1 - p.mean()) * (1 - x.mean())
    return ((p * x + (1 - p) * (1 - x)).mean() - chance) / (np.maximum(p, 1 - p).mean() - chance)


@pytest.mark.parametrize('chunk_size', [2048, 7])
def test_group_kappa_is_the_plain_loop_also_with_noise(chunk_size):
    raters = torch.where(ids(3, 25, most=5, seed=3) == 0, -1, ids(3, 25, most=3))
    candidate = torch.where(ids(25, most=6, seed=4) == 0, -1, raters[0].clamp_min(0))
    assert group_kappa(candidate, raters, chunk_size=chunk_size) == pytest.approx(kappa_loop(candidate, raters))


def test_noise_in_the_williams_index():
    raters = torch.tensor([[0, 0, 1, 1, -1], [0, 0, 1, 1, 1], [0, 0, 1, -1, 1]])
    assert williams_index(torch.tensor([0, 0, 1, 1, 1]), raters) == 1
    # a clustering that calls everything noise puts nothing together: no better than chance
    assert williams_index(torch.full((5,), -1), raters) == 0


def test_undefined_indices_are_nan():
    one = torch.zeros(4, dtype=torch.int64)
    two = torch.tensor([0, 0, 1, 1])
    assert group_kappa(one, one[None]) == 1
    assert math.isnan(group_kappa(two[:1], one[None, :1]))
    assert math.isnan(williams_index(two, torch.stack([one, two])))
    with pytest.raises(ValueError, match='at least 2 for the Williams index'):
        williams_index(two, two[None])
    with pytest.raises(ValueError, match=r'\(R, N\)'):
        group_kappa(two, two[None, :3])
    with pytest.raises(TypeError, match='integer dtype'):
        group_kappa(two.double(), two[None])


def test_point_agreement_is_the_plain_loop():
    raters = torch.where(ids(2, 3, 9, most=5, seed=3) == 0, -1, ids(2, 3, 9, most=2))
    expected = torch.ones(2, 9)
    for b, n in itertools.product(range(2), range(9)):
        values = []
        for m in range(9):
            votes = [float(e[n] == e[m]) for e in raters[b] if e[n] >= 0 and e[m] >= 0]
            if votes and m != n:
                q = sum(votes) / len(votes)
                values.append(max(q, 1 - q))
        if values:
            expected[b, n] = sum(values) / len(values)
    for chunk_size in (1024, 4):
        torch.testing.assert_close(point_agreement(raters, chunk_size=chunk_size), expected)
    assert point_agreement(raters[:, :1]).eq(1).all()
    assert point_agreement(torch.zeros(2, 3, 0, dtype=torch.int64)).shape == (2, 0)
