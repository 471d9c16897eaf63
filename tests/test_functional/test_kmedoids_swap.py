# SPDX-License-Identifier: Apache-2.0
"""k-medoids by swaps against FasterPAM, brute force and the definition of its end point."""

import itertools

import pytest
import torch

from clusterplug.functional.kmedoids import kmedoids, kmedoids_swap

KINDS = ['random', 'clustered', 'duplicate', 'collinear', 'offset', 'equal']


def points(kind, num_points, num_dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_points, num_dims, generator=generator)
    if kind == 'clustered':
        centers = 5 * torch.randn(8, num_dims, generator=generator)
        x = x + centers[torch.randint(0, 8, (num_points,), generator=generator)]
    if kind == 'duplicate':
        x = x[torch.randint(0, num_points // 4, (num_points,), generator=generator)]
    if kind == 'collinear':
        x = x[:, :1] * torch.ones(num_dims)
    if kind == 'offset':
        x = x.round(decimals=2) + 4096
    if kind == 'equal':
        x = torch.ones_like(x)
    return x


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('num_points', 'num_dims', 'num_clusters'), [(120, 3, 8), (196, 32, 30)])
def test_cost_of_fasterpam(kind, num_points, num_dims, num_clusters):
    oracle = pytest.importorskip('kmedoids')
    x = points(kind, num_points, num_dims)
    distances = torch.cdist(x.double(), x.double())
    result = kmedoids_swap(x, num_clusters)
    cost = distances[:, result.medoids].amin(1).sum().item()
    # In 32 dimensions fp32's rounding is seen in the smallest of the collinear distances.
    assert result.cost.item() == pytest.approx(cost, rel=2e-3, abs=1e-3)
    best = min(oracle.fasterpam(distances.numpy(), num_clusters, random_state=seed).loss for seed in range(3))
    assert cost <= best * 1.01 + 1e-3
    alternated = kmedoids(x, num_clusters)
    assert result.cost <= alternated.cost * (1 + 1e-6) + 1e-6


def test_no_swap_lowers_the_cost():
    x = points('random', 60, 2, seed=1).double()
    distances = torch.cdist(x, x)
    medoids = kmedoids_swap(x, 5).medoids.tolist()
    cost = distances[:, medoids].amin(1).sum().item()
    for place, candidate in itertools.product(range(5), range(60)):
        swapped = [*medoids[:place], candidate, *medoids[place + 1 :]]
        assert distances[:, swapped].amin(1).sum().item() >= cost * (1 - 1e-5)


def test_brute_force():
    exact = 0
    for seed in range(20):
        x = points('random', 12, 2, seed)
        distances = torch.cdist(x, x)
        best = min(distances[:, list(c)].amin(1).sum().item() for c in itertools.combinations(range(12), 3))
        exact += kmedoids_swap(x, 3).cost.item() <= best * (1 + 1e-5)
    assert exact >= 15


def test_swap_escapes_where_alternation_stays():
    # A fixed point of the alternation: two medoids in the left pair, one between the two right groups.
    x = torch.tensor([[0.0], [1.0], [100.0], [101.0], [102.0], [140.0], [141.0], [142.0]])
    start = torch.tensor([0, 1, 4])
    assert kmedoids(x, 3, init=start).cost.item() > 100
    result = kmedoids_swap(x, 3, init=start)
    assert result.medoids.tolist()[1:] == [3, 6]
    assert result.cost.item() == 1 + 2 + 2


def test_batch_equals_loop_and_masked_equals_removed():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 70, 9, generator=generator)
    mask = torch.rand(4, 70, generator=generator) > 0.3
    result = kmedoids_swap(x, 6, mask=mask)
    for i in range(4):
        alone = kmedoids_swap(x[i], 6, mask=mask[i])
        assert all(torch.equal(got[i], expected) for got, expected in zip(result, alone))
        kept = x[i, mask[i]]
        removed = kmedoids_swap(kept, 6)
        assert result.cost[i].item() == pytest.approx(removed.cost.item(), rel=0.01)
        assert result.labels[i][~mask[i]].eq(-1).all()


def test_edges():
    one = kmedoids_swap(torch.randn(1, 3), 1)
    assert one.medoids.tolist() == [0]
    x = torch.arange(5.0)[:, None].expand(2, 5, 1)
    mask = torch.tensor([[True, False, True, False, False], [False] * 5])
    result = kmedoids_swap(x, 3, mask=mask)
    assert result.medoids.tolist() == [[0, 2, -1], [-1, -1, -1]]
    assert result.cost.tolist() == [0, 0]
    # One cluster: the point with the smallest sum of distances.
    y = points('random', 40, 3)
    assert kmedoids_swap(y, 1).medoids.item() == torch.cdist(y, y).sum(1).argmin().item()


def test_half_is_computed_in_fp32():
    x = points('clustered', 80, 16).bfloat16()
    assert torch.equal(kmedoids_swap(x, 6).medoids, kmedoids_swap(x.float(), 6).medoids)


@pytest.mark.parametrize(
    ('change', 'words'),
    [({'num_clusters': 9}, 'at most 8'), ({'metric': 'l1'}, 'metric'), ({'init': 'build'}, 'kkz')],
)
def test_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        kmedoids_swap(**{'x': torch.randn(8, 2), 'num_clusters': 2, **change})
    with pytest.raises(ValueError, match='finite'):
        kmedoids_swap(torch.full((4, 2), float('nan')), 2)
