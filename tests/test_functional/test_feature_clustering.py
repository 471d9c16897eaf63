# SPDX-License-Identifier: Apache-2.0
"""Feature clustering: cases by hand, a plain loop, closed forms, invariants, gradients, masks, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from clusterplug.functional import cluster_encode, cluster_pool, soft_cluster_encode
from clusterplug.functional.contrast import compose_labels


def random_sets(batch=(2,), points=12, centers=3, dim=4, values=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((points, dim), (points, values), (centers, dim), (centers, values))
    return [torch.randn(*batch, *shape, dtype=dtype, generator=generator) for shape in shapes]


def loop(x, values, centers, center_values, scale=1.0, shift=0.0, weighting='mean'):
    """One problem, point by point, as the formulas have it."""
    similarity, labels = [], []
    for point in x:
        scores = [
            1 / (1 + math.exp(-(shift + scale * float(F.cosine_similarity(point, center, dim=0, eps=1e-12)))))
            for center in centers
        ]
        labels.append(scores.index(max(scores)))
        similarity.append(max(scores))
    groups = []
    for number, own in enumerate(center_values):
        total, mass = own.clone(), 1.0
        for value, label, share in zip(values, labels, similarity):
            if label == number:
                weight = share if weighting == 'similarity' else 1.0
                total, mass = total + weight * value, mass + weight
        groups.append(total / mass)
    out = [share * groups[label] for share, label in zip(similarity, labels)]
    return torch.stack(out), torch.stack(groups), torch.tensor(labels), torch.tensor(similarity)


def test_by_hand():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    values = torch.tensor([[1.0], [3.0], [10.0]])
    centers, center_values = torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0], [20.0]])
    out, clusters = cluster_encode(x, values, centers, center_values)
    assert clusters.labels.tolist() == [0, 0, 1]
    assert clusters.counts.tolist() == [2, 1]
    assert clusters.representatives.flatten().tolist() == [2.0, 15.0]  # (2 + 1 + 3) / 3 and (20 + 10) / 2
    sigmoid = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 2.0, 15.0]) * sigmoid)
    pooled = cluster_pool(x, values, centers, center_values)
    assert pooled.representatives.flatten().tolist() == [2.0, 15.0]
    torch.testing.assert_close(pooled.similarity, torch.ones(3))


@settings(max_examples=25, deadline=None)
@given(
    points=st.integers(1, 40), centers=st.sampled_from([1, 2, 5, 40]),
    weighting=st.sampled_from(['mean', 'similarity']),
    # of a scale near 0 sigmoids round to the same value, which the plain loop takes for ties
    scale=st.floats(-3, 3).filter(lambda scale: scale == 0 or abs(scale) > 1e-3),
    shift=st.floats(-2, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_the_loop(points, centers, weighting, scale, shift, seed):
    sets = random_sets(points=points, centers=centers, seed=seed)
    out, clusters = cluster_encode(*sets, scale=scale, shift=shift, weighting=weighting)
    pooled = cluster_pool(*sets, chunk_size=1 + seed)
    for number in range(2):
        problem = [each[number] for each in sets]
        expected = loop(*problem, scale, shift, weighting)
        torch.testing.assert_close(out[number], expected[0])
        torch.testing.assert_close(clusters.representatives[number], expected[1])
        torch.testing.assert_close(clusters.similarity[number], expected[3].double())
        assert clusters.labels[number].tolist() == expected[2].tolist()
        plain = loop(*problem)
        assert pooled.labels[number].tolist() == plain[2].tolist()
        torch.testing.assert_close(pooled.representatives[number], plain[1])


@pytest.mark.parametrize('number', [256, 280, 257])
def test_many_centers_keep_the_lowest_of_equals(number):
    x, values, centers, center_values = random_sets(points=50, centers=number, dtype=torch.float32)
    centers[:, number // 2 :] = centers[:, : number - number // 2]
    labels = cluster_pool(x, values, centers, center_values).labels
    expected = (F.normalize(centers, dim=-1) @ x.mT).max(1).indices
    assert labels.equal(expected)
    assert labels.max() < number // 2 + 1


@pytest.mark.parametrize('centers', [3, 36])
def test_comparing_finds_what_searching_finds(monkeypatch, centers):
    """The short cut of large problems on a CPU, with equals and NaN, for which it is no good."""
    sets = random_sets(points=60, centers=centers)
    equal, broken = ([each.clone() for each in sets] for _ in range(2))
    equal[2][:, -1] = equal[2][:, 0]
    broken[0][0, 5] = torch.nan
    for problem in (sets, equal, broken):
        results = []
        for least in (0, 10**9):
            monkeypatch.setattr('clusterplug.functional.features._feature_members.LEAST_COMPARED', least)
            leaves = [each.clone().requires_grad_() for each in problem]
            out, clusters = cluster_encode(*leaves)
            results.append((out, *clusters, *torch.autograd.grad(out.nan_to_num().square().sum(), leaves)))
        for compared, searched in zip(*results):
            assert compared.dtype == searched.dtype
            torch.testing.assert_close(compared, searched, equal_nan=True)


@pytest.mark.parametrize('centers', [3, 40])
def test_centers_are_found_in_the_channels_of_the_values(centers):
    _, values, _, center_values = random_sets(points=60, centers=centers, values=3)
    weight, bias = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    sets = (F.linear(values, weight, bias), values, F.linear(center_values, weight, bias), center_values)
    expected, found = cluster_pool(*sets), cluster_pool(*sets, projection=(weight, bias), chunk_size=100)
    for each, other in zip(expected, found):
        torch.testing.assert_close(each, other)
    with pytest.raises(ValueError, match=r'projection must be a weight and a bias .* shapes \(8, 3\) and \(8,\), got'):
        cluster_pool(*sets, projection=(weight.T, bias))


def test_one_center_a_point_gives_every_point_its_own_value():
    x, values, _, _ = random_sets(points=9)
    out, clusters = cluster_encode(x, values, x, values, scale=1.5, shift=0.25)
    assert clusters.labels.tolist() == [list(range(9))] * 2
    torch.testing.assert_close(out, torch.sigmoid(torch.tensor(1.75, dtype=torch.float64)) * values)


def test_one_center_in_the_middle_gives_the_mean():
    x, values, _, _ = random_sets(points=9)
    out, clusters = cluster_encode(x, values, x.mean(1, keepdim=True), values.mean(1, keepdim=True))
    torch.testing.assert_close(out, clusters.similarity[..., None] * values.mean(1, keepdim=True))


def test_invariants():
    sets = x, values, centers, center_values = random_sets(points=60, centers=6)
    _, clusters = cluster_encode(*sets)
    assert (clusters.counts.sum(-1) == 60).all()
    rescaled = x * torch.rand(2, 60, 1, dtype=x.dtype).add(0.1)
    for scale, shift in ((0.3, -1.0), (4.0, 2.0)):
        assert cluster_encode(rescaled, *sets[1:], scale=scale, shift=shift)[1].labels.equal(clusters.labels)
    for number in range(6):
        members = torch.where((clusters.labels == number)[..., None], values, torch.nan)
        both = torch.cat([members, center_values[:, number : number + 1]], 1)
        assert (clusters.representatives[:, number] <= both.nan_to_num(-1e9).amax(1) + 1e-12).all()
        assert (clusters.representatives[:, number] >= both.nan_to_num(1e9).amin(1) - 1e-12).all()
    order = torch.randperm(60)
    out = cluster_encode(*sets)[0]
    permuted = cluster_encode(x[:, order], values[:, order], centers, center_values)[0]
    torch.testing.assert_close(permuted, out[:, order])


def test_ties_and_zeros_go_to_the_first_center():
    same = torch.ones(1, 30, 4)
    _, clusters = cluster_encode(same, same, same[:, :5], same[:, :5])
    assert not clusters.labels.any()
    zeros = torch.zeros(1, 3, 4)
    out, clusters = cluster_encode(zeros, zeros, *random_sets((1,), dtype=torch.float32, values=4)[2:])
    assert not clusters.labels.any()
    assert (clusters.similarity == 0.5).all()
    assert out.isfinite().all()


@pytest.mark.parametrize('centers', [3, 40])
@pytest.mark.parametrize('weighting', ['mean', 'similarity'])
def test_gradients_are_those_of_the_formula(centers, weighting):
    sets = random_sets(points=7, centers=centers)
    parameters = [torch.tensor([1.3], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)]
    inputs = [each.requires_grad_() for each in (*sets, *parameters)]

    def run(x, values, centers, center_values, scale, shift):
        out, _ = cluster_encode(x, values, centers, center_values, scale=scale, shift=shift, weighting=weighting)
        return out

    assert torch.autograd.gradcheck(run, inputs)


def test_gradients_of_the_soft_form():
    inputs = [each.requires_grad_() for each in random_sets(points=6)]
    assert torch.autograd.gradcheck(lambda *sets: soft_cluster_encode(*sets, temperature=0.5)[0], inputs)


def test_soft_form_becomes_the_hard_one():
    sets = random_sets()
    hard, clusters = cluster_encode(*sets, scale=2.0)
    soft, shares = soft_cluster_encode(*sets, scale=2.0, temperature=1e-4)
    torch.testing.assert_close(soft, hard)
    assert shares.labels.equal(clusters.labels)
    torch.testing.assert_close(shares.counts, clusters.counts)


@pytest.mark.parametrize('centers', [3, 40])
def test_straight_through_gradient(centers):
    """d g_m / d cos_n = (v_n - g_m) / (1 + count) for members; the result is that without it."""
    x, values, centers_, center_values = [each.requires_grad_() for each in random_sets(points=20, centers=centers)]
    clusters = cluster_pool(x, values, centers_, center_values)
    plain = cluster_pool(x, values, centers_, center_values, straight_through=False)
    assert clusters.representatives.equal(plain.representatives)
    weight = torch.randn_like(clusters.representatives)
    found = torch.autograd.grad((clusters.representatives * weight).sum(), (x, centers_, values, center_values))
    cosine = F.normalize(x, dim=-1) @ F.normalize(centers_, dim=-1).mT
    chosen = cosine.gather(2, clusters.labels[..., None])[..., 0]
    index = clusters.labels[..., None].expand(-1, -1, values.shape[-1])
    pull = (values - clusters.representatives.gather(1, index)) / (1 + clusters.counts.gather(1, clusters.labels))[
        ..., None
    ]
    slope = (pull * weight.gather(1, index)).sum(-1).detach()
    expected = torch.autograd.grad((chosen * slope).sum(), (x, centers_))
    torch.testing.assert_close(found[:2], expected)
    both = torch.autograd.grad((plain.representatives * weight).sum(), (x, values, center_values), allow_unused=True)
    assert both[0] is None
    torch.testing.assert_close(found[2:], both[1:])


@pytest.mark.parametrize('run', [cluster_encode, soft_cluster_encode, cluster_pool])
@pytest.mark.parametrize('centers', [4, 40])
def test_masked_is_removed(run, centers):
    x, values, centers_, center_values = random_sets(points=20, centers=centers)
    mask, center_mask = torch.rand(2, 20) < 0.6, torch.rand(2, centers) < 0.7
    mask[:, 0], center_mask[:, 0] = True, True
    x[~mask], centers_[~center_mask] = torch.nan, torch.inf
    result = run(x, values, centers_, center_values, mask=mask, center_mask=center_mask)
    out, clusters = (None, result) if run is cluster_pool else result
    for number in range(2):
        keep, kept = mask[number], center_mask[number]
        alone = run(x[number][keep], values[number][keep], centers_[number][kept], center_values[number][kept])
        alone_out, alone_clusters = (None, alone) if run is cluster_pool else alone
        torch.testing.assert_close(clusters.representatives[number][kept], alone_clusters.representatives)
        assert (clusters.labels[number][~keep] == -1).all()
        assert kept.nonzero().flatten()[alone_clusters.labels].equal(clusters.labels[number][keep])
        if out is not None:
            torch.testing.assert_close(out[number][keep], alone_out)
            assert not out[number][~keep].any()


@pytest.mark.parametrize('centers', [1, 40])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_counts_beyond_2048(centers, dtype):
    x = torch.ones(1, 5000, 4, dtype=dtype)
    first = torch.ones(1, centers, 4, dtype=dtype)
    out, clusters = cluster_encode(x, x, first, first)
    assert out.dtype == clusters.representatives.dtype == dtype
    assert clusters.counts[0, 0] == 5000
    torch.testing.assert_close(clusters.representatives, first)
    with torch.autocast('cpu', torch.bfloat16):
        assert cluster_encode(x.float(), x.float(), first.float(), first.float())[1].similarity.dtype == torch.float32


def test_shapes_at_the_edge():
    for batch, points in (((), 5), ((0,), 5), ((2, 3), 0), ((0, 2), 4)):
        sets = random_sets(batch=batch, points=points)
        out, clusters = cluster_encode(*sets)
        assert out.shape == (*batch, points, 5)
        assert clusters.labels.shape == (*batch, points)
        assert cluster_pool(*sets).representatives.shape == (*batch, 3, 5)
        assert soft_cluster_encode(*sets)[0].shape == (*batch, points, 5)


def test_a_bad_problem_leaves_the_others_alone():
    x, values, centers, center_values = random_sets()
    expected, _ = cluster_encode(x, values, centers, center_values)
    x[0, 3] = torch.nan
    out, clusters = cluster_encode(x, values, centers, center_values)
    assert out[1].equal(expected[1])
    assert ((clusters.labels >= 0) & (clusters.labels < 3)).all()


def test_bad_input():
    sets = x, values, centers, center_values = random_sets()
    with pytest.raises(TypeError, match='x must have a floating dtype'):
        cluster_encode(x.long(), *sets[1:])
    with pytest.raises(ValueError, match='values must have a row for each of x'):
        cluster_encode(x, values[:, 1:], centers, center_values)
    with pytest.raises(ValueError, match='centers must have the batch and the channels of x'):
        cluster_pool(x, values, centers[..., 1:], center_values)
    with pytest.raises(ValueError, match='center_values must have the channels of values'):
        cluster_pool(x, values, centers, center_values[..., 1:])
    with pytest.raises(ValueError, match='at least one center'):
        cluster_encode(x, values, centers[:, :0], center_values[:, :0])
    with pytest.raises(ValueError, match='weighting must be one of mean, similarity'):
        cluster_encode(*sets, weighting='median')
    with pytest.raises(TypeError, match='mask must be a bool tensor'):
        cluster_encode(*sets, mask=torch.ones(2, 12))
    with pytest.raises(ValueError, match='chunk_size must be an int of at least 1'):
        cluster_pool(*sets, chunk_size=0)
    with pytest.raises(ValueError, match='temperature must be a number above 0'):
        soft_cluster_encode(*sets, temperature=0)


def test_labels_of_labels():
    first = torch.tensor([[0, 1, 2, 3, -1]])
    assert compose_labels([first, torch.tensor([[1, 1, 0, -1]])]).tolist() == [[1, 1, 0, -1, -1]]
    assert compose_labels([first]).equal(first)
    with pytest.raises(ValueError, match='at least one'):
        compose_labels([])
    with pytest.raises(ValueError, match='labels 1 must have'):
        compose_labels([first, torch.zeros(2, 4, dtype=torch.int64)])


@pytest.mark.slow
def test_compiles_in_one_piece():
    torch.compiler.reset()
    sets = random_sets(points=30, dtype=torch.float32)
    compiled = torch.compile(
        lambda *each: (cluster_encode(*each)[0], cluster_pool(*each).representatives), fullgraph=True
    )
    torch.testing.assert_close(compiled(*sets), (cluster_encode(*sets)[0], cluster_pool(*sets).representatives))
