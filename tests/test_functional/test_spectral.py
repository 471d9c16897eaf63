# SPDX-License-Identifier: Apache-2.0
"""Spectral clustering against scikit-learn, a plain float64 form, and its invariances."""

import importlib
import warnings

import numpy as np
import pytest
import torch

from clusterplug.functional.distance._self_distances import self_distances
from clusterplug.functional.graph import spectral_clustering
from clusterplug.functional.graph._affinity import affinity_matrix, normalized_adjacency
from clusterplug.functional.graph._leading_eigenvectors import choose_solver, leading_eigenvectors


def agreement(first, second):
    """Adjusted Rand index of two labelings, by the pair-counting definition."""
    first, second = np.asarray(first), np.asarray(second)
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(np.array([len(first)]))
    highest = (rows + columns) / 2
    return 1.0 if highest == expected else (both - expected) / (highest - expected)


def rings(num_points=100, noise=0.03, seed=0):
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(2, num_points, generator=generator) * 2 * torch.pi
    x = torch.stack([angle.cos(), angle.sin()], -1) * torch.tensor([0.4, 1.0])[:, None, None]
    x = x.flatten(0, 1) + noise * torch.randn(2 * num_points, 2, generator=generator)
    order = torch.randperm(2 * num_points, generator=generator)
    return x[order], (order >= num_points).long()


def blobs(num_clusters, num_dims, per_cluster=20, spread=8.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_clusters).repeat_interleave(per_cluster)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centers = spread * torch.randn(num_clusters, num_dims, generator=generator)
    return centers[labels] + torch.randn(len(labels), num_dims, generator=generator), labels


def plain_affinity(x, affinity, sigma, num_neighbors):
    """The weights, one pair at a time."""
    x = np.asarray(x, dtype=np.float64)
    size = len(x)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    width = np.sort(distances, 1)[:, min(7, size - 1)]
    weights = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            near = distances[i, j] <= np.sort(distances[i])[num_neighbors - 1]
            near |= distances[i, j] <= np.sort(distances[j])[num_neighbors - 1]
            if affinity == 'heat' or near:
                scale = width[i] * width[j] if sigma == 'local' else 2 * sigma**2
                weights[i, j] = np.exp(-(distances[i, j] ** 2) / scale)
    return weights


@pytest.mark.parametrize('affinity', ['knn', 'heat'])
@pytest.mark.parametrize('sigma', [0.7, 2.0, 'local', float('inf')])
def test_weights_equal_the_plain_loop(affinity, sigma):
    x = torch.randn(2, 25, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = affinity_matrix(self_distances(x, 'euclidean'), affinity, sigma, 5, None)
    for i in range(2):
        np.testing.assert_allclose(weights[i], plain_affinity(x[i], affinity, sigma, 5), rtol=1e-9, atol=1e-12)


def test_hand_computed_normalisation():
    weights = torch.tensor([[[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    adjacency, degree = normalized_adjacency(weights, None)
    assert degree.tolist() == [[1.5, 1.5, 1.0]]
    expected = torch.tensor([[[1 / 1.5, 0.5 / 1.5, 0], [0.5 / 1.5, 1 / 1.5, 0], [0, 0, 1.0]]])
    torch.testing.assert_close(adjacency, expected)


@pytest.mark.parametrize('options', [
    {'sigma': 'local'}, {'sigma': 'local', 'affinity': 'heat'}, {'sigma': 0.15}, {'sigma': 0.1, 'affinity': 'heat'},
    {'sigma': float('inf')}, {'sigma': 'local', 'solver': 'subspace'},
])  # fmt: skip
def test_rings(options):
    x, truth = rings()
    assert agreement(spectral_clustering(x, 2, **options).labels, truth) == 1


@pytest.mark.parametrize('solver', ['eigh', 'subspace'])
@pytest.mark.parametrize('num_clusters', [2, 5, 12])
def test_separable_data_as_scikit_learn(num_clusters, solver):
    sklearn_cluster = pytest.importorskip('sklearn.cluster')
    x, truth = blobs(num_clusters, 16)
    result = spectral_clustering(x, num_clusters, sigma='local', solver=solver)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the graph is not fully connected: that is the point
        oracle = sklearn_cluster.SpectralClustering(num_clusters, affinity='nearest_neighbors', random_state=0)
        expected = oracle.fit_predict(x.numpy())
    assert agreement(expected, truth) == 1
    assert agreement(result.labels, expected) == 1
    assert result.labels[result.medoids].tolist() == list(range(num_clusters))


def test_precomputed_as_scikit_learn():
    sklearn_cluster = pytest.importorskip('sklearn.cluster')
    x, _ = blobs(4, 2, spread=4.0, seed=3)
    weights = torch.exp(-torch.cdist(x, x).square() / 8)
    oracle = sklearn_cluster.SpectralClustering(4, affinity='precomputed', random_state=0).fit_predict(weights.numpy())
    assert agreement(spectral_clustering(weights, 4, affinity='precomputed').labels, oracle) == 1


@pytest.mark.parametrize('solver', ['eigh', 'subspace'])
def test_leading_eigenvectors_span_the_true_space(solver):
    x, _ = blobs(5, 6, per_cluster=40, spread=3.0)
    adjacency, _ = normalized_adjacency(
        affinity_matrix(self_distances(x[None], 'euclidean'), 'knn', 'local', 8, None), None
    )
    values, exact = np.linalg.eigh(adjacency[0].double().numpy())
    assert values[-5] - values[-6] > 0.01
    vectors, good = leading_eigenvectors(adjacency, 5, solver)
    assert good.all()
    found = vectors[0].double().numpy()
    np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-4)
    cosines = np.linalg.svd(exact[:, -5:].T @ found, compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


def shape(kind, num_points, seed):
    """Points (N, 2) and the curve (N,) each lies on."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_points) % 2
    place = (torch.arange(num_points) // 2 + 0.5) / (num_points / 2)
    noise = torch.randn(num_points, 2, generator=generator)
    if kind == 'spirals':
        turn = place.sqrt() * 9 + 1.5
        x = turn[:, None] * torch.stack([(turn + labels * torch.pi).cos(), (turn + labels * torch.pi).sin()], -1)
        return x + 0.2 * noise, labels
    angle = place * (torch.pi if kind == 'moons' else 2 * torch.pi)
    x = torch.stack([angle.cos(), angle.sin()], -1)
    if kind == 'moons':
        x = torch.where(labels[:, None] == 1, torch.tensor([1.0, 0.5]) - x, x)
    else:
        x = x * torch.where(labels == 1, 0.5, 1.0)[:, None]
    return x + 0.04 * noise, labels


@pytest.mark.parametrize('kind', ['moons', 'circles', 'spirals'])
@pytest.mark.parametrize(('num_points', 'dtype', 'solver'), [
    (600, torch.float32, 'auto'), (600, torch.float32, 'subspace'), (1100, torch.float32, 'auto'),
    (1500, torch.float64, 'auto'), (2500, torch.float32, 'auto'),
])  # fmt: skip
def test_small_gaps_are_resolved(kind, num_points, dtype, solver):
    x, truth = shape(kind, num_points, num_points)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        labels = spectral_clustering(x.to(dtype), 2, solver=solver).labels
    assert agreement(labels, truth) == 1


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['moons', 'circles', 'spirals'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_small_gaps_of_five_thousand_points(kind, dtype):
    x, truth = shape(kind, 5000, 1)
    assert agreement(spectral_clustering(x.to(dtype), 2).labels, truth) == 1


@pytest.mark.parametrize('num_points', [60, 120, 300])
@pytest.mark.parametrize('num_clusters', [2, 5])
def test_the_branch_of_accelerators_equals_eigh_for_few_points(num_points, num_clusters):
    assert choose_solver(num_points, num_clusters + 8, torch.device('cuda')) == 'subspace'
    x, _ = blobs(num_clusters, 3, per_cluster=num_points // num_clusters, spread=1.5, seed=num_points)
    x[0] = 200.0  # an outlier
    exact, found = (spectral_clustering(x, num_clusters, solver=solver) for solver in ('eigh', 'subspace'))
    assert agreement(found.labels, exact.labels) == 1


def test_connected_parts_of_many_shapes():
    parts = [shape(kind, 400, 3)[0] + offset for kind, offset in (('moons', 0.0), ('circles', 30.0), ('moons', 60.0))]
    x = torch.cat([*parts, parts[0].mean(0, keepdim=True) - 5])
    truth = torch.cat([2 * i + torch.arange(400) % 2 for i in range(3)])
    labels = spectral_clustering(x, 7).labels[:1200]  # the far point has no neighbors: a part of its own
    assert agreement(labels, truth) == 1


def test_says_so_when_the_iteration_does_not_converge_or_no_gap_exists(monkeypatch):
    x = torch.arange(4.0).repeat_interleave(40)[:, None] * 100 + torch.randn(
        160, 3, generator=torch.Generator().manual_seed(1)
    )  # four parts, cut into two
    for solver in ('eigh', 'subspace'):
        with pytest.warns(UserWarning, match='not unique'):
            spectral_clustering(x, 2, solver=solver)
    module = importlib.import_module('clusterplug.functional.graph._leading_eigenvectors')
    x, truth = shape('moons', 1200, 5)
    monkeypatch.setattr(module, '_products_allowed', lambda *_: 0)
    with pytest.warns(UserWarning, match='did not converge'):
        spectral_clustering(x, 2, solver='subspace')
    assert agreement(spectral_clustering(x, 2).labels, truth) == 1  # 'auto' falls back


@pytest.mark.parametrize('scale', [1e-30, 1e-6, 1e-3, 1e6, 1e30])
@pytest.mark.parametrize('num_points', [300, 1100])
def test_unit_of_given_weights_does_not_matter(scale, num_points):
    x, truth = shape('moons', num_points, 2)
    weights = affinity_matrix(self_distances(x[None], 'euclidean'), 'knn', float('inf'), 10, None)[0]
    labels = spectral_clustering(weights, 2, affinity='precomputed').labels
    scaled = spectral_clustering(weights * scale, 2, affinity='precomputed').labels
    assert agreement(scaled, labels) == 1
    assert agreement(labels, truth) > 0.9


def test_large_problem_takes_the_subspace():
    x, truth = blobs(10, 8, per_cluster=105)
    assert agreement(spectral_clustering(x, 10, sigma='local').labels, truth) == 1


def test_rotation_offset_permutation_and_unit_change_nothing():
    generator = torch.Generator().manual_seed(2)
    x, truth = blobs(4, 5, spread=4.0, seed=2)
    labels = spectral_clustering(x, 4, sigma='local').labels
    assert agreement(labels, truth) > 0.9
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    order = torch.randperm(len(x), generator=generator)
    for changed in (x @ rotation, x + 1000, x * 1e-6, x * 1e6):
        assert agreement(spectral_clustering(changed, 4, sigma='local').labels, labels) == 1
    permuted = spectral_clustering(x[order], 4, sigma='local').labels
    assert agreement(permuted, labels[order]) == 1


def test_signs_and_rotations_of_the_eigenvectors_change_nothing(monkeypatch):
    # The package exports the function under the module's name.
    module = importlib.import_module('clusterplug.functional.graph.spectral')
    x, _ = blobs(4, 5, spread=2.0, seed=4)
    x = x.double()
    expected = spectral_clustering(x, 4, sigma='local')
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=x.dtype))[0]

    def rotated(matrix, count, solver):
        vectors, good = leading_eigenvectors(matrix, count, solver)
        return vectors @ rotation, good

    monkeypatch.setattr(module, 'leading_eigenvectors', rotated)
    result = spectral_clustering(x, 4, sigma='local')
    assert torch.equal(result.medoids, expected.medoids)
    assert torch.equal(result.labels, expected.labels)


def test_batch_equals_loop():
    x = torch.stack([blobs(3, 4, spread=3.0, seed=seed)[0] for seed in range(4)]).view(2, 2, 60, 4)
    result = spectral_clustering(x, 3, sigma='local')
    assert result.labels.shape == (2, 2, 60)
    for i in range(2):
        for j in range(2):
            alone = spectral_clustering(x[i, j], 3, sigma='local')
            assert torch.equal(result.medoids[i, j], alone.medoids)
            assert torch.equal(result.labels[i, j], alone.labels)


@pytest.mark.parametrize('solver', ['eigh', 'subspace'])
def test_masked_equals_removed(solver):
    x, truth = blobs(3, 4, spread=20.0, seed=5)
    x = x[None].repeat(3, 1, 1)
    mask = torch.rand(3, 60, generator=torch.Generator().manual_seed(5)) > 0.3
    result = spectral_clustering(
        x.masked_fill(~mask[..., None], float('inf')), 3, sigma='local', mask=mask, solver=solver
    )
    for i in range(3):
        kept = mask[i].nonzero().flatten()
        alone = spectral_clustering(x[i, kept], 3, sigma='local', solver=solver)
        assert result.medoids[i].tolist() == kept[alone.medoids].tolist()
        assert torch.equal(result.labels[i, kept], alone.labels)
        assert result.labels[i, ~mask[i]].eq(-1).all()
        assert agreement(alone.labels, truth[kept]) == 1


def test_edges():
    assert spectral_clustering(torch.randn(1, 3), 1).medoids.tolist() == [0]
    x = torch.randn(6, 3)
    assert spectral_clustering(x, 6, sigma='local').medoids.tolist() == list(range(6))
    equal = spectral_clustering(torch.ones(8, 3), 2)
    assert set(equal.labels.tolist()) == {0, 1}
    nothing = spectral_clustering(torch.randn(2, 5, 3), 2, mask=torch.zeros(2, 5, dtype=torch.bool))
    assert nothing.labels.eq(-1).all()
    assert nothing.medoids.eq(-1).all()


@pytest.mark.parametrize('sigma', [2.0, 'local', float('inf')])
def test_duplicates_and_collinear_points(sigma):
    x = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 40.0, 40.0, 40.1, 40.1, 40.1, 40.3])[:, None] * torch.ones(3)
    labels = spectral_clustering(x, 2, sigma=sigma, num_neighbors=6).labels
    assert labels.tolist() == [0] * 6 + [1] * 6
    many = x.repeat(5, 1)  # more than seven copies of each: the local width is zero
    result = spectral_clustering(many, 2, sigma=sigma, affinity='heat')
    assert torch.isfinite(result.cost)


def test_half_is_computed_in_fp32():
    x = blobs(3, 6)[0].bfloat16()
    half, full = spectral_clustering(x, 3, sigma='local'), spectral_clustering(x.float(), 3, sigma='local')
    assert torch.equal(half.labels, full.labels)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(spectral_clustering(x.float(), 3, sigma='local').labels, full.labels)


def test_a_width_far_too_small_warns():
    x = 30 * torch.randn(40, 64, generator=torch.Generator().manual_seed(6))
    with pytest.warns(UserWarning, match="sigma='local'"):
        spectral_clustering(x, 3, affinity='heat', sigma=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        spectral_clustering(x, 3, sigma='local')


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        ({'affinity': 'rbf'}, ValueError, 'knn, heat, precomputed'),
        ({'sigma': 0.0}, ValueError, 'positive'),
        ({'sigma': float('nan')}, ValueError, 'positive'),
        ({'sigma': 'auto'}, ValueError, "'local'"),
        ({'num_neighbors': 0}, ValueError, 'num_neighbors'),
        ({'num_neighbors': 9}, ValueError, 'number of points, 8'),
        ({'solver': 'arpack'}, ValueError, 'solver'),
        ({'num_clusters': 9}, ValueError, 'at most 8'),
        ({'affinity': 'precomputed'}, ValueError, 'square'),
        ({'affinity': 'precomputed', 'x': -torch.ones(4, 4)}, ValueError, 'non-negative'),
        ({'x': torch.full((8, 2), float('nan'))}, ValueError, 'finite'),
        ({'x': torch.zeros(8, 2).long()}, TypeError, 'floating'),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        spectral_clustering(**{'x': torch.randn(8, 2), 'num_clusters': 2, **change})
