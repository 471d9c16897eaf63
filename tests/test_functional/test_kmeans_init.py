# SPDX-License-Identifier: Apache-2.0
"""k-means++ and KKZ: by hand, distributions, distinct points, masks, quality against scikit-learn."""

import pytest
import torch

from clusterplug.functional.kmeans import kkz, kmeans_plus_plus


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kkz_loop(x, num_clusters):
    chosen = [int(x.double().norm(dim=-1).argmax())]
    while len(chosen) < num_clusters:
        chosen.append(int(torch.cdist(x.double(), x[chosen].double()).amin(-1).argmax()))
    return chosen


def test_kkz_by_hand_and_loop():
    assert kkz(torch.tensor([[0.0], [1.0], [5.0], [-3.0]]), 3).tolist() == [2, 3, 1]
    x = randn(4, 60, 5)
    assert kkz(x, 9).tolist() == [kkz_loop(problem, 9) for problem in x]
    shifted = x + 100.0
    assert kkz(shifted, 9).tolist() == [kkz_loop(problem, 9) for problem in shifted]


def test_kkz_mask_and_ties():
    x = randn(2, 30, 3)
    mask = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)) > 0.5
    chosen = kkz(x.masked_fill(~mask.unsqueeze(-1), float('nan')), 4, mask=mask)
    for index in range(2):
        kept = mask[index].nonzero().flatten()
        assert chosen[index].tolist() == kept[kkz_loop(x[index][mask[index]], 4)].tolist()
    assert kkz(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), 2).tolist() == [0, 1]


def test_plus_plus_takes_different_points():
    x = randn(5, 12, 3)
    chosen = kmeans_plus_plus(x, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chosen.sort(-1).values, torch.arange(12).expand(5, 12))
    duplicates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 7.0]]).repeat(4, 1) + 3.0
    for seed in range(20):
        chosen = kmeans_plus_plus(duplicates, 3, generator=torch.Generator().manual_seed(seed))
        assert len({tuple(row) for row in duplicates[chosen].tolist()}) == 3


def test_first_draw_follows_the_weights():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0])
    x = torch.zeros(20000, 4, 1)
    chosen = kmeans_plus_plus(x, 1, weights=weights.expand(20000, 4), generator=torch.Generator().manual_seed(0))
    share = chosen.flatten().bincount(minlength=4) / 20000
    torch.testing.assert_close(share, weights / 4, rtol=0, atol=0.02)


def test_second_draw_prefers_far_points():
    # two points, no choice among trials: the second is the other one whatever was first
    chosen = kmeans_plus_plus(torch.tensor([[0.0], [1.0]]).expand(100, 2, 1), 2)
    assert (chosen.sum(-1) == 1).all()
    # masked and weightless points are never taken
    x = randn(200, 10, 2)
    mask = torch.arange(10) < 6
    weights = (torch.arange(10) % 2).float()
    chosen = kmeans_plus_plus(x, 3, mask=mask.expand(200, 10), weights=weights.expand(200, 10))
    assert set(chosen.unique().tolist()) == {1, 3, 5}


def test_quality_is_that_of_scikit_learn():
    cluster = pytest.importorskip('sklearn.cluster')
    x = torch.cat([randn(40, 6, seed=s) + 6 * randn(1, 6, seed=100 + s) for s in range(12)]).double()
    ours, theirs = [], []
    for seed in range(25):
        index = kmeans_plus_plus(x, 12, generator=torch.Generator().manual_seed(seed))
        ours.append(float(torch.cdist(x, x[index]).amin(-1).square().sum()))
        centers, _ = cluster.kmeans_plusplus(x.numpy(), 12, random_state=seed)
        theirs.append(float(torch.cdist(x, torch.from_numpy(centers)).amin(-1).square().sum()))
    assert sum(ours) < 1.1 * sum(theirs)


def test_bad_input():
    x = randn(5, 2)
    for start in (kkz, kmeans_plus_plus):
        with pytest.raises(ValueError, match='got 6 clusters for 5 points'):
            start(x, 6)
        with pytest.raises(TypeError, match='bool'):
            start(x, 2, mask=torch.ones(5))
    with pytest.raises(ValueError, match='non-negative'):
        kmeans_plus_plus(x, 2, weights=-torch.ones(5))
