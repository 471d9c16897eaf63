# SPDX-License-Identifier: Apache-2.0
"""Agglomerative clustering against scipy, a plain loop, and hand-computed trees."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional.graph import cut_linkage, cut_linkage_at, linkage
from clusterplug.functional.graph.linkage import METHODS

hierarchy = pytest.importorskip('scipy.cluster.hierarchy')
pdist = pytest.importorskip('scipy.spatial.distance').pdist


@pytest.fixture(params=['scipy', 'rounds'], scope='module', autouse=True)
def engine(request):
    """Build trees by scipy, and by our rounds of tensor operations as on an accelerator or without scipy."""
    module = importlib.import_module('clusterplug.functional.graph.linkage')  # the package exports the function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'scipy_installed', lambda: request.param == 'scipy')
        yield request.param


def canonical(labels):
    """Number clusters in the order of their first point."""
    seen = {}
    return [seen.setdefault(label, len(seen)) for label in labels]


def plain_single_heights(x):
    """Single linkage by its definition: the sorted edges of the minimum spanning tree (Prim)."""
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    inside, heights = {0}, []
    while len(inside) < len(x):
        outside = [j for j in range(len(x)) if j not in inside]
        height, nearest = min((distances[i, j], j) for i in inside for j in outside)
        heights.append(height)
        inside.add(nearest)
    return sorted(heights)


def test_hand_computed():
    x = torch.tensor([[0.0], [1.0], [5.0], [7.0]])
    expected = {'single': 4.0, 'complete': 7.0, 'average': 5.5, 'ward': 5.5 * 2**0.5}
    for method, top in expected.items():
        tree = linkage(x, method=method)
        assert tree.children.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert tree.heights.tolist() == pytest.approx([1.0, 2.0, top])
        assert tree.sizes.tolist() == [2, 2, 4]


@pytest.mark.parametrize('method', METHODS)
@settings(max_examples=25, deadline=None)
@given(num_points=st.integers(2, 40), num_dims=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_equals_scipy(method, num_points, num_dims, seed):
    x = torch.randn(num_points, num_dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tree = linkage(x, method=method)
    oracle = hierarchy.linkage(x.numpy(), method)
    np.testing.assert_allclose(tree.heights, oracle[:, 2], rtol=1e-9)
    np.testing.assert_array_equal(tree.children, oracle[:, :2])
    np.testing.assert_array_equal(tree.sizes, oracle[:, 3])
    for num_clusters in {1, 2, num_points // 2, num_points} - {0}:
        expected = hierarchy.fcluster(oracle, num_clusters, 'maxclust')
        assert cut_linkage(tree, num_clusters).tolist() == canonical(expected)


@pytest.mark.parametrize('method', METHODS)
def test_real_size_in_fp32(method):
    x = torch.randn(2, 196, 24, generator=torch.Generator().manual_seed(0))
    tree = linkage(x, method=method)
    for i in range(2):
        oracle = hierarchy.linkage(x[i].double().numpy(), method)
        np.testing.assert_allclose(tree.heights[i], oracle[:, 2], rtol=1e-5)
        expected = hierarchy.fcluster(oracle, 20, 'maxclust')
        assert cut_linkage(tree, 20)[i].tolist() == canonical(expected)


@pytest.mark.parametrize('method', ['single', 'complete', 'average'])
def test_cosine_and_precomputed(method):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    oracle = hierarchy.linkage(pdist(x.numpy(), 'cosine'), method)
    np.testing.assert_allclose(linkage(x, method=method, metric='cosine').heights, oracle[:, 2], rtol=1e-9)
    distances = torch.from_numpy(pdist(x.numpy(), 'cityblock'))
    square = torch.zeros(30, 30, dtype=torch.float64)
    square[tuple(torch.triu_indices(30, 30, 1))] = distances
    oracle = hierarchy.linkage(distances.numpy(), method)
    tree = linkage(square + square.T, method=method, metric='precomputed')
    np.testing.assert_allclose(tree.heights, oracle[:, 2], rtol=1e-12)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', ['duplicate', 'grid', 'collinear', 'equal', 'offset'])
def test_ties_give_rising_heights_and_a_full_tree(method, kind):
    x = torch.randint(0, 4, (50, 2), generator=torch.Generator().manual_seed(2)).double()
    if kind == 'collinear':
        x = torch.arange(50.0, dtype=torch.float64)[:, None] * torch.ones(3, dtype=torch.float64)
    elif kind == 'equal':
        x = torch.full((50, 3), 0.1, dtype=torch.float64)
    elif kind == 'offset':
        x = x + 1e9
    elif kind == 'grid':
        x = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0)).double() * 0.1
    size = len(x)
    tree = linkage(x, method=method)
    assert (tree.heights.diff() >= 0).all()
    assert sorted(tree.children.flatten().tolist()) == list(range(2 * size - 2))
    assert tree.sizes[-1] == size
    for num_clusters in (1, 2, 7, size):
        labels = cut_linkage(tree, num_clusters)
        assert labels.unique().tolist() == list(range(num_clusters))
    if method == 'single':
        np.testing.assert_allclose(tree.heights, plain_single_heights(x.numpy()), atol=1e-9)


@pytest.mark.parametrize('method', METHODS)
def test_batch_equals_loop_and_masked_equals_removed(method):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 25, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 25, generator=generator) > 0.4
    tree = linkage(x.masked_fill(~mask[..., None], float('nan')), method=method, mask=mask)
    labels = cut_linkage(tree, 4)
    assert tree.children.shape == (2, 3, 24, 2)
    for i in range(2):
        for j in range(3):
            kept = mask[i, j].nonzero().flatten()
            alone = linkage(x[i, j, kept], method=method)
            merges = len(kept) - 1
            torch.testing.assert_close(tree.heights[i, j, :merges], alone.heights)
            assert tree.heights[i, j, merges:].isinf().all()
            assert tree.children[i, j, merges:].eq(-1).all()
            assert tree.sizes[i, j].tolist() == [*alone.sizes.tolist(), *[0] * (24 - merges)]
            assert labels[i, j, kept].tolist() == cut_linkage(alone, 4).tolist()
            assert labels[i, j, ~mask[i, j]].eq(-1).all()


def test_cut_at_a_height():
    x = torch.tensor([[0.0], [1.0], [5.0], [7.0]])
    tree = linkage(x)
    assert cut_linkage_at(tree, 0.5).tolist() == [0, 1, 2, 3]
    assert cut_linkage_at(tree, 1.0).tolist() == [0, 0, 1, 2]
    assert cut_linkage_at(tree, float('inf')).tolist() == [0, 0, 0, 0]
    masked = linkage(x, mask=torch.tensor([True, False, True, False]))
    assert cut_linkage_at(masked, float('inf')).tolist() == [0, -1, 0, -1]
    with pytest.raises(ValueError, match='NaN'):
        cut_linkage_at(tree, float('nan'))


def test_one_point_and_no_point():
    one = linkage(torch.randn(2, 1, 3))
    assert one.children.shape == (2, 0, 2)
    assert cut_linkage(one, 1).tolist() == [[0], [0]]
    x, mask = torch.randn(2, 4, 3), torch.tensor([[False, True, False, False], [False] * 4])
    tree = linkage(x, mask=mask)
    assert tree.children.eq(-1).all()
    assert cut_linkage(tree, 2).tolist() == [[-1, 0, -1, -1], [-1] * 4]


def test_half_is_computed_in_fp32():
    x = torch.randn(20, 8).bfloat16()
    assert torch.equal(linkage(x).heights, linkage(x.float()).heights)


def test_gaps_that_double_need_one_round_for_each_merge():
    x = (2.0 ** torch.arange(20, dtype=torch.float64))[:, None]
    tree = linkage(x, method='complete')
    np.testing.assert_allclose(tree.heights, hierarchy.linkage(x.numpy(), 'complete')[:, 2])
    assert tree.sizes.tolist() == list(range(2, 21))


@pytest.mark.parametrize('method', ['single', 'complete', 'average', 'ward'])
@pytest.mark.parametrize(('unit', 'dtype'), [
    (1e37, torch.float32), (1e-37, torch.float32), (1e307, torch.float64), (1e-300, torch.float64),
])  # fmt: skip
def test_any_unit_gives_the_same_tree(unit, dtype, method, engine):
    x = torch.tensor([[0.0], [3.0], [10.0], [11.0]], dtype=dtype)
    tree, scaled = linkage(x, method=method), linkage(x * unit, method=method)
    assert scaled.children.tolist() == tree.children.tolist()
    torch.testing.assert_close(scaled.heights, tree.heights * unit, rtol=1e-5, atol=0)


def test_overflow_says_so_instead_of_running_for_ever(engine):
    with pytest.raises(ValueError, match='overflow'):
        linkage(torch.tensor([[-3e38], [0.0], [3e38]]), method='complete')


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        ({'method': 'centroid'}, ValueError, 'single, complete, average, ward'),
        ({'metric': 'l1'}, ValueError, 'metric'),
        ({'method': 'ward', 'metric': 'cosine'}, ValueError, 'Euclidean'),
        ({'metric': 'precomputed'}, ValueError, 'square'),
        ({'x': torch.full((3, 2), float('inf'))}, ValueError, 'finite'),
        ({'x': torch.zeros(3, 2).int()}, TypeError, 'floating'),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        linkage(**{'x': torch.randn(5, 2), **change})
    with pytest.raises(ValueError, match='at most 5'):
        cut_linkage(linkage(torch.randn(5, 2)), 6)
