# SPDX-License-Identifier: Apache-2.0
"""ClusteredMemory: ring, balanced nearest assignment, incremental sums, look-up inside clusters, state, ranks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from clusterplug.memory import ClusteredMemory
from clusterplug.testing import count_host_syncs, run_gloo


def rows(count, dims=6, seed=0, kinds=None):
    """Rows around ``kinds`` directions, not of length 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dims, generator=generator)
    if kinds:
        centers = 4 * torch.eye(dims)[:kinds]
        x = 0.3 * x + centers[torch.arange(count) % kinds]
    return x * (0.5 + torch.rand(count, 1, generator=generator))


def full(length=24, clusters=3, kinds=3, **options):
    memory = ClusteredMemory(length, 6, clusters, **options)
    memory.push(rows(length, kinds=kinds))
    assert memory.clustered
    return memory


def check_sums(memory):
    for k in range(memory.num_clusters):
        members = memory.labels == k
        assert int(members.sum()) == int(memory.counts[k])
        torch.testing.assert_close(memory.queue.rows[members].double().sum(0), memory.sums[k], rtol=0, atol=1e-9)
        if members.any() and memory.momentum == 0:
            torch.testing.assert_close(memory.queue.rows[members].mean(0), memory.prototypes[k], rtol=1e-5, atol=1e-6)


def test_ring_is_first_in_first_out_with_exact_content():
    memory, parts = ClusteredMemory(10, 6, 2), [rows(4, seed=s) for s in range(4)]
    for part in parts[:2]:
        memory.push(part)
    assert not memory.clustered
    assert torch.equal(memory.queue.rows[:8], torch.cat(parts[:2]))
    assert memory.labels.eq(-1).all()
    memory.push(parts[2])
    assert memory.clustered
    expected = torch.cat([parts[2][2:], parts[0][2:], parts[1], parts[2][:2]])
    assert torch.equal(memory.queue.rows, expected)
    memory.push(parts[3])
    assert torch.equal(memory.queue.rows[2:6], parts[3])
    assert int(memory.queue.count) == 16
    memory.push(rows(25, seed=9))  # more than it holds: the last ones stay
    assert {tuple(r) for r in memory.queue.rows.tolist()} == {tuple(r) for r in rows(25, seed=9)[-10:].tolist()}
    check_sums(memory)


def test_sums_follow_new_and_overwritten_rows():
    memory = full(clusters=4)
    for seed in range(1, 30):
        memory.push(rows(1 + seed % 7, seed=seed, kinds=3))
        check_sums(memory)


def test_assignment_prefers_the_nearest_prototypes_in_equal_shares():
    generator = torch.Generator().manual_seed(0)
    x, prototypes = (F.normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (64, 8))
    memory = ClusteredMemory(200, 16, 8, num_iters=50)
    memory.prototypes.copy_(prototypes)
    memory._clustered = True
    memory.has_clusters.fill_(True)
    memory.push(x)
    labels = memory.labels[:64]
    counts = torch.bincount(labels, minlength=8)
    assert counts.min() >= 6
    assert counts.max() <= 11
    distances = torch.cdist(x, prototypes)
    assert (labels == distances.argmin(1)).float().mean() > 0.75  # theirs: 0 %
    assert (labels == distances.argmax(1)).float().mean() == 0  # theirs: 86 %
    # where the shares are equal by themselves, everyone gets the nearest
    memory = full(24, 3, 3)
    found = torch.cdist(F.normalize(rows(12, seed=5, kinds=3), dim=1), F.normalize(memory.prototypes, dim=1)).argmin(1)
    memory.push(rows(12, seed=5, kinds=3))
    assert torch.equal(memory.labels[:12], found)


def test_empty_cluster_keeps_its_prototype_and_spoils_no_other():
    memory = full(12, 3, 3, momentum=0.5)
    lonely = memory.prototypes.clone()
    memory.labels[memory.labels == 1] = 2
    memory.sums[2] += memory.sums[1]
    memory.counts[2] += memory.counts[1]
    memory.sums[1], memory.counts[1] = 0, 0
    memory._move_prototypes()
    assert torch.equal(memory.prototypes[1], lonely[1])
    for k in (0, 2):
        mean = memory.queue.rows[memory.labels == k].mean(0)
        torch.testing.assert_close(memory.prototypes[k], 0.5 * lonely[k] + 0.5 * mean)


def query_by_loop(memory, x, k):
    """Slots of the neighbors, one query after the other."""
    found = []
    for row in x:
        home = F.cosine_similarity(row[None], memory.prototypes).argmax()
        slots = (memory.labels == home).nonzero().flatten()
        if len(slots) < k:
            slots = memory.queue.usable.nonzero().flatten()
        similar = F.cosine_similarity(row[None], memory.queue.rows[slots])
        found.append(slots[similar.argsort(descending=True)[:k]])
    return torch.stack(found)


@pytest.mark.parametrize('by_cluster', [True, False])  # on the host, and as on a device
@pytest.mark.parametrize('k', [1, 3, 9])
def test_query_equals_the_loop_and_stays_in_the_cluster(k, by_cluster, monkeypatch):
    if not by_cluster:
        monkeypatch.setattr('clusterplug.memory.clustered_memory.host_checks_allowed', lambda x: False)
    memory, x = full(), rows(10, seed=3, kinds=3)
    found = memory.query(x, k)
    assert torch.equal(found.indices, query_by_loop(memory, x, k))
    assert torch.equal(found.rows, memory.queue.rows[found.indices])
    assert found.valid.all()
    home = (F.normalize(x, dim=1) @ F.normalize(memory.prototypes, dim=1).T).argmax(1)
    if k < 9:  # 8 of each kind
        assert (memory.labels[found.indices] == home[:, None]).all()


def test_both_ways_of_a_query_agree_where_rows_are_missing(monkeypatch):
    memory, x = full(), rows(12, seed=5, kinds=3)
    for broken in (memory.queue.usable[::4], memory.queue.usable):  # clusters of fewer than k rows; then no row at all
        broken[:] = False
        x[3] = math.nan
        found = memory.query(x, 5)
        with monkeypatch.context() as patch:
            patch.setattr('clusterplug.memory.clustered_memory.host_checks_allowed', lambda x: False)
            expected = memory.query(x, 5)
        assert torch.equal(found.valid, expected.valid)
        assert torch.equal(found.indices[found.valid], expected.indices[expected.valid])
        assert torch.equal(found.rows, expected.rows)
        assert not found.valid[3].any()
    assert not found.valid.any()


def test_query_before_push_never_finds_the_query():
    memory = full()
    x = rows(6, seed=4, kinds=3)
    before = memory.query(x, 5).rows
    memory.push(x)
    assert (before - x[:, None]).norm(dim=-1).min() > 1e-3
    assert torch.equal(memory.query(x, 1).rows[:, 0], x)  # after the push they do


def test_one_cluster_is_the_plain_nearest_neighbor_queue():
    memory, x = full(clusters=1), rows(5, seed=6)
    similar = F.normalize(x, dim=1) @ F.normalize(memory.queue.rows, dim=1).T
    assert torch.equal(memory.query(x, 4).indices, similar.topk(4, dim=1).indices)


def test_few_rows_odd_rows_and_types():
    memory = ClusteredMemory(12, 6, 2)
    assert not memory.query(rows(3), 2).valid.any()
    memory.push(rows(3, seed=1))
    found = memory.query(rows(2, seed=2), 5)
    assert found.valid.tolist() == [[True] * 3 + [False] * 2] * 2
    assert found.rows[:, 3:].eq(0).all()
    odd = rows(8, seed=3)
    odd[0, 1], odd[1, 2], odd[2] = torch.nan, -torch.inf, 1e30
    memory.push(odd)
    memory.push(rows(1, seed=4))
    memory.push(odd)
    assert memory.clustered
    check_sums(memory)
    bad = [int(i) for i in (~memory.queue.usable).nonzero()]
    assert bad == [0, 1, 2]  # those of the first push are overwritten
    assert memory.labels[bad].eq(-1).all()
    found = memory.query(rows(20, seed=5), 8)
    assert not set(bad) & set(found.indices[found.valid].tolist())
    queries = rows(3, seed=6)
    expected = memory.query(queries, 2).indices
    queries[1, 0] = torch.nan
    found = memory.query(queries, 2)
    assert found.valid.all(1).tolist() == [True, False, True]
    assert torch.equal(found.indices[[0, 2]], expected[[0, 2]])
    half = memory.query(rows(3, seed=6).bfloat16(), 2)
    assert half.rows.dtype == torch.bfloat16
    assert memory.half().sums.dtype == torch.float64
    assert memory.prototypes.dtype == torch.float32
    assert memory.query(rows(0), 2).rows.shape == (0, 2, 6)
    memory.push(rows(0))


def test_recluster_starts_from_the_prototypes_and_needs_enough_rows():
    memory = full(30, 3, 3)
    before = memory.labels.clone()
    memory.recluster()
    check_sums(memory)
    assert torch.equal(memory.labels, before)  # kinds are far apart: the same clusters under the same numbers
    fresh = ClusteredMemory(30, 6, 3)
    fresh.push(rows(2))
    with pytest.raises(ValueError, match='too few for 3 clusters'):
        fresh.recluster()


def test_state_goes_round_and_goes_on_alike():
    memory = full()
    memory.push(rows(5, seed=2, kinds=3))
    other = ClusteredMemory(24, 6, 3)
    other.load_state_dict(copy.deepcopy(memory.state_dict()))
    for seed in range(3, 8):
        for each in (memory, other):
            each.push(rows(5, seed=seed, kinds=3))
    for name, value in memory.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_no_host_synchronization_in_a_step_on_a_device(monkeypatch):
    monkeypatch.setattr('clusterplug.memory.clustered_memory.host_checks_allowed', lambda x: False)
    memory, x = full(), rows(6, seed=7, kinds=3)

    def step():
        memory.query(x, 3)
        memory.push(x)

    assert count_host_syncs(step).total() == 0


def one_rank(rank, world_size):
    memory = ClusteredMemory(12, 6, 3)
    for seed in range(4):
        x = rows(6, seed=seed, kinds=3)
        memory.push(x[: 2 + seed % 2] if rank == 0 else x[2 + seed % 2 :])
    return memory.state_dict()


def test_two_ranks_with_uneven_rows_hold_what_one_process_holds():
    single = ClusteredMemory(12, 6, 3)
    for seed in range(4):
        single.push(rows(6, seed=seed, kinds=3))
    for state in run_gloo(one_rank, 2):
        for name, value in single.state_dict().items():
            assert torch.equal(state[name], value), name


def test_bad_input():
    with pytest.raises(ValueError, match='num_clusters must be at most length, 4'):
        ClusteredMemory(4, 6, 5)
    for options, name in [({'epsilon': 0}, 'epsilon'), ({'momentum': 2}, 'momentum'), ({'num_iters': 0}, 'num_iters')]:
        with pytest.raises(ValueError, match=name):
            ClusteredMemory(4, 6, 2, **options)
    memory = full()
    with pytest.raises(ValueError, match='k must be between 1 and 24, got 25'):
        memory.query(rows(2), 25)
    with pytest.raises(ValueError, match=r'x must have shape \(N, 6\)'):
        memory.push(rows(2, dims=5))
    with pytest.raises(TypeError, match='x must be a floating tensor'):
        memory.query(torch.ones(2, 6, dtype=torch.int64), 2)
