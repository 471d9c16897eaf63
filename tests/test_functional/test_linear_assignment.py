# SPDX-License-Identifier: Apache-2.0
"""linear_assignment: all permutations, scipy, its own fallback, forbidden pairs, bad input."""

import itertools
import math
import sys

import pytest
import torch

from clusterplug.functional import linear_assignment


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def total(cost, matched):
    return float(cost[matched.rows, matched.cols].sum())


@pytest.fixture(params=['scipy', 'torch'])
def solver(request, monkeypatch):
    if request.param == 'torch':
        monkeypatch.setitem(sys.modules, 'scipy.optimize', None)
    else:
        pytest.importorskip('scipy.optimize')
    return request.param


def test_by_hand(solver):
    rows, cols = linear_assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
    assert rows.tolist() == [0, 1, 2]
    assert cols.tolist() == [1, 0, 2]


@pytest.mark.parametrize(('n', 'm'), [(5, 5), (3, 5), (5, 3), (1, 4), (4, 1)])
def test_equals_the_best_of_all_matchings(solver, n, m):
    for seed in range(5):
        cost = randn(n, m, seed=seed).double()
        square = cost if n <= m else cost.T
        best = min(
            sum(float(square[i, j]) for i, j in enumerate(chosen))
            for chosen in itertools.permutations(range(max(n, m)), min(n, m))
        )
        found = linear_assignment(cost)
        assert total(cost, found) == pytest.approx(best, abs=1e-12)
        assert found.rows.tolist() == sorted(found.rows.tolist())
        assert len(set(found.cols.tolist())) == min(n, m)
        most = linear_assignment(-cost, maximize=True)
        assert total(cost, most) == pytest.approx(best, abs=1e-12)


def test_a_batch_is_its_problems_one_by_one(solver):
    cost = randn(2, 3, 4, 6).mT.contiguous().mT
    found = linear_assignment(cost)
    assert found.rows.shape == found.cols.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            assert torch.equal(found.cols[i, j], linear_assignment(cost[i, j]).cols)
    expanded = linear_assignment(cost[0, 0].expand(3, 4, 6))
    assert torch.equal(expanded.cols, found.cols[0, 0].expand(3, 4))


def test_types_and_empty(solver):
    counts = torch.tensor([[5, 0], [4, 3]])
    assert linear_assignment(counts, maximize=True).cols.tolist() == [0, 1]
    for dtype in (torch.float16, torch.bfloat16):
        assert linear_assignment(counts.to(dtype), maximize=True).cols.tolist() == [0, 1]
    assert linear_assignment(torch.zeros(0, 3, 2)).rows.shape == (0, 2)
    assert linear_assignment(torch.zeros(3, 0)).rows.shape == (0,)
    assert not linear_assignment(randn(3, 3).requires_grad_()).rows.requires_grad


def test_forbidden_pairs(solver):
    cost = torch.tensor([[math.inf, 1.0], [0.0, 0.0]])
    assert linear_assignment(cost).cols.tolist() == [1, 0]
    with pytest.raises(ValueError, match='complete matching'):
        linear_assignment(torch.tensor([[math.inf, math.inf], [0.0, 0.0]]))


def test_bad_input():
    for bad in (math.nan, -math.inf):
        with pytest.raises(ValueError, match='cost must not hold NaN or -inf, got 1'):
            linear_assignment(torch.tensor([[bad, 0.0]]))
    with pytest.raises(TypeError, match='got list'):
        linear_assignment([[1.0]])
    with pytest.raises(TypeError, match='real numbers'):
        linear_assignment(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match='shape'):
        linear_assignment(torch.ones(2))
