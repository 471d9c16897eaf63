# SPDX-License-Identifier: Apache-2.0
"""PointClusterLoss on gloo ranks with uneven data: the state and the mean gradient of one process."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_point_cluster import make, total

from clusterplug.testing import run_gloo

STEPS = 4
OPTIONS = dict(num_anchors_per_class=90, sampler=dict(enqueue_per_step=60), queue_len=300)


def _rank_batch(rank, step):
    """Points of one rank: rank 1 never sees class 2, has no labels in step 1 and only ignored ones in step 2."""
    g = torch.Generator().manual_seed(10 * step + rank)
    num_points = (50, 23, 9)[rank]
    labels = torch.randint(0, 2 if rank == 1 else 3, (num_points,), generator=g)
    predictions = torch.randint(0, 3, (num_points,), generator=g)
    features = torch.randn(num_points, 8, generator=g)
    if rank == 1 and step == 1:
        return features[:0], labels[:0], predictions[:0]
    if rank == 1 and step == 2:
        labels = torch.full_like(labels, 255)
    return features, labels, predictions


def _gradients(loss, features, losses):
    loss.zero_grad()
    total(losses).backward()
    return [features.grad, *(parameter.grad.clone() for parameter in loss.parameters())]


def _run(rank, size, terms=None):
    loss = make(**OPTIONS, contrast=dict(terms=terms) if terms else None)
    results = []
    for step in range(STEPS):
        features, labels, predictions = _rank_batch(rank, step)
        features.requires_grad_()
        losses = loss(features, labels, predictions)
        values = {name: value.item() for name, value in losses.items()}
        results.append((values, _gradients(loss, features, losses), copy.deepcopy(loss.memory.state_dict())))
    seeding = make(centers=False)  # random draws, and more anchors than a class may give
    for step in range(STEPS):
        seeding(*_rank_batch(rank, step))
    return results, seeding.memory.state_dict()


def _sorted_ring(memory):
    """The queue without the order of its slots."""
    return memory['queue_store'][:, :-1].sort(dim=2).values


@pytest.mark.parametrize(('size', 'terms'), [
    (2, None), pytest.param(3, None, marks=pytest.mark.slow), pytest.param(2, ('center',), marks=pytest.mark.slow),
])  # fmt: skip
def test_ranks_with_uneven_data_equal_one_process(size, terms):
    ranks, seeded = zip(*run_gloo(_run, size, terms))
    single = make(**OPTIONS, contrast=dict(terms=terms) if terms else None)
    for step in range(STEPS):
        batches = [_rank_batch(rank, step) for rank in range(size)]
        features, labels, predictions = (torch.cat(parts) for parts in zip(*batches))
        features.requires_grad_()
        losses = single(features, labels, predictions)
        gradient, *weights = _gradients(single, features, losses)
        here = [rank[step] for rank in ranks]
        for name, value in losses.items():
            mean = sum(values[name] for values, _, _ in here) / size
            assert mean == pytest.approx(value.item(), rel=1e-5, abs=1e-7)
        # DistributedDataParallel takes the mean over the ranks
        ours = torch.cat([gradients[0] for _, gradients, _ in here]) / size
        torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-6)
        for parts, weight in zip(zip(*(gradients[1:] for _, gradients, _ in here)), weights):
            torch.testing.assert_close(sum(parts) / size, weight, rtol=1e-4, atol=1e-6)
        memory = single.memory.state_dict()
        for _, _, state in here:
            for name in state:  # bit for bit the same on all ranks
                assert torch.equal(state[name], here[0][2][name]), name
            torch.testing.assert_close(state['center_store'], memory['center_store'], rtol=0, atol=1e-6)
            torch.testing.assert_close(state['sizes'], memory['sizes'], rtol=0, atol=1e-6)
            assert torch.equal(state['num_enqueued'], memory['num_enqueued'])
            torch.testing.assert_close(_sorted_ring(state), _sorted_ring(memory), rtol=0, atol=1e-6)
    for state in seeded:
        assert (state['num_seeded'] > 0).all()
        for name in state:
            assert torch.equal(state[name], seeded[0][name]), name


def _full_rank(rank, size):
    """Every rank has more anchors of one subclass than may enter; those of rank r lie along axis r."""
    loss = make(1, 1, projector=torch.nn.Identity(), num_anchors_per_class=20)
    loss(F.one_hot(torch.full((50,), rank), 8).float(), torch.zeros(50, dtype=torch.long))
    return loss.memory.queue[0, 0, :10].sum(0)


@pytest.mark.slow
def test_all_ranks_enter_the_queue():
    for entered in run_gloo(_full_rank, 2):
        assert entered[:2].tolist() == [5, 5]
