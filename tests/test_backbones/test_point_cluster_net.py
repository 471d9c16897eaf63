# SPDX-License-Identifier: Apache-2.0
"""PointClusterNet: order of points, masks, scale, both kinds; set abstraction against plain loops."""

import pytest
import torch

from clusterplug.backbones import ClusterLogits, PointClusterNet, scale_plots
from clusterplug.backbones._set_abstraction import farthest_points, interpolation, nearest_in_ball
from clusterplug.functional import matched_cross_entropy
from clusterplug.registry import MODELS

KINDS = ('attention', 'pointnet')


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module', params=KINDS)
def net(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PointClusterNet(5, kind=request.param, agreement=True).eval()


def test_permuting_points_permutes_outputs(net):
    x, order = rand(3, 70, 2), torch.randperm(70, generator=torch.Generator().manual_seed(1))
    one, other = net(x), net(x[:, order])
    assert isinstance(one, ClusterLogits)
    assert one.logits.shape == (3, 70, 6)
    torch.testing.assert_close(other.logits, one.logits[:, order], rtol=0, atol=1e-4)
    torch.testing.assert_close(other.agreement, one.agreement[:, order], rtol=0, atol=1e-4)


def test_masked_points_play_no_part(net):
    x, mask = rand(2, 40, 2), torch.arange(40) < torch.tensor([[40], [29]])
    other = torch.where(mask[..., None], x, torch.nan)
    one, two = net(x, mask), net(other, mask)
    torch.testing.assert_close(one.logits, two.logits)
    assert not one.logits[1, 29:].any()
    assert not one.agreement[1, 29:].any()
    if net.kind == 'attention':  # the number of sampled points follows N, masked ones counted
        torch.testing.assert_close(one.logits[1:, :29], net(x[1:, :29]).logits, rtol=0, atol=1e-5)
    assert net(x, torch.zeros_like(mask)).logits.isfinite().all()


def test_place_and_scale_do_not_matter(net):
    x = rand(1, 30, 2).double()
    expected = net(x.float()).logits
    for moved in (x * 1e-3, x * 1e6 + 1e8, x * 1e300 - 5e299):
        torch.testing.assert_close(net(moved).logits, expected, rtol=0, atol=2e-3)
    assert net(x.half()).logits.isfinite().all()


@pytest.mark.parametrize('number', [1, 2, 3, 5])
def test_few_and_equal_points(net, number):
    assert net(rand(2, number, 2)).logits.shape == (2, number, 6)
    same = net(torch.full((1, number, 2), 7.0)).logits
    torch.testing.assert_close(same, same[:, :1].expand_as(same), rtol=0, atol=1e-5)


def test_scale_plots_by_hand():
    x = torch.tensor([[[1.0, 5.0], [3.0, 6.0], [2.0, 5.5]]])
    assert scale_plots(x).tolist() == [[[0, 0], [1, 0.5], [0.5, 0.25]]]
    assert scale_plots(x, per_axis=True).tolist() == [[[0, 0], [1, 1], [0.5, 0.5]]]
    flat = torch.tensor([[[4.0, 0.0], [4.0, 2.0]]])  # all x equal: scaled by the other axis
    for per_axis in (False, True):
        assert scale_plots(flat, per_axis=per_axis).tolist() == [[[0, 0], [0, 1]]]
    mask = torch.tensor([[True, True, False]])
    assert scale_plots(x, mask).tolist() == [[[0, 0], [1, 0.5], [0, 0]]]
    assert scale_plots(torch.tensor([[[3e38], [-3e38]]])).tolist() == [[[1], [0]]]


def test_farthest_points_are_the_plain_loop():
    x, mask = rand(2, 25, 2), rand(2, 25, seed=1) > 0.3
    for got, plot, valid in zip(farthest_points(x, 6, mask), x, mask):
        rows = valid.nonzero().flatten().tolist()
        mean = plot[valid].mean(0)
        chosen = [min(rows, key=lambda i: float((plot[i] - mean).norm()))]
        while len(chosen) < 6:
            chosen.append(max(rows, key=lambda i: min(float((plot[i] - plot[j]).norm()) for j in chosen)))
        assert got.tolist() == chosen
    assert farthest_points(x, 4, torch.zeros_like(mask)).tolist() == [[0] * 4] * 2


def test_balls_and_interpolation_are_the_plain_loop():
    x, centers = rand(1, 20, 2), rand(1, 4, 2, seed=1)
    index, inside = nearest_in_ball(centers, x, 0.3, 8)
    for center, row, within in zip(centers[0], index[0], inside[0]):
        distances = (x[0] - center).norm(dim=1)
        assert row.tolist() == distances.argsort()[:8].tolist()
        expected = distances[row] <= 0.3
        expected[0] = True
        assert torch.equal(within, expected)
    index, weights = interpolation(x, centers)
    for point, row, share in zip(x[0], index[0], weights[0]):
        squared = (centers[0] - point).square().sum(1)
        assert row.tolist() == squared.argsort()[:3].tolist()
        expected = 1 / (squared[row] + 1e-8)
        torch.testing.assert_close(share, expected / expected.sum(), rtol=1e-4, atol=1e-6)
    assert interpolation(x, centers[:, :2])[0].shape == (1, 20, 2)


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_learns_also_in_mixed_precision(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = PointClusterNet(3, kind=kind, noise=False, dropout=0.0)
        x = torch.cat([rand(4, 12, 2) * 0.2, rand(4, 12, 2, seed=1) * 0.2 + 0.8], 1)
        labels = torch.arange(24).expand(4, -1) // 12
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            with torch.autocast('cpu', dtype=torch.bfloat16):
                loss = matched_cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_from_a_config_and_its_options():
    net = MODELS.build(dict(type='PointClusterNet', num_clusters=4, in_channels=3, depth=2, noise=False))
    assert net(rand(1, 9, 3)).shape == (1, 9, 4)
    again = PointClusterNet(**net.options)
    again.load_state_dict(net.state_dict())
    assert PointClusterNet().classifier.out_features == 21


def test_bad_input():
    net = PointClusterNet(3, depth=1).eval()
    with pytest.raises(ValueError, match='2 coordinates'):
        net(rand(1, 5, 3))
    with pytest.raises(ValueError, match=r'\(B, N, D\)'):
        net(rand(5, 2))
    with pytest.raises(ValueError, match='N >= 1'):
        net(rand(1, 0, 2))
    with pytest.raises(ValueError, match='points must be finite'):
        net(torch.full((1, 3, 2), torch.nan))
    with pytest.raises(TypeError, match='floating'):
        net(torch.zeros(1, 3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match='bool'):
        net(rand(1, 3, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match='kind must be one of'):
        PointClusterNet(3, kind='conv')
    with pytest.raises(ValueError, match='depth must be 4'):
        PointClusterNet(3, kind='pointnet', depth=2)
    with pytest.raises(ValueError, match='multiple of num_heads'):
        PointClusterNet(3, embed_dims=30)
