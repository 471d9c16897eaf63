# SPDX-License-Identifier: Apache-2.0
"""FeatureQueue: the ring against a list, bad rows, state, uneven ranks."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.memory import FeatureQueue, LogitsBuffer
from clusterplug.registry import MODELS
from clusterplug.testing import count_host_syncs, run_gloo


def _sorted(rows):
    return sorted(map(tuple, rows.tolist()))


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 7), pushes=st.lists(st.integers(0, 9), max_size=6), seed=st.integers(0, 99))
def test_ring_holds_the_rows_of_a_shifting_list(length, pushes, seed):
    generator = torch.Generator().manual_seed(seed)
    queue, kept, number = FeatureQueue(length, 3, labels=torch.int64), [], 0
    for size in pushes:
        x = torch.randn(size, 3, generator=generator)
        labels = torch.arange(number, number + size)
        number += size
        queue.push(x, labels=labels)
        kept = (kept + list(zip(map(tuple, x.tolist()), labels.tolist())))[-length:]
        rows, valid, extra = queue.read()
        assert len(queue) == int(valid.sum()) == len(kept)
        assert queue.full == (number >= length)
        found = zip(map(tuple, rows[valid].tolist()), extra['labels'][valid].tolist())
        assert sorted(found) == sorted(kept)
        assert not rows[~valid].any()


def test_after_three_pushes_the_newest_rows_are_there():
    queue = FeatureQueue(4, 1)
    for start in (0, 2, 4):
        queue.push(torch.tensor([[start], [start + 1]], dtype=torch.float32))
    assert _sorted(queue.read().rows) == [(2,), (3,), (4,), (5,)]


def test_bad_rows_take_a_slot_that_is_not_valid():
    queue = FeatureQueue(3, 2)
    queue.push(torch.tensor([[1.0, 2.0], [math.nan, 0.0], [0.0, math.inf]]))
    rows, valid, _ = queue.read()
    assert valid.tolist() == [True, False, False]
    assert torch.isfinite(rows).all()
    assert queue.full
    queue.push(torch.full((3, 2), 3e38, dtype=torch.float64))
    assert queue.read().valid.all()


def test_columns_of_every_kind():
    queue = FeatureQueue(3, 2, labels='int64', logits=4, votes=(2, torch.int32))
    queue.push(
        torch.zeros(1, 2),
        labels=torch.tensor([7]), logits=torch.ones(1, 4), votes=torch.ones(1, 2, dtype=torch.int32),
    )  # fmt: skip
    extra = queue.read().extra
    assert extra['labels'].tolist() == [7, 0, 0]
    assert extra['logits'].shape == (3, 4)
    assert extra['votes'].dtype == torch.int32


def test_state_survives_a_checkpoint_a_copy_and_a_cast():
    queue = FeatureQueue(4, 2)
    queue.push(torch.randn(3, 2))
    other = FeatureQueue(4, 2)
    other.load_state_dict(queue.state_dict())
    for each in (other, copy.deepcopy(queue), queue.half()):
        assert len(each) == 3
        assert each.rows.dtype == torch.float32
        each.push(torch.ones(2, 2, dtype=torch.float16))
        assert each.full
        assert int(each.count) == 5
    torch.testing.assert_close(other.rows, queue.rows)
    with pytest.raises(RuntimeError, match='size mismatch'):
        FeatureQueue(5, 2).load_state_dict(queue.state_dict())


def test_a_push_waits_for_nothing_and_touches_only_its_rows():
    queue, x = FeatureQueue(1000, 2), torch.randn(8, 2, requires_grad=True)
    assert not count_host_syncs(lambda: (queue.push(x), queue.read()))
    assert not queue.rows.requires_grad


def test_bad_input():
    queue = FeatureQueue(4, 2, labels='int64')
    with pytest.raises(ValueError, match=r'\(N, 2\)'):
        queue.push(torch.zeros(2, 3), labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match='floating'):
        queue.push(torch.zeros(2, 2, dtype=torch.int64), labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\['labels'\] by name"):
        queue.push(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r'labels must be a tensor of shape \(2,\)'):
        queue.push(torch.zeros(2, 2), labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match='length must be at least 1'):
        FeatureQueue(0, 2)
    with pytest.raises(TypeError, match='labels must be a dtype'):
        FeatureQueue(4, 2, labels='integer')


def _push_uneven(rank, size):
    queue = FeatureQueue(7, 2, labels='int64')
    for step, sizes in enumerate([(3, 1), (0, 2), (0, 0), (5, 9)]):
        first = 100 * step + sum(sizes[:rank])
        numbers = torch.arange(first, first + sizes[rank])
        queue.push(numbers[:, None].expand(-1, 2).float(), labels=numbers)
    return queue.state_dict()


def test_uneven_ranks_hold_the_queue_of_one_process():
    ranks = run_gloo(_push_uneven, 2)
    one = FeatureQueue(7, 2, labels='int64')
    for step, total in enumerate((4, 2, 0, 14)):
        numbers = torch.arange(100 * step, 100 * step + total)
        one.push(numbers[:, None].expand(-1, 2).float(), labels=numbers)
    for state in ranks:
        for name, value in one.state_dict().items():
            assert torch.equal(state[name], value), name


def test_the_name_of_the_papers_builds_it_too():
    queue = MODELS.build(dict(type='clusterplug.LogitsBuffer', length=3, embed_dims=2))
    assert type(queue) is LogitsBuffer is FeatureQueue
