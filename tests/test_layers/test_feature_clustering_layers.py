# SPDX-License-Identifier: Apache-2.0
"""Layers of FEC: regions, sizes that do not divide, masks."""

import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional import cluster_encode
from clusterplug.functional.features._grid_cells import average_cells
from clusterplug.layers import FeatureClustering, FeatureClusteringBlock, FeatureClusteringPool
from clusterplug.layers.maps import MapNorm, join_regions, split_regions


def layer(kind, **options):
    torch.manual_seed(0)
    if kind == 'pool':
        return FeatureClusteringPool(6, 10, **options).double()
    if kind == 'block':
        return FeatureClusteringBlock(6, layer_scale=1.0, heads=2, head_dim=4, grid=3, **options).double()
    return FeatureClustering(6, heads=2, head_dim=4, grid=3, **options).double()


def test_regions_are_crops_and_come_back():
    x = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    regions = split_regions(x, (2, 3))
    assert regions.shape == (12, 3, 4, 4)
    assert regions[1].equal(x[0, :, :4, 4:8])
    assert regions[6 + 5].equal(x[1, :, 4:, 8:])
    assert join_regions(regions, (2, 3)).equal(x)
    assert join_regions(split_regions(x[:, 0], (4, 1)), (4, 1)).equal(x[:, 0])


def test_clusters_of_regions_are_those_of_crops():
    folded, whole = layer('mix', fold=(2, 1)), layer('mix')
    x = torch.randn(2, 6, 12, 10, dtype=torch.float64)
    out, clusters = folded.cluster(x)
    for part, rows in enumerate((slice(0, 6), slice(6, 12))):
        expected, alone = whole.cluster(x[:, :, rows])
        torch.testing.assert_close(out[:, :, rows], expected)
        assert clusters.labels[:, :, rows].equal(alone.labels + 9 * part)
        torch.testing.assert_close(clusters.representatives[:, :, 9 * part : 9 * (part + 1)], alone.representatives)
        assert clusters.counts[:, :, 9 * part : 9 * (part + 1)].equal(alone.counts)


def test_pooled_regions_are_those_of_crops():
    folded, whole = layer('pool', fold=2), layer('pool')
    x = torch.randn(2, 6, 12, 8, dtype=torch.float64)
    _, clusters = folded.cluster(x)
    labels, means = clusters.labels[:, 0], clusters.representatives[:, 0].unflatten(1, (6, 4))
    for top in (0, 6):
        for left in (0, 4):
            alone = whole.cluster(x[:, :, top : top + 6, left : left + 4])[1]
            row, column = alone.labels[:, 0] // 2 + top // 2, alone.labels[:, 0] % 2 + left // 2
            assert labels[:, top : top + 6, left : left + 4].equal(row * 4 + column)
            torch.testing.assert_close(
                means[:, top // 2 : top // 2 + 3, left // 2 : left // 2 + 2].flatten(1, 2), alone.representatives[:, 0]
            )


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (3, 2), (7, 9), (13, 10)])
@pytest.mark.parametrize('fold', [1, 2, 8, (3, 1)])
def test_any_size(size, fold):
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    out, clusters = layer('mix', fold=fold).cluster(x)
    assert out.shape == x.shape
    assert clusters.labels.shape == (2, 2, *size)
    assert (clusters.labels >= 0).all()
    assert (clusters.counts.sum(-1) == size[0] * size[1]).all()
    pooled, clusters = layer('pool', fold=fold).cluster(x)
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    assert pooled.shape == (2, 10, *half)
    assert (clusters.counts.sum(-1) == size[0] * size[1]).all()
    assert ((clusters.labels >= 0) & (clusters.labels < half[0] * half[1])).all()


@pytest.mark.parametrize('kind', ['mix', 'block', 'pool'])
@pytest.mark.parametrize('fold', [1, 2])
def test_padding_changes_nothing(kind, fold):
    module = layer(kind, fold=fold)
    x = torch.full((2, 6, 11, 13), 1e6, dtype=torch.float64)
    mask = torch.zeros(2, 11, 13, dtype=torch.bool)
    sizes = ((11, 13), (7, 6)) if fold == 1 else ((11, 13), (11, 13))
    for number, (height, width) in enumerate(sizes):
        x[number, :, :height, :width] = torch.randn(6, height, width, dtype=torch.float64)
        mask[number, :height, :width] = True
    out, clusters = module.cluster(x, mask)
    for number, (height, width) in enumerate(sizes):
        alone, alone_clusters = module.cluster(x[number : number + 1, :, :height, :width])
        rows, columns = alone.shape[2:]
        torch.testing.assert_close(out[number : number + 1, :, :rows, :columns], alone)
        labels = clusters.labels[number : number + 1, :, :height, :width]
        if kind == 'pool':
            across = (mask.shape[2] + 1) // 2
            labels = labels // across * columns + labels % across
        assert labels.equal(alone_clusters.labels)
        assert (clusters.labels[number][:, ~mask[number]] == -1).all()


@pytest.mark.parametrize('aggregate', ['mean', 'similarity'])
@pytest.mark.parametrize('grid', [2, 3, (7, 6)])
def test_maps_out_of_the_sums_change_nothing(aggregate, grid):
    """Means of values are values of means: the layer is the operator between three convolutions."""
    torch.manual_seed(0)
    mix = FeatureClustering(6, heads=2, head_dim=4, grid=grid, aggregate=aggregate).double()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    maps = [conv(x) for conv in (mix.features, mix.values)]
    centers = [F.adaptive_avg_pool2d(each, grid) for each in maps]
    sets = [each.unflatten(1, (2, 4)).flatten(3).mT for each in (*maps, *centers)]
    out, expected = cluster_encode(*sets, scale=mix.scale, shift=mix.shift, weighting=aggregate)
    out = mix.project(out.mT.reshape(2, 8, 9, 8))
    found, clusters = mix.cluster(x)
    torch.testing.assert_close(found, out)
    torch.testing.assert_close(clusters.representatives, expected.representatives)
    torch.testing.assert_close(clusters.counts, expected.counts)
    torch.testing.assert_close(clusters.similarity.flatten(2), expected.similarity)
    assert clusters.labels.flatten(2).equal(expected.labels)
    leaves = [x, *mix.parameters()]
    gradients = [torch.autograd.grad(each.square().sum(), leaves) for each in (found, out)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ('size', 'grid'), [((8, 8), (4, 4)), ((7, 10), (3, 4)), ((2, 3), (4, 2)), ((300, 300), (4, 4))]
)
def test_averages_of_cells(size, grid):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        average_cells(x.detach().clone(), grid)
    expected = F.adaptive_avg_pool2d(x, grid)
    found = average_cells(x, grid)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(each.square().sum(), x)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes)
    assert average_cells(x.detach().bfloat16(), grid).dtype == torch.bfloat16


def test_norm_over_valid_places():
    norm = MapNorm(4).double()
    x, mask = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.rand(2, 5, 6) < 0.5
    mask[0] = True
    expected = norm(x)
    x[1, :, ~mask[1]] = torch.nan
    out = norm(x, mask)
    torch.testing.assert_close(out[0], expected[0])
    valid = out[1][:, mask[1]]
    torch.testing.assert_close(valid.mean(), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(valid.var(correction=0), torch.ones((), dtype=torch.float64), atol=1e-3, rtol=0)
    assert not out[1][:, ~mask[1]].any()


@pytest.mark.parametrize('aggregate', ['mean', 'similarity', 'soft'])
def test_every_weight_is_trained(aggregate):
    module = layer('block', aggregate=aggregate)
    module(torch.randn(2, 6, 8, 8, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_drop_path_keeps_the_mean():
    module = layer('block', drop_path_rate=0.5)
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64).expand(4000, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        added = module.clustering(module.norm1(x[:1])).abs().mean()
        difference = (module.train()(x).mean(0) - module.eval()(x[:1])[0]).abs().mean()
    assert difference < 0.1 * added


def test_bad_input():
    with pytest.raises(ValueError, match='heads must be an int of at least 1, got 0'):
        FeatureClustering(8, heads=0)
    with pytest.raises(ValueError, match='weighting must be one of'):
        FeatureClustering(8, aggregate='max')
    with pytest.raises(TypeError, match=r'grid must be an int or \(down, across\)'):
        FeatureClustering(8, grid=(1, 2, 3))
    with pytest.raises(ValueError, match='fold must be at least 1, got 0'):
        FeatureClustering(8, fold=0)
    with pytest.raises(ValueError, match='similarity must be one of learned, official'):
        FeatureClusteringPool(8, 8, similarity='none')
    with pytest.raises(ValueError, match='drop_path_rate must be from 0 to below 1'):
        FeatureClusteringBlock(8, drop_path_rate=1)
