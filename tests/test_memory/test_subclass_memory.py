# SPDX-License-Identifier: Apache-2.0
"""SubclassMemory: rings, momentum centers and seeds against plain loops; state and checkpoints."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from clusterplug.memory import SubclassMemory
from clusterplug.memory.subclass_memory import clusters_per_class
from clusterplug.testing import count_host_syncs, run_gloo

BUFFERS = ('center_store', 'queue_store', 'num_seeded', 'num_enqueued', 'sizes', 'step')


def _unit(generator, *shape):
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def _seeded(num_classes=3, num_clusters=4, dims=5, seed=0, **options):
    """A memory whose centers all exist."""
    memory = SubclassMemory(num_classes, num_clusters, dims, **options)
    g = torch.Generator().manual_seed(seed)
    # twice, so that normalising once more changes next to nothing
    memory.centers.copy_(F.normalize(_unit(g, *memory.centers.shape), dim=-1))
    memory.num_seeded.copy_(memory.clusters_of[:, 0])
    return memory


def _batch(memory, seed, slots=12, share=0.7):
    g = torch.Generator().manual_seed(seed)
    x = _unit(g, memory.num_classes, slots, memory.embed_dims)
    valid = torch.rand(memory.num_classes, slots, generator=g) < share
    valid[:, -1] = False
    ids = torch.randint(0, memory.num_clusters, valid.shape, generator=g)
    ids = torch.minimum(ids, memory.num_seeded[:, None] - 1).masked_fill(~valid, memory.num_clusters)
    ids[ids < 0] = memory.num_clusters
    return x, ids, torch.rand(valid.shape, generator=g) + 0.1, valid


def _update_by_loop(memory, rings, centers, x, ids, momentum):
    """Rings as lists of slots and centers as the card states them, one anchor after the other."""
    for c in range(memory.num_classes):
        for k in range(memory.num_clusters):
            members = [x[c, v] for v in range(x.shape[1]) if ids[c, v] == k]
            slots, pointer = rings.setdefault((c, k), ([None] * memory.queue_len, 0))
            for vector in members[: memory.enqueue_per_step]:
                slots[pointer] = vector
                pointer = (pointer + 1) % memory.queue_len
            rings[c, k] = slots, pointer
            if members:
                mean = torch.stack(members).double().mean(0)
                moved = momentum * centers[c, k] + (1 - momentum) * mean
                centers[c, k] = moved / moved.norm()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), num_clusters=st.integers(1, 4), queue_len=st.integers(1, 6),
    per_step=st.integers(1, 5), slots=st.integers(2, 14), momentum=st.sampled_from([0.0, 0.3, 0.9]),
)  # fmt: skip
def test_rings_and_centers_equal_a_loop(seed, num_clusters, queue_len, per_step, slots, momentum):
    memory = _seeded(3, num_clusters, queue_len=queue_len, enqueue_per_step=per_step, seed=seed)
    rings, centers = {}, memory.centers.double().clone()
    for step in range(6):
        x, ids, distance, valid = _batch(memory, seed + step, slots)
        _update_by_loop(memory, rings, centers, x, ids, momentum)
        memory.update(x, ids, distance, valid, momentum)
    torch.testing.assert_close(memory.centers.double(), centers, rtol=1e-4, atol=1e-5)
    for (c, k), (ring, pointer) in rings.items():
        filled = sum(vector is not None for vector in ring)
        assert memory.num_filled[c, k] == filled
        assert memory.num_enqueued[c, k] % memory.queue_len == pointer
        for slot in range(filled):
            assert torch.equal(memory.queue[c, k, slot], ring[slot])
        assert not memory.queue[c, k, filled:].any()


def test_no_more_than_allowed_enter_a_ring_in_a_step():
    memory = _seeded(1, 1, queue_len=8, enqueue_per_step=3)
    x = _unit(torch.Generator().manual_seed(0), 1, 11, 5)
    ids = torch.tensor([[0] * 10 + [1]])
    memory.update(x, ids, torch.ones(1, 11), ids == 0, 0.9)
    assert memory.num_filled.tolist() == [[3]]
    assert torch.equal(memory.queue[0, 0, :3], x[0, :3])


def test_center_of_an_empty_cluster_stays():
    memory = _seeded(2, 4)
    before = memory.centers.clone()
    for step in range(200):
        x, ids, distance, valid = _batch(memory, step)
        ids[ids == 2] = 1
        memory.update(x, ids, distance, valid, 0.9)
        if step == 0:
            assert (memory.centers[:, 2] - before[:, 2]).abs().max() < 1e-7
    assert (memory.centers[:, 2] - before[:, 2]).abs().max() < 5e-7
    assert (memory.centers[:, 0] - before[:, 0]).abs().max() > 0.1
    torch.testing.assert_close(memory.centers.norm(dim=-1), torch.ones(2, 4), rtol=0, atol=1e-6)


def test_momentum_one_freezes_and_zero_takes_the_mean():
    memory = _seeded(2, 3)
    before = memory.centers.clone()
    x, ids, distance, valid = _batch(memory, 1, slots=30)
    memory.update(x, ids, distance, valid, 1.0)
    torch.testing.assert_close(memory.centers, before, rtol=0, atol=1e-7)
    memory.update(x, ids, distance, valid, 0.0)
    for c in range(2):
        for k in range(3):
            mean = F.normalize(x[c][ids[c] == k].mean(0), dim=0)
            torch.testing.assert_close(memory.centers[c, k], mean, rtol=1e-5, atol=1e-6)


def test_loose_clusters_move_slower():
    """The mean of the members is not normalized before it is mixed in."""
    memory = _seeded(1, 2, dims=3)
    memory.centers.copy_(torch.tensor([[[1.0, 0, 0], [1.0, 0, 0]]]))
    tight, loose = torch.tensor([0.0, 1.0, 0.0]), F.normalize(torch.tensor([[0, 1.0, 2.0], [0, 1.0, -2.0]]), dim=1)
    x = torch.stack([tight, tight, loose[0], loose[1], tight])[None]
    ids = torch.tensor([[0, 0, 1, 1, 2]])
    memory.update(x, ids, torch.ones(1, 5), ids < 2, 0.9)
    first, second = memory.centers[0, :, 1]
    assert first > 2 * second > 0


def test_seeds_are_data_and_come_a_few_a_step_up_to_the_clusters_of_the_class():
    memory = SubclassMemory(3, {0: 5, 1: 2, 'default': 8}, 4, seeds_per_step=2)
    g = torch.Generator().manual_seed(0)
    seen = []
    for step in range(6):
        x = _unit(g, 3, 10, 4)
        valid = torch.ones(3, 10, dtype=torch.bool)
        valid[:, -1] = False
        valid[2, 1:] = False  # class 2 shows one point a step
        before = memory.num_seeded.clone()
        ids = torch.full((3, 10), 8)
        memory.update(x, ids, torch.ones(3, 10), valid, 0.9)
        for c in range(3):
            for k in range(int(before[c]), int(memory.num_seeded[c])):
                assert (memory.centers[c, k] == x[c][valid[c]]).all(1).sum() == 1
        seen.append(memory.num_seeded.tolist())
        assert int(memory.step) == step + 1
    assert seen == [[2, 2, 1], [4, 2, 2], [5, 2, 3], [5, 2, 4], [5, 2, 5], [5, 2, 6]]
    assert torch.equal(memory.unused.sum(1), torch.tensor([4, 7, 3]))
    assert not memory.centers[1, 2:].any()


def test_copies_of_a_center_and_empty_slots_are_never_seeds():
    memory = SubclassMemory(1, 4, 3)
    x, valid = torch.eye(3)[None], torch.tensor([[True, True, False]])
    memory.update(x, torch.full((1, 3), 4), torch.tensor([[0.0, -1e-3, 1.0]]), valid, 0.9)
    assert memory.num_seeded.item() == 0


def test_seeds_are_drawn_in_proportion_to_their_squared_distance():
    distance = torch.tensor([[1.0, 2.0, 5.0, 0.0]])
    counts = torch.zeros(3)
    memory = SubclassMemory(1, 1, 3)
    for step in range(800):
        memory.num_seeded.zero_()
        memory._step = step
        memory.update(torch.eye(4, 3)[None], torch.ones(1, 4, dtype=torch.long), distance, distance > 0, 0.9)
        counts += memory.centers[0, 0]
    expected = 800 * distance[0, :3] / 8
    assert float(((counts - expected) ** 2 / expected).sum()) < 20  # 2 degrees of freedom


def test_nothing_valid_changes_nothing_but_the_counter():
    memory = _seeded(2, 3)
    x, ids, distance, valid = _batch(memory, 0)
    memory.update(x, ids, distance, valid, 0.9)
    before = copy.deepcopy(memory.state_dict())
    memory.update(x, torch.full_like(ids, 3), distance, torch.zeros_like(valid), 0.9)
    after = memory.state_dict()
    assert after['step'] == before['step'] + 1
    for name in ('queue_store', 'num_seeded', 'num_enqueued'):
        assert torch.equal(after[name], before[name]), name
    torch.testing.assert_close(after['center_store'], before['center_store'], rtol=0, atol=1e-7)
    torch.testing.assert_close(after['sizes'], before['sizes'] * 0.99)


def test_sizes_follow_the_anchors_per_step():
    memory = _seeded(1, 2)
    ids = torch.tensor([[0, 0, 0, 1, 2]])
    x = _unit(torch.Generator().manual_seed(0), 1, 5, 5)
    for _ in range(700):
        memory.update(x, ids, torch.ones(1, 5), ids < 2, 0.9)
    torch.testing.assert_close(memory.sizes, torch.tensor([[3.0, 1.0, 0.0]]), rtol=2e-3, atol=0)


def test_no_host_synchronisation():
    memory = _seeded()
    batch = _batch(memory, 0)
    assert count_host_syncs(lambda: memory.update(*batch, 0.9)).total() == 0


def _run(memory, steps, start=0):
    for step in range(start, start + steps):
        memory.update(*_batch(memory, step), 0.9)
    return memory.state_dict()


def _same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_state_dict_names_only_the_state_and_comes_back():
    memory = SubclassMemory(3, [2, 4, 3], 5, queue_len=6)
    _run(memory, 4)
    saved = copy.deepcopy(memory.state_dict())
    assert set(saved) == set(BUFFERS)
    again = SubclassMemory(3, [2, 4, 3], 5, queue_len=6)
    again.load_state_dict(saved)
    _same(again.state_dict(), saved)
    # seeds are still being drawn: the random choices must go on as in the first
    _same(_run(again, 5, start=4), _run(memory, 5, start=4))


def test_saving_in_between_changes_nothing_that_follows():
    plain, saved = SubclassMemory(3, 4, 5), SubclassMemory(3, 4, 5)
    for step in range(6):
        _run(plain, 1, start=step)
        _run(saved, 1, start=step)
        saved.state_dict()
    _same(plain.state_dict(), saved.state_dict())


def test_deepcopy_is_independent_and_goes_on_the_same():
    memory = SubclassMemory(3, 4, 5)
    _run(memory, 2)
    twin = copy.deepcopy(memory)
    _same(_run(memory, 3, start=2), _run(twin, 3, start=2))
    _run(memory, 1, start=5)
    assert memory.step != twin.step
    assert memory.center_store.data_ptr() != twin.center_store.data_ptr()


@pytest.mark.parametrize('strict', [True, False])
def test_checkpoint_of_other_sizes_leaves_the_memory_alone(strict):
    other = SubclassMemory(5, 4, 5)
    _run(other, 3)
    model = torch.nn.ModuleDict({'memory': _seeded(3, 4, 5)})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r'memory of other sizes.*center_store is \(5, 5, 5\), expected \(3, 5, 5\)'):
        model.load_state_dict({f'memory.{k}': v for k, v in other.state_dict().items()}, strict=strict)
    _same(model.state_dict(), before)
    assert model['memory']._step == 0


def test_mmengine_loads_the_rest_of_such_a_checkpoint(caplog):
    from mmengine.runner.checkpoint import load_state_dict

    other = torch.nn.ModuleDict({'memory': SubclassMemory(5, 4, 5), 'net': torch.nn.Linear(2, 2)})
    model = torch.nn.ModuleDict({'memory': _seeded(3, 4, 5), 'net': torch.nn.Linear(2, 2)})
    before = copy.deepcopy(model['memory'].state_dict())
    load_state_dict(model, other.state_dict(), strict=False)
    _same(model['memory'].state_dict(), before)
    assert torch.equal(model['net'].weight, other['net'].weight)


@pytest.mark.parametrize(
    ('num_clusters', 'expected'),
    [
        (4, [4, 4, 4]),
        ([1, 2, 3], [1, 2, 3]),
        ((3, 2, 1), [3, 2, 1]),
        ({1: 7}, [40, 7, 40]),
        ({'default': 5, 0: 2}, [2, 5, 5]),
        ({}, [40, 40, 40]),
    ],
)
def test_clusters_per_class(num_clusters, expected):
    assert clusters_per_class(num_clusters, 3) == expected


@pytest.mark.parametrize(
    ('num_clusters', 'message'),
    [
        ([1, 2], '3 classes.*got 2 numbers'),
        ({3: 5}, r'keys \[3\]'),
        ({'car': 5}, r"keys \['car'\]"),
        (0, 'at least 1'),
        ([1, 2.0, 3], 'integers'),
        ({'default': -1}, 'at least 1'),
        ([True, 1, 1], 'integers'),
    ],
)
def test_bad_clusters_per_class(num_clusters, message):
    with pytest.raises(ValueError, match=message):
        SubclassMemory(3, num_clusters, 4)


@pytest.mark.parametrize('name', ['num_classes', 'embed_dims', 'queue_len', 'enqueue_per_step', 'seeds_per_step'])
@pytest.mark.parametrize('value', [0, -1, 2.5, True, '3'])
def test_bad_sizes(name, value):
    with pytest.raises(ValueError, match=name):
        SubclassMemory(**{**dict(num_classes=3, num_clusters=2), name: value})


def _average_buffers(rank, size):
    from mmengine.hooks import SyncBuffersHook

    memory = _seeded(3, 4, 5)
    model = torch.nn.ModuleDict({'memory': memory, 'norm': torch.nn.BatchNorm1d(2)})
    model['norm'].running_mean.fill_(float(rank))
    for step in range(4):
        _run(memory, 1, start=step)
    before = copy.deepcopy(memory.state_dict())
    runner = type('Runner', (), {'model': model})()
    SyncBuffersHook().after_train_epoch(runner)
    return before, memory.state_dict(), model['norm'].running_mean


def test_the_memory_is_left_out_where_buffers_are_averaged():
    from clusterplug.compat.mmengine.sync_buffers import averaged_buffers

    model = torch.nn.ModuleDict({'memory': SubclassMemory(2, 3, 4), 'norm': torch.nn.BatchNorm1d(2)})
    assert {id(buffer) for buffer in averaged_buffers(model)} == {id(buffer) for buffer in model['norm'].buffers()}


@pytest.mark.slow
@pytest.mark.parametrize('size', [2, 3])
def test_sync_buffers_hook_leaves_the_memory_bit_for_bit(size):
    results = run_gloo(_average_buffers, size)
    for before, after, mean in results:
        _same(before, after)
        _same(after, results[0][1])
        torch.testing.assert_close(mean, torch.full((2,), (size - 1) / 2))
