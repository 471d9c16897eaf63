# SPDX-License-Identifier: Apache-2.0
"""Units of two networks: correlation, matchings, mutual information, sparse maps."""

import math
import warnings

import numpy as np
import pytest
import torch

from clusterplug.functional import (
    lasso_from_gram,
    match_units,
    sparse_mapping,
    unit_correlation,
    unit_mutual_information,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
def test_correlation_equals_numpy_and_a_loop(dtype):
    x, y = randn(60, 7).to(dtype), randn(60, 5, seed=1).to(dtype)
    y = y + x[:, :5]
    found = unit_correlation(x, y)
    assert found.dtype == dtype
    expected = np.corrcoef(x.double().numpy().T, y.double().numpy().T)[:7, 7:]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=2 * eps, atol=2 * eps)
    a, b = x.double(), y.double()
    for i in range(7):
        for j in range(5):
            one, other = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            value = (one * other).mean() / (one.square().mean() * other.square().mean()).sqrt()
            assert abs(float(found[i, j]) - float(value)) < 4 * eps
    assert torch.equal(unit_correlation(x, y, absolute=True), found.abs())


def test_scale_and_shift_change_nothing():
    x, y = randn(200, 6), randn(200, 6, seed=1)
    x[:, :3] += y[:, :3]
    plain = unit_correlation(x, y)
    scale = torch.tensor([1e-15, 1e-3, 1.0, 7.0, 1e10, 1e25])
    torch.testing.assert_close(unit_correlation(x * scale, y), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unit_correlation(x * 3 + 1000, y - 500), plain, rtol=0, atol=2e-3)  # digits of the input
    torch.testing.assert_close(unit_correlation(-x, y), -plain)
    assert torch.equal(match_units(unit_correlation(2 * x + 1, y)), match_units(plain))


def test_dead_units_are_zero_and_no_ones_best():
    x = randn(50, 4)
    x[:, 1], x[:, 2] = 0.1, 1e8  # constants that fp32 does not hold exactly in a mean
    found = unit_correlation(x, x)
    assert found[1:3].abs().max() == found[:, 1:3].abs().max() == 0
    assert found[[0, 3], [0, 3]].allclose(torch.ones(2))
    semi = match_units(found, 'semi')
    assert semi.tolist() == [0, -1, -1, 3]
    away = torch.tensor([[-0.5, 0.0], [-0.2, 0.0]])  # a dead column is not better than a negative one
    assert match_units(away, 'semi').tolist() == [0, 0]


def test_bipartite_finds_a_permutation():
    """Check 1 of the method: a net and itself with permuted units."""
    x = randn(400, 32).relu()
    x[:, 5] = 0
    order = torch.randperm(32, generator=seeded(1))
    corr = unit_correlation(x, x[:, order])
    found = match_units(corr)
    live = torch.arange(32) != 5
    assert torch.equal(order[found][live], torch.arange(32)[live])
    assert sorted(found.tolist()) == list(range(32))
    torch.testing.assert_close(corr.gather(1, found[:, None])[live], torch.ones(31, 1))


def test_semi_is_never_worse_and_shuffled_samples_are_near_zero():
    """Check 2: semi >= bipartite always; with shuffled digits .035 / .027."""
    from sklearn.datasets import load_digits

    for seed in range(20):
        corr = randn(3, 6, 6, seed=seed)
        means = [
            corr.gather(-1, match_units(corr, method)[..., None]).mean((-2, -1)) for method in ('semi', 'bipartite')
        ]
        assert (means[0] >= means[1] - 1e-7).all()
    x = torch.from_numpy(load_digits().data)
    torch.manual_seed(0)
    nets = [torch.nn.Linear(64, 64).double() for _ in range(2)]
    with torch.no_grad():
        a, b = (net(x / 16).relu() for net in nets)
    corr = unit_correlation(a, b[torch.randperm(len(b), generator=seeded())])
    semi, bipartite = (
        float(corr.gather(1, match_units(corr, m).clamp(min=0)[:, None]).mean()) for m in ('semi', 'bipartite')
    )
    assert 0 < bipartite < semi < 0.08


def test_matching_of_other_sizes_and_absolute():
    corr = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, -0.95]])
    assert match_units(corr).tolist() == [0, 1, -1]
    assert match_units(corr, absolute=True).tolist() == [0, -1, 1]
    assert match_units(corr.mT).tolist() == [0, 1]
    assert match_units(corr, 'semi').tolist() == [0, 0, 0]


@pytest.mark.parametrize('num_bins', [8, 16])
@pytest.mark.parametrize('number', [1797, 5000])
def test_information_of_independent_units_is_zero(num_bins, number):
    """Check 4, first half: |mean| below .0015."""
    x, y = randn(number, 24), randn(number, 24, seed=1)
    found = unit_mutual_information(x, y, num_bins=num_bins)
    assert abs(float(found.mean())) < 0.0015
    theirs = found + (num_bins - 2) ** 2 / (2 * number) - num_bins**2 / (2 * number * math.log(2))
    assert float(theirs.mean()) < -0.003


def test_information_of_gaussian_pairs():
    """Check 4, second half: -.5 ln(1 - r^2) within the error of a histogram, from below."""
    x, noise = randn(40000, 1), randn(40000, 1, seed=1)
    for r in (0.3, 0.6, 0.9):
        found = float(unit_mutual_information(x, r * x + math.sqrt(1 - r * r) * noise, num_bins=32))
        exact = -0.5 * math.log(1 - r * r)
        assert exact * 0.92 - 0.005 < found < exact + 0.005


def test_information_equals_scikit_learn_and_sees_zeros():
    from sklearn.metrics import mutual_info_score

    x = randn(300, 3).relu()  # half of the values are zero: a bin of their own
    y = torch.cat([x[:, :1], randn(300, 1, seed=2)], 1)
    found = unit_mutual_information(x, y, num_bins=5)

    def bins(column):
        values = column.numpy()
        edges = np.sort(values[values != 0])
        edges = edges[[len(edges) * k // 4 for k in range(1, 4)]]
        return np.where(values == 0, 0, 1 + np.searchsorted(edges, values, side='right'))

    for i in range(3):
        for j in range(2):
            a, b = bins(x[:, i]), bins(y[:, j])
            bias = (len(set(a)) - 1) * (len(set(b)) - 1) / 600
            assert abs(float(found[i, j]) - (mutual_info_score(a, b) - bias)) < 1e-5
    dead = unit_mutual_information(torch.zeros(50, 1), randn(50, 2))
    assert dead.abs().max() < 1e-6


def test_sparse_mapping_without_penalty_is_least_squares():
    """Check 5, first half, in any unit."""
    x, noise = randn(300, 6, dtype=torch.float64) * torch.tensor([1.0, 5, 0.1, 1, 1, 20]) + 3, randn(300, 4, seed=1)
    y = x @ randn(6, 4, seed=2, dtype=torch.float64) + noise + 1
    found = sparse_mapping(x, y, penalty=0)
    expected = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    units = [(each - each.mean(0)) / each.std(0, correction=0) for each in (x, y)]
    plain = sparse_mapping(x, y, penalty=0, standardized=True)
    torch.testing.assert_close(plain, torch.linalg.lstsq(*units).solution, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('penalty', [0.01, 0.1, 0.3])
def test_sparse_mapping_equals_scikit_learn(penalty):
    from sklearn.linear_model import Lasso

    x = randn(400, 12, dtype=torch.float64)
    x[:, 6:] = x[:, :6] + 0.3 * x[:, 6:]  # correlated units
    y = x @ (randn(12, 5, seed=1).double() * (randn(12, 5, seed=2) > 0.5)) + 0.5 * randn(400, 5, seed=3)
    one, other = ((each - each.mean(0)) / each.std(0, correction=0) for each in (x, y))
    expected = Lasso(penalty, fit_intercept=False, tol=1e-12, max_iter=100000).fit(one.numpy(), other.numpy()).coef_.T
    found = sparse_mapping(one, other, penalty=penalty)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert torch.equal(found != 0, torch.from_numpy(expected) != 0)
    torch.testing.assert_close(sparse_mapping(x, y, penalty=penalty, standardized=True), found, rtol=0, atol=1e-9)


def test_more_penalty_is_fewer_weights_and_more_error():
    """Check 5, second half."""
    x = randn(500, 20, dtype=torch.float64)
    y = x @ randn(20, 8, seed=1, dtype=torch.float64) / 3 + randn(500, 8, seed=2)
    counts, errors = [], []
    for penalty in (0, 0.01, 0.03, 0.1, 0.3, 1.0):
        weights = sparse_mapping(x, y, penalty=penalty)
        counts.append(int((weights != 0).sum()))
        errors.append(float(((y - y.mean(0)) - (x - x.mean(0)) @ weights).square().mean()))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert errors == sorted(errors)


def test_dead_and_repeated_units_of_a_sparse_mapping():
    x = randn(100, 4)
    x[:, 1] = 3.0
    y = torch.cat([x[:, :1], torch.ones(100, 1)], 1)
    for penalty in (0, 0.1):
        found = sparse_mapping(x, y, penalty=penalty)
        assert found[1].abs().max() == 0
        assert found[:, 1].abs().max() == 0
        assert abs(float(found[0, 0]) - (1 - penalty)) < 1e-4
    twice = sparse_mapping(x[:, [0, 0]], y[:, :1], penalty=0)
    torch.testing.assert_close(twice, torch.full((2, 1), 0.5), rtol=1e-4, atol=1e-4)


def test_a_path_that_does_not_end_says_so():
    gram = torch.eye(3) * 0.001 + 0.999
    with pytest.warns(UserWarning, match='after 1 passes'):
        lasso_from_gram(gram, torch.tensor([[0.9], [0.5], [0.7]]), penalty=0.01, max_iters=1)


def test_a_thousand_units():
    x = randn(2000, 1024).relu()
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(1))
    corr = unit_correlation(x, x[:, order] + 0.5 * randn(2000, 1024, seed=2))
    assert torch.equal(order[match_units(corr)], torch.arange(1024))


@pytest.mark.parametrize(
    ('call', 'error', 'words'),
    [
        (
            lambda: unit_correlation(torch.zeros(4, 2), torch.zeros(5, 2)),
            ValueError,
            'Pool layers of different spatial',
        ),
        (lambda: unit_correlation(torch.zeros(1, 2), torch.zeros(1, 2)), ValueError, 'at least 2 samples'),
        (lambda: unit_correlation(torch.full((4, 2), torch.nan), torch.zeros(4, 2)), ValueError, 'must be finite'),
        (lambda: unit_correlation(torch.zeros(4, 2).long(), torch.zeros(4, 2)), TypeError, 'floating'),
        (lambda: unit_mutual_information(torch.zeros(4, 2), torch.zeros(4, 2), num_bins=1), ValueError, 'num_bins'),
        (lambda: match_units(torch.tensor([[torch.nan]])), ValueError, 'NaN'),
        (lambda: match_units(torch.zeros(2, 2), 'greedy'), ValueError, 'method'),
        (lambda: match_units(torch.zeros(2)), ValueError, '(..., C, D)'),
        (lambda: sparse_mapping(torch.zeros(4, 2), torch.zeros(4, 2), penalty=-1), ValueError, 'penalty'),
        (lambda: sparse_mapping(torch.zeros(2, 4, 2), torch.zeros(2, 4, 2), penalty=1), ValueError, '(N, units)'),
        (lambda: lasso_from_gram(torch.eye(3), torch.zeros(2, 2), penalty=1), ValueError, 'gram must be (C, C)'),
    ],
)
def test_bad_input(call, error, words):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(error) as caught:
            call()
    assert words in str(caught.value)
