# SPDX-License-Identifier: Apache-2.0
"""Mini-batch k-means: running means by hand, scikit-learn as a rough oracle, moves, ranks, bad input."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clusterplug.functional.kmeans import (
    MiniBatchKMeansState,
    kmeans,
    minibatch_kmeans_start,
    minibatch_kmeans_update,
    nearest_center,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixture(num_points, num_modes=8, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    modes = 6 * randn(num_modes, dim, seed=99)
    return modes[torch.randint(num_modes, (num_points,), generator=generator)] + randn(num_points, dim, seed=seed + 1)


def test_center_is_the_mean_of_all_its_points():
    state = MiniBatchKMeansState(torch.tensor([[0.0], [10.0]]), torch.zeros(2).double(), 0, 0)
    step = minibatch_kmeans_update(state, torch.tensor([[1.0], [3.0], [8.0]]))
    assert step.labels.tolist() == [0, 0, 1]
    assert float(step.inertia) == 1 + 9 + 4
    assert step.state.centers.flatten().tolist() == [2.0, 8.0]
    step = minibatch_kmeans_update(step.state, torch.tensor([[5.0], [9.0], [12.0]]), weights=torch.tensor([0.0, 1, 3]))
    assert step.state.centers.flatten().tolist() == pytest.approx([2.0, (8 + 9 + 36) / 5])
    assert step.state.counts.tolist() == [2.0, 5.0]
    assert step.state.num_steps == 2


def test_one_batch_equals_one_lloyd_iteration():
    x = randn(3, 200, 5) + 1000.0
    init = x[:, :6].clone()
    step = minibatch_kmeans_update(minibatch_kmeans_start(x, 6, init=init), x)
    lloyd = kmeans(x, 6, init=init, num_iters=1, tol=0)
    torch.testing.assert_close(step.state.centers, lloyd.centers, rtol=1e-6, atol=1e-4)
    assert torch.equal(step.labels, nearest_center(x, init)[0])


def test_splitting_a_batch_over_calls_keeps_the_mean_exact_far_from_the_origin():
    x = randn(4000, 3) + 4096.0
    state = MiniBatchKMeansState(x[:1].clone(), torch.zeros(1).double(), 0, 0)
    for part in x.split(7):
        state = minibatch_kmeans_update(state, part).state
    torch.testing.assert_close(state.centers[0].double(), x.double().mean(0), rtol=0, atol=2e-3)
    assert state.counts.item() == 4000


@pytest.mark.parametrize('init', ['k-means++', 'kkz'])
def test_quality_is_near_scikit_learn_and_full_batch(init):
    cluster = pytest.importorskip('sklearn.cluster')
    x = mixture(6000)
    state = minibatch_kmeans_start(x[:500], 8, init=init, generator=torch.Generator().manual_seed(0))
    for epoch in range(3):
        order = torch.randperm(6000, generator=torch.Generator().manual_seed(epoch))
        for part in x[order].split(256):
            state = minibatch_kmeans_update(state, part).state
    inertia = float(nearest_center(x, state.centers)[1].sum())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        oracle = cluster.MiniBatchKMeans(8, batch_size=256, n_init=3, max_iter=3, random_state=0).fit(x.numpy())
    assert inertia < 1.1 * oracle.inertia_
    full = kmeans(x, 8, init=state.centers)
    assert inertia < 1.05 * float(full.inertia)


def test_unseen_and_rare_centers_move():
    x = torch.cat([randn(100, 2), randn(100, 2) + 50.0])
    away = torch.tensor([[0.0, 0.0], [-500.0, 0.0]])
    state = minibatch_kmeans_update(minibatch_kmeans_start(x, 2, init=away), x).state
    assert state.centers[1].min() > 40  # saw nothing: moved to a far point at once
    rare = MiniBatchKMeansState(torch.tensor([[0.0, 0.0], [60.0, 0.0]]), torch.tensor([5000.0, 1.0]).double(), 0, 5)
    batch = torch.cat([randn(40, 2), torch.full((1, 2), -30.0)])
    moved = minibatch_kmeans_update(rare, batch)
    torch.testing.assert_close(moved.state.centers[1], torch.tensor([-30.0, -30.0]))
    assert moved.state.counts[1] == moved.state.counts[0]
    assert moved.state.num_points == 0
    kept = minibatch_kmeans_update(rare, batch, move_ratio=0.0)
    assert kept.state.centers[1].tolist() == [60.0, 0.0]
    unseen = minibatch_kmeans_update(minibatch_kmeans_start(x, 2, init=away), x, move_ratio=None)
    assert unseen.state.centers[1].tolist() == [-500.0, 0.0]
    assert unseen.state.counts.tolist() == [200.0, 0.0]
    small = minibatch_kmeans_update(rare, batch[:5])
    assert small.state.centers[1].tolist() == [60.0, 0.0]
    assert small.state.num_points == 5


def test_mask_equals_removal_and_types():
    x = randn(60, 4)
    mask = torch.rand(60, generator=torch.Generator().manual_seed(0)) > 0.4
    state = minibatch_kmeans_start(x, 3, init=x[:3].clone())
    masked = minibatch_kmeans_update(state, x.masked_fill(~mask.unsqueeze(-1), float('nan')), mask=mask)
    removed = minibatch_kmeans_update(state, x[mask])
    torch.testing.assert_close(masked.state.centers, removed.state.centers)
    assert torch.equal(masked.labels[mask], removed.labels)
    assert (masked.labels[~mask] == -1).all()
    half = minibatch_kmeans_update(state, x.half())
    assert half.state.centers.dtype == torch.float32
    again = torch.load(_saved(masked.state), weights_only=False)
    assert torch.equal(again.centers, masked.state.centers)


@pytest.mark.parametrize('far', [1e6, 1e12, 1e20])
def test_a_far_center_takes_no_digits_from_the_others(far):
    x = randn(300, 5)
    centers = torch.cat([x[:6], torch.full((1, 5), far)])
    state = MiniBatchKMeansState(centers, torch.ones(7).double(), 0, 1)
    step, exact = (
        minibatch_kmeans_update(state._replace(centers=centers.to(dtype)), x.to(dtype), move_ratio=None)
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(step.labels, exact.labels)
    torch.testing.assert_close(step.state.centers.double(), exact.state.centers, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(step.inertia.double(), exact.inertia, rtol=1e-5, atol=0)


def test_huge_float64_is_refused():
    x = randn(9, 2).double() * 1e200
    state = MiniBatchKMeansState(x[:2].clone(), torch.ones(2).double(), 0, 1)
    with pytest.raises(ValueError, match='must fit float64'):
        minibatch_kmeans_update(state, x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_unseen_centers_do_not_move_to_duplicates_of_a_center(dtype):
    values = (randn(1, 3, 4) + 700.1).to(dtype)
    x = values.expand(60, 3, 4).reshape(-1, 4)
    centers = torch.cat([x[:3].to(torch.promote_types(dtype, torch.float32)), torch.full((2, 4), -900.0).to(x)])
    state = MiniBatchKMeansState(centers * (1 + torch.finfo(centers.dtype).eps), torch.zeros(5).double(), 0, 0)
    for _ in range(4):
        state = minibatch_kmeans_update(state, x).state
    assert (state.centers[3:] < -800).all()
    assert state.counts.tolist() == [240.0] * 3 + [0.0] * 2


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def _worker(rank, path):
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    torch.set_num_threads(1)
    x = mixture(300)
    init = torch.cat([x[:5], torch.full((3, 6), 400.0)])  # three centers have to move
    one = two = minibatch_kmeans_start(x, 8, init=init)
    for start, cut, stop in ((0, 40, 100), (100, 200, 200), (200, 203, 300)):
        mine = x[start:cut] if rank == 0 else x[cut:stop]
        step = minibatch_kmeans_update(two, mine, group=dist.group.WORLD)
        whole = minibatch_kmeans_update(one, x[start:stop])
        two, one = step.state, whole.state
        torch.testing.assert_close(two.centers, one.centers, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(two.counts, one.counts)
        torch.testing.assert_close(step.inertia, whole.inertia, rtol=1e-5, atol=0)
        assert two.num_points == one.num_points
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(_worker, args=(str(tmp_path / 'store'),), nprocs=2)


def test_bad_input():
    x = randn(20, 3)
    state = minibatch_kmeans_start(x, 4, init='kkz')
    with pytest.raises(ValueError, match='to fit the centers'):
        minibatch_kmeans_update(state, randn(20, 2))
    with pytest.raises(ValueError, match='to fit the centers'):
        minibatch_kmeans_update(state, randn(2, 20, 3))
    with pytest.raises(ValueError, match='move_ratio'):
        minibatch_kmeans_update(state, x, move_ratio=1.0)
    with pytest.raises(ValueError, match='non-negative'):
        minibatch_kmeans_update(state, x, weights=-torch.ones(20))
    with pytest.raises(ValueError, match='at least one point'):
        minibatch_kmeans_update(state, x[:0])
    with pytest.raises(ValueError, match='0: 1'):
        minibatch_kmeans_update(state, torch.where(torch.arange(20).unsqueeze(-1) == 3, float('nan'), x))
    with pytest.raises(ValueError, match="got 'random'"):
        minibatch_kmeans_start(x, 4, init='random')
    with pytest.raises(ValueError, match='init must have shape'):
        minibatch_kmeans_start(x, 4, init=x[:3])
    with pytest.raises(ValueError, match='21 clusters'):
        minibatch_kmeans_start(x, 21)
