# SPDX-License-Identifier: Apache-2.0
"""One NaN, infinite, far or huge point, or an unusual unit, takes nothing from what is said about the others."""

import pytest
import torch

from clusterplug.core.origin import typical_origin, typical_rows
from clusterplug.functional import cut_linkage, nearest_center, pairwise_distances
from clusterplug.functional.distance._self_distances import self_distances
from clusterplug.functional.distance.distances import METRICS
from clusterplug.functional.graph import linkage
from clusterplug.functional.kmedoids import kmedoids

POWERS = {'euclidean': 2.0, 'sqeuclidean': 2.0, 'manhattan': 1.0, 'chebyshev': float('inf')}


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x, y, metric):
    """float64 distances by differences alone."""
    x, y = x.double(), y.double()
    if metric == 'cosine':
        x, y = (each / each.abs().amax(-1, keepdim=True) for each in (x, y))
        x, y = (each / each.norm(dim=-1, keepdim=True) for each in (x, y))
        return 1 - x @ y.mT
    distances = torch.cdist(x, y, POWERS[metric], compute_mode='donot_use_mm_for_euclid_dist')
    return distances.square() if metric == 'sqeuclidean' else distances


def assert_relative(found, expected, tolerance, least=0.0):
    error = (found.double() - expected).abs() / expected.clamp_min(max(least, 1e-300))
    assert error[expected > least].max() < tolerance


ODD_ROWS = {
    'one outlier': [1e6],
    'two opposite outliers': [1e6, -1e6],
    'a fifth of sentinels': [-9999.0] * 25,
    'huge': [1e20],
    'the largest number': [3.4e38],
    'nan': [float('nan')],
    'inf': [float('inf')],
    'everything': [1e6, -1e12, 1e25, float('nan'), float('-inf')],
}


@pytest.mark.parametrize('where', ['x', 'y', 'self'])
@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('dim', [3, 24])
@pytest.mark.parametrize('odd', ODD_ROWS)
@pytest.mark.parametrize('shift', [0.0, 100.0])
def test_good_rows_keep_their_digits(odd, dim, metric, where, shift):
    x, y = points(120, dim) + shift, points(80, dim, seed=1) + shift
    rows = torch.tensor(ODD_ROWS[odd])[:, None].expand(-1, dim)
    tolerance = 1e-4 if shift == 0 else 1e-3
    least = 1e-2 if metric != 'cosine' else 1e-3  # below, 1 - cos is rounding in any formula
    if metric == 'cosine' and shift:
        return
    if where == 'self':
        found = pairwise_distances(torch.cat([x, rows]), metric=metric)
        assert_relative(found[:120, :120], exact(x, x, metric), tolerance, least)
        assert found[:120].diagonal().eq(0).all()
        odd_rows = found[120:, :120]
    elif where == 'x':
        found = pairwise_distances(torch.cat([rows, x]), y, metric=metric)
        assert_relative(found[len(rows) :], exact(x, y, metric), tolerance, least)
        odd_rows = found[: len(rows)]
    else:
        found = pairwise_distances(x, torch.cat([y, rows]), metric=metric)
        assert_relative(found[:, :80], exact(x, y, metric), tolerance, least)
        odd_rows = found[:, 80:].mT
    if metric in ('euclidean', 'manhattan', 'chebyshev'):
        for row, value in zip(odd_rows, ODD_ROWS[odd]):
            if value != value:
                assert row.isnan().all()
            elif abs(value) == float('inf'):
                assert row.isinf().all()
            else:
                expected = exact(torch.full((1, dim), value), torch.full((1, dim), shift), metric)[0, 0]
                if expected < 3e38:
                    torch.testing.assert_close(row.double(), expected.expand(len(row)), rtol=1e-3, atol=0)


def test_chebyshev_of_nan_and_of_two_infinities_is_nan():
    x = torch.tensor([[float('inf'), 1.0], [float('inf'), 2.0], [0.0, float('nan')], [0.0, 0.0]])
    found = pairwise_distances(x, metric='chebyshev')
    assert found[0, 1].isnan()
    assert found[3, 2].isnan()
    assert found[0, 3].isinf()


@pytest.mark.parametrize('metric', ['euclidean', 'manhattan', 'chebyshev', 'cosine'])
@pytest.mark.parametrize('scale', [1e-30, 1e-12, 1e12, 1e20, 1e30])
@pytest.mark.parametrize('dim', [3, 24])
def test_any_unit(metric, scale, dim):
    x, y = points(70, dim), points(60, dim, seed=1)
    unit = 1.0 if metric == 'cosine' else scale
    found = pairwise_distances(x * scale, y * scale, metric=metric)
    torch.testing.assert_close(found / unit, pairwise_distances(x, y, metric=metric), rtol=1e-4, atol=1e-5)
    found = pairwise_distances((x * scale)[None].expand(2, -1, -1), metric=metric)
    torch.testing.assert_close(found[1] / unit, pairwise_distances(x, metric=metric), rtol=1e-4, atol=1e-4)


def test_gradient_of_good_rows_with_a_huge_one():
    x = torch.cat([points(80, 24), torch.full((1, 24), 1e25)]).requires_grad_()
    pairwise_distances(x)[:80, :80].sum().backward()
    alone = x.detach()[:80].double().requires_grad_()
    pairwise_distances(alone).sum().backward()
    torch.testing.assert_close(x.grad[:80].double(), alone.grad, rtol=1e-4, atol=1e-3)
    assert x.grad[80].eq(0).all()


def test_shared_second_set_and_blocks():
    x, y = points(3, 90, 24), points(50, 24, seed=1)
    x[1, 7], y[4] = 1e22, -1e22
    whole = pairwise_distances(x, y)
    good = torch.ones(90, dtype=torch.bool).index_fill(0, torch.tensor(7), False)
    columns = torch.ones(50, dtype=torch.bool).index_fill(0, torch.tensor(4), False)
    assert_relative(whole[:, good][..., columns], exact(x[:, good], y[columns], 'euclidean'), 1e-4)
    torch.testing.assert_close(whole[1, 7], torch.cdist(x[1, 7:8].double(), y.double())[0].float())
    torch.testing.assert_close(pairwise_distances(x, y, max_bytes=5000), whole)


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
@pytest.mark.parametrize('dim', [4, 24])
@pytest.mark.parametrize('value', [1e6, 1e22])
def test_self_distances_beside_an_outlier(metric, dim, value):
    x = points(2, 150, dim) + 5
    x[0, 3], x[0, 70] = value, -value
    mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(1)) > 0.3
    good = torch.ones(150, dtype=torch.bool)
    good[[3, 70]] = False
    for valid in (None, mask):
        found = self_distances(x, metric, valid)
        assert torch.equal(found, found.mT)
        for index in range(2):
            kept = good if valid is None else good & valid[index]
            expected = exact(x[index, kept], x[index, kept], metric)
            assert_relative(found[index, kept][:, kept], expected, 1e-4, 1e-2)
    if metric == 'euclidean':
        torch.testing.assert_close(found[0, 3, 70], torch.tensor(2 * value * dim**0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize('values', [[1e6], [1e6, -1e6], [1e22]])
def test_medoids_and_trees_beside_outliers(values):
    truth = torch.arange(3).repeat_interleave(40)
    x = torch.cat([points(120, 16) + 6.0 * truth[:, None], torch.tensor(values)[:, None].expand(-1, 16)])
    clusters = 3 + len(values)
    expected = kmedoids(x.double(), clusters).labels
    assert torch.equal(kmedoids(x, clusters).labels, expected)
    for method in ('single', 'complete', 'average', 'ward'):
        labels = cut_linkage(linkage(x, method=method), clusters)
        assert torch.equal(labels, cut_linkage(linkage(x.double(), method=method), clusters))


@pytest.mark.parametrize('value', [1e6, 1e20])
def test_nearest_center_beside_outliers(value):
    x, centers = points(100, 16) * 0.1 + 3, points(7, 16, seed=1) * 0.1 + 3
    expected = exact(x, centers, 'sqeuclidean').min(-1)
    far = torch.full((1, 16), value)
    for given, table in ((torch.cat([x, far]), centers), (x, torch.cat([centers, far])), (x[:1], centers)):
        labels, distances = nearest_center(given, table)
        labels, distances = labels[:100], distances[:100]
        assert torch.equal(labels, expected.indices[: len(labels)])
        assert_relative(distances, expected.values[: len(labels)], 1e-3)


def test_origin_lies_amid_most_points_and_ignores_what_is_not_a_number():
    x = points(2, 1000, 5) + 50
    x[:, ::5] = 1e30
    x[0, 3], x[1, 7] = float('nan'), float('-inf')
    assert (typical_origin(typical_rows(x)) - 50).abs().max() < 2
    mask = torch.zeros(2, 1000, dtype=torch.bool)
    mask[0, 500:520] = True
    x[0, 500:520] = 7.0
    origin = typical_origin(typical_rows(x, mask=mask))
    assert origin[0].eq(7).all()
    assert origin[1].eq(0).all()  # no valid point
