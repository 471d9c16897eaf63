# SPDX-License-Identifier: Apache-2.0
"""Batch samplers: what no batch may hold, what every epoch must, the same on any number of ranks."""

import itertools

import numpy as np
import pytest
import torch

from clusterplug.datasets.samplers import (
    ClassBalancedBatchSampler,
    ClusterDisjointBatchSampler,
    EpisodeSampler,
    same_label_rate,
)
from clusterplug.registry import DATA_SAMPLERS


def labels_of(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def most_by_trial(sizes, batch_size):
    return max(t for t in range(sum(sizes) + 1) if sum(min(n, t) for n in sizes) >= batch_size * t)


def random_sizes(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 12))
    sizes = rng.integers(1, [3, 30, 200][seed % 3], k)
    return sizes, int(rng.integers(1, k + 1))


@pytest.mark.parametrize('leftover', ['drop', 'small', 'repeat'])
def test_disjoint_for_any_sizes(leftover):
    for seed in range(150):
        sizes, batch_size = random_sizes(seed)
        labels = labels_of(sizes, seed)
        sampler = ClusterDisjointBatchSampler(labels, batch_size, leftover, seed)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(set(labels[batch])) == len(batch) <= batch_size
        drawn = np.array(list(itertools.chain(*batches)), dtype=int)
        counts = np.bincount(drawn, minlength=len(labels))
        most = most_by_trial(sizes.tolist(), batch_size)
        full = sum(len(batch) == batch_size for batch in batches)
        if leftover == 'drop':
            assert len(batches) == full == most
            assert counts.max(initial=0) <= 1
            assert sampler.coverage == pytest.approx(batch_size * most / len(labels))
            assert (sampler.coverage == 1) == (len(labels) % batch_size == 0 and sizes.max() <= len(batches))
        elif leftover == 'small':
            assert (counts == 1).all()
            assert full >= most
        else:
            assert full == len(batches) == max(-(-len(labels) // batch_size), sizes.max())
            assert counts.min() == 1
            if batch_size * len(batches) < 2 * len(labels) and sizes.max() * 2 <= len(batches):
                assert counts.max() <= 2
        assert sampler.report()['num_repeats'] == len(drawn) - (counts > 0).sum()


def test_seed_epoch_and_any_kind_of_labels(tmp_path):
    labels = labels_of([9, 9, 9, 5])
    np.save(tmp_path / 'labels.npy', labels)
    first = list(ClusterDisjointBatchSampler(labels, 3, seed=4))
    for same in (labels.tolist(), torch.as_tensor(labels), tmp_path / 'labels.npy', labels.astype(np.uint8)):
        assert list(ClusterDisjointBatchSampler(same, 3, seed=4)) == first
    sampler = ClusterDisjointBatchSampler(labels, 3, seed=4)
    assert list(sampler) == list(sampler) == first
    sampler.sampler.set_epoch(1)  # as mmengine does
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(ClusterDisjointBatchSampler(labels, 3, seed=5)) != first
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    list(sampler)
    assert (np.random.get_state()[1] == state[0]).all()
    assert torch.equal(torch.get_rng_state(), state[1])


def test_ranks_share_one_list():
    labels = labels_of([20, 15, 15, 10, 7, 7])
    whole = list(ClusterDisjointBatchSampler(labels, 3, rank=0, world_size=1))
    parts = [list(ClusterDisjointBatchSampler(labels, 3, rank=r, world_size=2)) for r in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole) // 2
    assert [b for pair in zip(*parts) for b in pair] == whole[: 2 * len(parts[0])]
    for leftover in ('drop', 'small', 'repeat'):
        samplers = [ClusterDisjointBatchSampler(labels, 4, leftover, rank=r, world_size=3) for r in range(3)]
        assert len({len(list(s)) for s in samplers} | {len(s) for s in samplers}) == 1
        if leftover != 'drop':
            assert len({i for s in samplers for b in s for i in b}) == len(labels)
    joint = [ClusterDisjointBatchSampler(labels, 3, disjoint='all', rank=r, world_size=2) for r in range(2)]
    for left, right in zip(*joint, strict=True):
        assert len(left) == len(right) == 3
        assert len(set(labels[left + right])) == 6
    with pytest.raises(ValueError, match='got 4 x 2 ranks'):
        ClusterDisjointBatchSampler(labels, 4, disjoint='all', rank=0, world_size=2)


def test_unlabeled_samples_are_clusters_of_their_own():
    labels = np.array([-1] * 6 + [0] * 3 + [7] * 3)
    for batch in ClusterDisjointBatchSampler(labels, 4):
        found = labels[batch]
        assert (found == 0).sum() <= 1
        assert (found == 7).sum() <= 1
    assert len(ClusterDisjointBatchSampler([-1] * 8, 8)) == 1
    data = type('Data', (), {'__len__': lambda self: 10})()
    sampler = ClusterDisjointBatchSampler(None, 5, sampler=type('Sampler', (), {'dataset': data})())
    assert sampler.coverage == 1
    sampler.set_labels([0, 1, 2, 3, 4] * 2)
    assert all(sorted(i % 5 for i in batch) == [0, 1, 2, 3, 4] for batch in sampler)


def test_simulation_of_the_card():
    """64 clusters of 50,000 samples with sizes 137 to 1865: what the published order leaves, what this one does."""
    rng = np.random.default_rng(0)
    weights = np.sort(rng.lognormal(0, 0.6, 64))
    sizes = np.maximum((weights / weights.sum() * 50_000).astype(int), 1)
    labels = labels_of(sizes)
    # the published order: rank within the cluster, then slices
    within = np.empty(len(labels), dtype=int)
    for c in range(64):
        within[labels == c] = np.arange(sizes[c])
    order = np.argsort(within, kind='stable')
    slices = order[: len(order) // 64 * 64].reshape(-1, 64)
    official = np.mean([len(set(labels[s])) == 64 for s in slices])
    assert official == pytest.approx(sizes.min() * 64 / len(labels), abs=0.01)
    coverage = []
    for batch_size in (64, 48, 32, 16):
        sampler = ClusterDisjointBatchSampler(labels, batch_size)
        batches = np.array(list(sampler))
        assert (np.diff(np.sort(labels[batches], axis=1), axis=1) > 0).all()
        coverage.append(sampler.coverage)
    assert coverage[0] == pytest.approx(official, abs=0.01)
    assert coverage == sorted(coverage)
    assert coverage[-1] > 0.999


def test_digits_of_the_card():
    datasets = pytest.importorskip('sklearn.datasets')
    from clusterplug.estimators import KMeans

    x, y = datasets.load_digits(return_X_y=True)
    rates, rng = {}, np.random.default_rng(0)
    for k, batch_size in ((10, 8), (64, 16)):
        labels = KMeans(k, n_init=3, random_state=0).fit_predict(x)
        sampler = ClusterDisjointBatchSampler(labels, batch_size)
        rates[k] = same_label_rate(sampler, y)
        if k == 10:
            assert sampler.coverage > 0.95
    random = same_label_rate(np.concatenate([rng.permutation(len(y))[:1792].reshape(-1, 8) for _ in range(20)]), y)
    assert rates[10] < 0.05 < 0.08 < rates[64] < 0.095 < random < 0.11


def test_many_clusters():
    sampler = ClusterDisjointBatchSampler(np.arange(200_000) // 2, 256)
    assert len(list(sampler)) == len(sampler) == 781


@pytest.mark.parametrize(('args', 'options', 'error', 'match'), [
    (([0, 1, 2], 4), {}, ValueError, 'must not exceed the number of clusters, 3.*at most 3.*at least 4'),
    (([0.0, 1.0], 1), {}, TypeError, 'labels must be integers'),
    (([], 1), {}, ValueError, 'labels must have shape'),
    (([[0]], 1), {}, ValueError, 'labels must have shape'),
    (('labels.txt', 1), {}, ValueError, r'\.npy'),
    ((None, 1), {}, ValueError, 'labels must be given'),
    (([0, 1], 0), {}, ValueError, 'batch_size'),
    (([0, 1], 1, 'keep'), {}, ValueError, 'leftover'),
    (([0, 1], 1), dict(disjoint='x'), ValueError, 'disjoint'),
    (([0, 1], 1), dict(rank=2, world_size=2), ValueError, 'rank'),
    (([0, 1], 1, 'drop', -1), {}, ValueError, 'seed'),
    (([0, 1], 1), dict(sampler=type('S', (), {'dataset': [1, 2, 3]})()), ValueError, 'the data set, 3, got 2'),
])  # fmt: skip
def test_bad_input(args, options, error, match):
    with pytest.raises(error, match=match):
        ClusterDisjointBatchSampler(*args, **options)


def test_same_label_rate_by_hand():
    assert same_label_rate([[0, 1, 2], [3]], [1, 1, 2, 1]) == pytest.approx(1 / 3)
    assert same_label_rate([[0, 1]], [-1, -1]) == 0
    assert same_label_rate([[0]], [0]) == 0


def test_classes_times_samples():
    labels = labels_of([50, 30, 6, 2])
    sampler = ClassBalancedBatchSampler(labels, 3, 4, seed=1, num_batches=40)
    drawn = np.zeros(4, dtype=int)
    for batch in sampler:
        classes, counts = np.unique(labels[batch], return_counts=True)
        assert len(classes) == 3
        assert (counts == 4).all()
        for c in classes:
            members = [i for i in batch if labels[i] == c]
            assert len(set(members)) == min(4, (labels == c).sum())
        drawn[classes] += 1
    assert drawn.max() - drawn.min() <= 1
    counts = np.bincount(np.concatenate(list(sampler)), minlength=len(labels))
    for c in range(4):
        assert np.ptp(counts[labels == c]) <= 1
    assert len(ClassBalancedBatchSampler(labels, 2, 4)) == 88 // 8
    first = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) != first
    parts = [list(ClassBalancedBatchSampler(labels, 3, 4, num_batches=5, rank=r, world_size=2)) for r in range(2)]
    assert [b for pair in zip(*parts) for b in pair] == list(ClassBalancedBatchSampler(labels, 3, 4, num_batches=10))
    ignored = ClassBalancedBatchSampler([-1, 0, 0, 1, 1, -1], 2, 2)
    assert sorted(next(iter(ignored))) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match='num_classes must not exceed the number of classes in the labels, 4, got 5'):
        ClassBalancedBatchSampler(labels, 5, 2)
    with pytest.raises(ValueError, match='batch_size must be num_classes x samples_per_class, 6, got 7'):
        ClassBalancedBatchSampler(labels, 3, 2, batch_size=7)


def test_small_classes_have_all_their_samples_in_a_batch():
    labels = labels_of([3, 3, 1])
    sampler = ClassBalancedBatchSampler(labels, 3, 4, num_batches=30)
    for batch in sampler:
        counts = np.bincount(batch, minlength=7)
        assert sorted(counts[labels == 0]) == sorted(counts[labels == 1]) == [1, 1, 2]
        assert counts[labels == 2] == [4]
    counts = np.bincount(np.concatenate(list(sampler)), minlength=7)
    assert counts[labels == 0].tolist() == counts[labels == 1].tolist() == [40, 40, 40]
    for batch in ClassBalancedBatchSampler(labels, 3, 10, num_batches=30):  # several times as many places as samples
        assert sorted(np.bincount(batch, minlength=7)[labels == 0]) == [3, 3, 4]


def test_episodes():
    labels = labels_of([20, 20, 17, 16, 3])
    sampler = EpisodeSampler(labels, num_ways=3, num_shots=2, num_queries=14, num_episodes=7)
    seen = set()
    for episode in sampler:
        assert len(set(episode)) == len(episode) == 48
        support, query = labels[episode[:6]], labels[episode[6:]]
        assert (support.reshape(3, 2) == support[::2, None]).all()
        assert (query.reshape(3, 14) == support[::2, None]).all()
        seen |= set(support)
    assert seen == {0, 1, 2, 3}
    first = list(sampler)
    parts = [list(EpisodeSampler(labels, 3, 2, 14, 7, rank=r, world_size=2)) for r in range(2)]
    assert [e for pair in zip(*parts) for e in pair] == [*first, first[0]]
    sampler.set_epoch(1)
    assert list(sampler) != first
    with pytest.raises(ValueError, match='num_ways must not exceed the number of classes of at least 17 samples, 3'):
        EpisodeSampler(labels, 5, 2, 15)
    with pytest.raises(ValueError, match='at least 1 samples, 0'):
        EpisodeSampler([-1, -1], 1, 1, 0)


def test_in_a_data_loader_and_a_config():
    pytest.importorskip('mmengine')
    labels = labels_of([8, 8, 8, 8])
    config = dict(type='ClusterDisjointBatchSampler', labels=labels)
    sampler = DATA_SAMPLERS.build(config, default_args=dict(sampler=torch.arange(32), batch_size=4))
    loader = torch.utils.data.DataLoader(torch.arange(32), batch_sampler=sampler)
    assert len(loader) == 8
    for batch in loader:
        assert len(set(labels[batch.numpy()])) == 4
    from types import SimpleNamespace

    from mmengine.hooks import DistSamplerSeedHook

    before = list(sampler)
    runner = SimpleNamespace(train_loop=SimpleNamespace(dataloader=loader), epoch=5)
    DistSamplerSeedHook().before_train_epoch(runner)
    assert sampler.epoch == 5
    assert list(sampler) != before
