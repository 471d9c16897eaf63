# SPDX-License-Identifier: Apache-2.0
"""FEC on points: cells, clusters against a plain loop, the backbone, and an mmdet3d training."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clusterplug.backbones import FECPoints
from clusterplug.functional import cell_means, cluster_points, spread_clusters
from clusterplug.functional.features import point_cells
from clusterplug.layers import PointFeatureClusteringBlock, PointFeatureClusteringPool

ROOT = Path(__file__).resolve().parents[2]


def cloud(number=120, extent=12, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(-extent // 2, extent // 2, (number, 3), generator=generator)
    entry = torch.randint(0, batch, (number, 1), generator=generator)
    return torch.cat([entry, places], 1)


def plain_cells(coordinates, size):
    keys = [(int(b), *(int(v) // size for v in xyz)) for b, *xyz in coordinates.tolist()]
    order = sorted(set(keys))
    around = []
    for b, x, y, z in order:
        around.append({(b, x + dx, y + dy, z) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & set(order))
    return [order.index(key) for key in keys], [{order.index(key) for key in keys} for keys in around], order


@pytest.mark.parametrize('size', [1, 2, 5])
def test_cells_equal_the_plain_ones(size):
    coordinates = cloud()
    cells = point_cells(coordinates, size)
    home, around, order = plain_cells(coordinates, size)
    assert cells.home.tolist() == home
    assert [set(row) for row in cells.around.tolist()] == around
    assert cells.around[:, 0].tolist() == list(range(len(order)))
    assert [tuple(row) for row in cells.coordinates.tolist()] == order


def test_clusters_equal_the_plain_loop():
    torch.manual_seed(0)
    coordinates = cloud(60, 6)
    x, values = torch.randn(60, 2, 3, dtype=torch.float64), torch.randn(60, 2, 4, dtype=torch.float64)
    cells = point_cells(coordinates, 2)
    clusters = cluster_points(x, values, cells, scale=1.5)
    centers, own = cell_means(x, cells), cell_means(values, cells)
    for head in range(2):
        members = [[] for _ in own]
        for point in range(60):
            near = cells.around[cells.home[point]].tolist()
            cosines = [float(F.cosine_similarity(x[point, head], centers[m, head], dim=0)) for m in near]
            label = near[cosines.index(max(cosines))]
            assert int(clusters.labels[point, head]) == label
            assert float(clusters.similarity[point, head]) == pytest.approx(1.5 * max(cosines))
            members[label].append(values[point, head])
        for cell, group in enumerate(members):
            expected = (own[cell, head] + sum(group)) / (1 + len(group))
            torch.testing.assert_close(clusters.representatives[cell, head], expected)
            assert int(clusters.counts[cell, head]) == len(group)
    spread = spread_clusters(clusters)
    assert spread[7, 1].equal(clusters.representatives[clusters.labels[7, 1], 1])


def test_gradients():
    cells = point_cells(cloud(20, 6), 3)
    x, values = (torch.randn(20, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)

    def run(x, values, scale):
        clusters = cluster_points(x, values, cells, scale=scale)
        return spread_clusters(clusters) * clusters.similarity.sigmoid()[..., None]

    assert torch.autograd.gradcheck(run, (x, values, scale))
    plain = cluster_points(x, values, cells).representatives
    through = cluster_points(x, values, cells, straight_through=True).representatives
    assert through.equal(plain)
    assert torch.autograd.grad(plain.square().sum(), x, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(through.square().sum(), x)[0].any()


def test_clouds_of_a_batch_do_not_touch():
    torch.manual_seed(0)
    model = FECPoints().double().eval()
    coordinates, features = cloud(200), torch.randn(200, 4, dtype=torch.float64)
    together = model(features, coordinates)
    for entry in range(2):
        mine = coordinates[:, 0] == entry
        torch.testing.assert_close(model(features[mine], coordinates[mine]), together[mine])
    order = torch.randperm(200)
    torch.testing.assert_close(model(features[order], coordinates[order]), together[order])


def test_every_weight_is_trained():
    model = FECPoints(dims=(16, 24, 32), blocks=(1, 1, 1), heads=2)
    model(torch.randn(300, 4), cloud(300, 30)).square().sum().backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_edges_and_bad_input():
    model = FECPoints()
    assert model(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32)).shape == (0, 32)
    assert model(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.int32)).isfinite().all()
    with torch.autocast('cpu', torch.bfloat16):
        assert model(torch.randn(50, 4), cloud(50)).isfinite().all()
    with pytest.raises(ValueError, match=r'features must have shape \(points, 4\)'):
        model(torch.zeros(3, 5), cloud(3))
    with pytest.raises(ValueError, match=r'coordinates must be int \(N, 4\)'):
        point_cells(torch.zeros(3, 3))
    with pytest.raises(ValueError, match='size must be an int of at least 1'):
        point_cells(cloud(3), 0)
    with pytest.raises(ValueError, match='dims and blocks must have a value for each stage'):
        FECPoints(dims=(8, 16), blocks=(1,))


def test_layers_alone():
    cells = point_cells(cloud(40), 2)
    x = torch.randn(40, 8)
    assert PointFeatureClusteringBlock(8, heads=2, head_dim=4)(x, cells).shape == (40, 8)
    pooled, clusters = PointFeatureClusteringPool(8, 12)(x, cells)
    assert pooled.shape == (len(cells.coordinates), 12)
    assert clusters.counts.sum() == 40


@pytest.mark.slow
def test_lidar_city_config_trains(tmp_path, monkeypatch):
    pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')
    from mmengine.runner import Runner

    from clusterplug import compat
    from clusterplug.cli import load_config
    from clusterplug.testing import tiny_host_config, write_tiny_layouts

    compat.apply_all()
    path = ROOT / 'configs' / 'fec' / 'fec-points_small_1xb1-5e_lidar-city.py'
    config = tiny_host_config(load_config(str(path), work_dir=str(tmp_path)), write_tiny_layouts(tmp_path), max_iters=8)
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        config[key] = None
    config.experiment_name = path.stem
    runner = Runner.from_cfg(config)
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
    runner.train()
    assert type(runner.model.backbone).__name__ == 'FECPoints'
    assert [name for name, value in runner.model.named_parameters() if value.equal(before[name])] == []
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    assert losses[-2:].mean() < losses[:2].mean()
