# SPDX-License-Identifier: Apache-2.0
"""UnitMatching and its moments: against all activations at once, planted subspaces, trained digits nets, two ViTs."""

import pytest
import torch
from torch import nn

from clusterplug.analysis import UnitMatching, UnitMoments
from clusterplug.functional import adjusted_rand_index, linear_cka, match_units, sparse_mapping, unit_correlation
from clusterplug.testing.distributed import run_gloo


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def units(seed=0, number=1000, dtype=torch.float32):
    x = randn(number, 7, seed=seed, dtype=dtype) + torch.tensor([0, 1, -5, 100, 3, 0, 0], dtype=dtype)
    y = randn(number, 5, seed=seed + 1, dtype=dtype) * torch.tensor([1, 1e-3, 1e3, 1, 1], dtype=dtype)
    y[:, :3] += y[:, :3].std(0) * randn(number, 3, seed=seed, dtype=dtype)
    x[:, 5], y[:, 4] = 0.1, 7.0  # dead
    return x, y


def moments_of(x, y, size=137):
    found = UnitMoments()
    for rows in zip(x.split(size), y.split(size), strict=True):
        found.add(*rows)
    return found


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_moments_equal_all_at_once(dtype):
    x, y = units(dtype=dtype)
    found = moments_of(x, y)
    tolerance = dict(rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-11)
    torch.testing.assert_close(found.correlation(), unit_correlation(x.double(), y.double()), **tolerance)
    both = torch.cat([x, y], 1).double()
    torch.testing.assert_close(found.correlations(), unit_correlation(both, both), **tolerance)
    assert [each.tolist().count(False) for each in found.live()] == [1, 1]
    scaled = y.double() / y.double().abs().amax(0)
    found = moments_of(x, scaled.to(dtype))
    for biased in (False, True):
        expected = float(linear_cka(x.double(), scaled, biased=biased))
        assert found.cka(biased) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(found.means()[0], x.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.deviations()[0], x.double().std(0, correction=0), rtol=1e-5, atol=1e-6)
    expected = sparse_mapping(x.double(), scaled, penalty=0.1, standardized=True)
    torch.testing.assert_close(found.sparse_mapping(0.1), expected, rtol=0, atol=1e-5)


def test_merged_moments_are_those_of_all():
    x, y = units()
    whole = moments_of(x, y)
    other = moments_of(1000 * randn(50, 7, seed=9), randn(50, 5, seed=8) + 50)  # another origin and scale
    both = moments_of(x, y).merged(other)
    every = UnitMoments()
    every.add(torch.cat([x, 1000 * randn(50, 7, seed=9)]), torch.cat([y, randn(50, 5, seed=8) + 50]))
    assert both.count == 1050
    torch.testing.assert_close(both.correlations(), every.correlations(), rtol=0, atol=1e-5)
    assert both.cka() == pytest.approx(every.cka(), abs=1e-6)
    assert whole.merged(UnitMoments()) is whole
    assert UnitMoments().merged(whole) is whole


@pytest.mark.slow
def test_ranks_together_are_one_process():
    expected = moments_of(*units()).correlation()
    for found in run_gloo(_two_ranks, 2):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def _two_ranks(rank, world_size):
    x, y = units()
    part = slice(0, 300) if rank else slice(300, 1000)
    return moments_of(x[part], y[part]).over_ranks().correlation()


def test_huge_far_and_dead_units():
    x = randn(500, 3) * 1e25
    found = moments_of(x, x[:, [1, 0, 2]])
    assert match_units(found.correlation()).tolist() == [1, 0, 2]
    far = randn(500, 3) + 1e4
    torch.testing.assert_close(
        moments_of(far, far).correlation(), unit_correlation(far, far).double(), rtol=0, atol=1e-4
    )
    dead = moments_of(torch.full((500, 2), 0.1), randn(500, 2))
    assert dead.correlation().abs().max() == 0
    assert dead.cka() != dead.cka()
    with pytest.raises(ValueError, match='NaN or infinity'):
        moments_of(torch.full((5, 2), torch.inf), randn(5, 2))
    with pytest.raises(ValueError, match='no positions yet'):
        UnitMoments().live()


def test_planted_subspaces_are_groups_of_both_networks():
    """Check 6: random bases of the same three subspaces; spectral groups mix both nets and match them (ARI 1)."""
    spaces = [randn(4000, 3, seed=k) for k in range(3)]
    nets = []
    for seed in (10, 20):
        turns = [torch.linalg.qr(randn(3, 3, seed=seed + k)).Q for k in range(3)]
        nets.append(
            torch.cat([s @ t for s, t in zip(spaces, turns, strict=True)], 1)[
                :, torch.randperm(9, generator=torch.Generator().manual_seed(seed))
            ]
        )
    truth = []
    for net in nets:
        energy = torch.stack([unit_correlation(net, s).square().sum(1) for s in spaces], 1)
        truth.append(energy.argmax(1))
    net = nn.Identity()
    other = nn.Identity()
    matching = UnitMatching(nn.Sequential(net), nn.Sequential(other), ['0'], forward=lambda m, b: m(b[m[0] is other]))
    matching.fit([nets])
    found = matching.groups('0', 3)
    assert adjusted_rand_index(torch.cat(truth), torch.cat(found)) == 1
    assert all(set(each.tolist()) == {0, 1, 2} for each in found)
    with pytest.raises(ValueError, match='num_groups'):
        matching.groups('0', 19)


def digits_net(seed, epochs=25):
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.from_numpy(data.data).float() / 16, torch.from_numpy(data.target)
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1200, generator=g).split(64):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net, x


@pytest.fixture(scope='module')
def digits():
    nets = [digits_net(seed) for seed in (0, 1)]
    return nets[0][0], nets[1][0], nets[0][1]


def test_two_trained_nets(digits):
    """Check 7: semi .716, bipartite .652, equal choices 45 %, identity -.02 in layer 1 (their training)."""
    one, other, x = digits
    matching = UnitMatching(one, other, ['1', '3']).fit(x.split(500))
    first, second = matching.summary(50)
    for row in (first, second):
        assert 0.6 < row.bipartite <= row.semi < 0.9
        assert abs(row.identity) < 0.2
        assert 0.2 < row.same_choice < 0.8
        assert row.cka > 0.5 > 10 * row.null
        assert row.p_value == pytest.approx(1 / 51)
        assert row.positions == row.rows == len(x) == 1797
    assert (first.semi, first.bipartite) == pytest.approx((0.716, 0.652), abs=0.1)
    curve = matching.curve('1', 'semi')
    assert float(curve.mean()) == pytest.approx(first.semi)
    assert torch.equal(curve, curve.sort(descending=True).values)
    weights = [matching.sparse_mapping('1', penalty) for penalty in (0.01, 0.1, 0.3)]
    counts = [float((w != 0).double().sum(0).mean()) for w in weights]
    assert counts == sorted(counts, reverse=True)
    assert 2 < counts[2] < counts[1] < 14 < counts[0]
    information = matching.mutual_information('1')
    live = matching.moments['1'].live()
    best = match_units(information, 'semi')
    agree = (best == matching.match('1', 'semi'))[live[0]].float().mean()
    assert agree > 0.6


def test_shuffled_samples_have_nothing_in_common(digits):
    one, other, x = digits
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    matching = UnitMatching(one, other, '1', forward=lambda m, b: m(x[order] if m is other else x)).fit([None])
    row = matching.summary(50)[0]
    assert abs(row.cka) < 0.02
    assert row.bipartite < row.semi < 0.08
    assert row.p_value > 0.05


def test_a_net_and_its_permutation():
    """Check 1 through hooks, with the layer of the second net under another name."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    order = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])

    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = net, nn.Identity()

        def forward(self, x):
            return self.out(self.body(x)[:, order])

    torch.nn.init.constant_(net[1].bias[2:3].data, -100)  # dead after the ReLU
    net.train()
    matching = UnitMatching(net, Permuted(), [('2', 'out')])
    matching.fit([randn(4, 3, 10, 10, seed=k) for k in range(3)], max_batches=2)
    assert net.training
    assert matching.moments['2 = out'].count == 2 * 4 * 64
    found, live = matching.match('2 = out'), matching.moments['2 = out'].live()[0]
    assert live.tolist().count(False) == 1
    assert torch.equal(order[found][live], torch.arange(8)[live])
    row = matching.summary(5)[0]
    assert row.bipartite == pytest.approx(1, abs=1e-6)
    assert (row.dead_a, row.dead_b) == (1, 1)
    assert (matching.groups('2 = out', 3)[0] == -1).sum() == 1


def test_two_small_vits():
    timm = pytest.importorskip('timm')
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, depth=2, num_classes=0))
    matching = UnitMatching(*nets, ['blocks.0', 'blocks.1.mlp.fc1', 'norm'])
    matching.fit([randn(4, 3, 32, 32, seed=k) for k in range(2)])
    rows = matching.summary(5)
    assert [row.units_a for row in rows] == [192, 768, 192]
    assert all(row.positions == 2 * 4 * 17 for row in rows)
    assert all(0 < row.bipartite <= row.semi <= 1 for row in rows)
    same = UnitMatching(nets[0], nets[0], 'norm', pool='mean').fit([randn(9, 3, 32, 32)])
    assert same.moments['norm'].count == 9
    assert same.match('norm').tolist() == list(range(192))


def test_rows_kept_are_a_sample_of_all():
    x = torch.arange(10000.0).unsqueeze(1)
    net = nn.Sequential(nn.Identity())
    matching = UnitMatching(net, net, '0', num_rows=100).fit(x.split(999))
    rows = matching.rows['0'][0]
    assert rows.shape == (100, 1)
    assert 4000 < float(rows.mean()) < 6000
    again = UnitMatching(net, net, '0', num_rows=100).fit(x.split(999))
    assert torch.equal(again.rows['0'][0], rows)


class Part(nn.Module):
    def __init__(self, stride=1, calls=1):
        super().__init__()
        self.conv, self.unused, self.calls = nn.Conv2d(1, 4, 3, stride=stride), nn.Identity(), calls

    def forward(self, x):
        for _ in range(self.calls):
            y = self.conv(x)
        return y


@pytest.mark.parametrize(
    ('one', 'other', 'layers', 'options', 'words'),
    [
        (Part(), Part(2), 'conv', {}, "no common positions. Compare layers of the same stride, or pass pool='mean'"),
        (Part(), Part(calls=2), 'conv', {}, 'was called 2 times'),
        (Part(), Part(), 'unused', {}, 'was called not at all'),
        (Part(), Part(), 'cnov', {}, "did you mean 'conv'"),
        (Part(), Part(), [], {}, 'at least one'),
        (Part(), Part(), 'conv', {'pool': 'max'}, 'pool'),
        (Part(), Part(), 'conv', {'channels': 'second'}, 'channels'),
        (Part(), Part(), 'conv', {'num_rows': 1}, 'num_rows'),
    ],
)
def test_bad_input(one, other, layers, options, words):
    with pytest.raises(ValueError) as caught:
        UnitMatching(one, other, layers, **options).fit([randn(2, 1, 9, 9)])
    assert words in str(caught.value)


def test_layers_of_other_sizes_pooled_and_hooks_gone():
    one, other = Part(), Part(2)
    matching = UnitMatching(one, other, 'conv', pool='mean').fit([randn(6, 1, 9, 9)])
    assert matching.moments['conv'].count == 6
    assert not one.conv._forward_hooks
    assert not other.conv._forward_hooks
    with pytest.raises(ValueError, match='at least one batch'):
        matching.fit([])
    with pytest.raises(ValueError, match=r'call fit\(loader\) first'):
        matching.match('conv')
    with pytest.raises(ValueError, match='layers conv: units must be finite'):
        matching.fit([torch.full((2, 1, 9, 9), torch.nan)])
