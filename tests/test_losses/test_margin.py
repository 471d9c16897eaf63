# SPDX-License-Identifier: Apache-2.0
"""Margin loss against a plain loop in float64, its triples, both samplings, resume, bad input."""

import itertools

import pytest
import torch

from clusterplug.functional import distance_weights
from clusterplug.losses import MarginLoss
from clusterplug.losses.margin import margin_pairs
from clusterplug.testing import count_host_syncs


def batch(counts=(8, 8, 8, 8), dim=16, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return torch.randn(len(labels), dim, generator=generator, dtype=dtype), labels


def plain_loss(x, labels, beta=1.2, margin=0.2, nu=0.0, cutoff=0.5, count='either'):
    """The rule of the card, anchor by anchor."""
    x = torch.nn.functional.normalize(x.double(), dim=1)
    n = len(x)
    distance = [[((x[i] - x[j]).square().sum() + 1e-8).sqrt() for j in range(n)] for i in range(n)]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and labels[i] == labels[j]]
    number = len(pairs) // n
    terms, triples = [], 0
    for a in range(n):
        positives = [j for i, j in pairs if i == a][:number]
        far = [j for j in range(n) if labels[j] != labels[a] and distance[a][j] >= cutoff]
        negatives = sorted(sorted(far, key=lambda j: distance[a][j].item())[:number])
        for p, m in zip(positives, negatives):
            pull, push = (distance[a][p] - beta + margin).relu(), (beta - distance[a][m] + margin).relu()
            terms += [pull, push]
            triples += int(pull > 0 or push > 0) if count == 'either' else int(pull > 0) + int(push > 0)
    total = sum(terms, x.sum() * 0)
    return (total + nu * beta) / triples if triples else total


@pytest.mark.parametrize('counts', [(8, 8, 8, 8), (20, 8, 4), (5, 1, 2), (3, 3)])
@pytest.mark.parametrize('options', [{}, dict(nu=0.3), dict(count='active'), dict(beta=0.9, margin=0.4, cutoff=1.2)])
def test_equals_a_plain_loop(counts, options):
    x, labels = batch(counts)
    x.requires_grad_()
    loss = MarginLoss(**options)(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    expected = plain_loss(x, labels, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0], rtol=1e-5, atol=1e-7)


def test_by_hand():
    # two pairs at right angles: sqrt(2) - 1.2 + 0.2 to pull, the nearest others at sqrt(2) are far enough
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert float(MarginLoss()(x, torch.tensor([0, 0, 1, 1]))) == pytest.approx(2**0.5 - 1)


@pytest.mark.parametrize('counts', [(20, 8, 4), (30, 2), (1, 1, 6), (4, 4)])
def test_triples_are_of_the_labels_they_should_be(counts):
    """The rule of the authors takes positives as negatives here."""
    for seed, scale in itertools.product(range(3), (1.0, 20.0)):
        x, labels = batch(counts, seed=seed)
        x[:, 0] += scale  # close together: few rows beyond the cut-off
        x = torch.nn.functional.normalize(x, dim=1)
        distances = torch.cdist(x, x)
        positives, negatives, valid = margin_pairs(distances, labels)
        anchors = torch.arange(len(x))[:, None].expand_as(valid)[valid]
        p, n = positives[valid], negatives[valid]
        assert (labels[p] == labels[anchors]).all()
        assert (p != anchors).all()
        assert (labels[n] != labels[anchors]).all()
        assert (distances[anchors, n] >= 0.5).all()


def test_groups_are_batches_of_their_own():
    (x, labels), (z, other) = batch(seed=1), batch(seed=2)
    loss = MarginLoss()
    both = loss(torch.cat([x, z]), torch.cat([labels, other]), torch.arange(2).repeat_interleave(32))
    pairs = [margin_pairs(torch.cdist(a, a), b)[2].sum() for a, b in ((x, labels), (z, other))]
    assert pairs[0] == pairs[1]
    positives, negatives, valid = margin_pairs(
        torch.cdist(torch.cat([x, z]), torch.cat([x, z])),
        torch.cat([labels, other]),
        groups=torch.arange(2).repeat_interleave(32),
    )
    anchors = torch.arange(64)[:, None].expand_as(valid)[valid]
    assert ((positives[valid] < 32) == (anchors < 32)).all()
    assert ((negatives[valid] < 32) == (anchors < 32)).all()
    assert both.isfinite()


@pytest.mark.parametrize(('dim', 'least'), [(3, 0.5), (8, 0.7), (128, 1.25)])
def test_distance_sampling_spreads_the_distances(dim, least):
    """On random unit vectors the density of the distances is q, so that what is drawn by 1 / q is spread evenly."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(512, dim, generator=generator), dim=1)
    labels = torch.arange(512) % 256  # one positive, so one draw for each row
    loss, distances, drawn = MarginLoss(sampling='distance'), torch.cdist(x, x), []
    for _ in range(8):
        _, columns, valid = loss._pairs(distances, labels, None, x)
        rows = torch.arange(512)[:, None].expand_as(valid)
        assert (labels[columns[valid]] != labels[rows[valid]]).all()
        drawn.append(distances.gather(1, columns)[valid])
    drawn = torch.cat(drawn)
    assert drawn.max() <= 1.4
    uniform = distances[labels[:, None] != labels]

    def unevenness(values):
        values = values[(values > least) & (values < 1.4)]
        return float((torch.histc(values, 5, least, 1.4) / len(values) - 0.2).abs().sum())

    assert unevenness(drawn) < 0.5 * unevenness(uniform)
    assert float((uniform > 1.4).double().mean()) > 0.5


def test_distance_sampling_counts_the_dimensions_of_the_slice():
    x, labels = batch((8, 8, 8, 8), 5)
    whole = torch.zeros(32, 128, dtype=torch.float64)
    whole[:, 40:45] = x
    groups = torch.zeros(32, dtype=torch.long)
    expected = [float(MarginLoss(sampling='distance', beta=1.3, seed=seed)(x, labels)) for seed in range(5)]
    found = [float(MarginLoss(sampling='distance', beta=1.3, seed=seed)(whole, labels, groups)) for seed in range(5)]
    assert found == pytest.approx(expected, rel=1e-12)
    distances, dims = torch.cdist(x[:3], x[3:9]), torch.tensor([2, 7, 128])
    rows = torch.stack([distance_weights(row, int(dim)) for row, dim in zip(distances, dims)])
    torch.testing.assert_close(distance_weights(distances, dims), rows)
    for bad in (dims[:2], dims.double(), dims - 1):
        with pytest.raises(ValueError, match='dim must be'):
            distance_weights(distances, bad)


def test_distance_sampling_repeats_after_a_resume():
    x, labels = batch()
    first = MarginLoss(sampling='distance', beta=1.3)
    values = [float(first(x, labels)) for _ in range(2)]
    state = {name: value.clone() for name, value in first.state_dict().items()}
    values += [float(first(x, labels)) for _ in range(2)]
    assert len(set(values)) == 4
    again = MarginLoss(sampling='distance', beta=1.3)
    again(x, labels)
    again.load_state_dict(state)
    assert [float(again(x, labels)) for _ in range(2)] == values[2:]


def test_learnt_boundary_per_class():
    x, labels = batch()
    loss = MarginLoss(nu=0.1, learn_beta=True, num_classes=4)
    loss(x, labels).backward()
    assert loss.beta.grad.shape == (4,)
    assert (loss.beta.grad != 0).all()
    assert not list(MarginLoss().parameters())


def test_gradcheck():
    x, labels = batch((3, 3, 2), dim=4)
    loss = MarginLoss(beta=0.8)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), x.requires_grad_())


def test_odd_rows_do_not_spoil_the_others():
    x, labels = batch()
    expected = MarginLoss()(x, labels)
    bad = torch.cat([x, torch.full((1, 16), torch.nan, dtype=x.dtype), x[:1]])
    bad.requires_grad_()
    loss = MarginLoss()(bad, torch.cat([labels, labels[:1], torch.tensor([-1])]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert bad.grad.isfinite().all()
    assert (bad.grad[-2:] == 0).all()
    huge = MarginLoss()(x.float() * 1e30, labels)
    torch.testing.assert_close(huge.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('sampling', ['cutoff', 'distance'])
@pytest.mark.parametrize('labels', [[], [0], [0, 0], [0, 1, 2], [-1, -1]])
def test_without_triples_it_is_zero(sampling, labels):
    x = torch.randn(len(labels), 4, requires_grad=True)
    loss = MarginLoss(sampling=sampling)(x, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


def test_strides_types_and_waits():
    x, labels = batch()
    expected = MarginLoss()(x, labels)
    strided = x.mT.contiguous().mT
    assert torch.equal(MarginLoss()(strided, labels), expected)
    with torch.autocast('cpu', torch.bfloat16):
        inside = MarginLoss()(x.float(), labels)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.double(), expected, rtol=1e-5, atol=1e-6)
    assert MarginLoss()(x.bfloat16(), labels).dtype == torch.bfloat16
    assert torch.equal(MarginLoss().bfloat16()(x, labels), expected)  # 1.2 is no number of bf16
    loss = MarginLoss()
    assert not count_host_syncs(lambda: loss(x, labels))


def test_bad_input():
    x, labels = batch()
    with pytest.raises(ValueError, match='labels'):
        MarginLoss()(x, labels[:-1])
    for odd in (labels.numpy(), labels.tolist(), None):
        with pytest.raises(TypeError, match='labels must be an integer tensor'):
            MarginLoss()(x, odd)
    with pytest.raises(ValueError, match='num_classes'):
        MarginLoss(learn_beta=True, num_classes=3)(x, labels)
    with pytest.raises(ValueError, match='groups'):
        MarginLoss()(x, labels, labels[:-1])
    with pytest.raises(ValueError, match='sampling'):
        MarginLoss(sampling='hard')
    with pytest.raises(ValueError, match='beta'):
        MarginLoss(beta=-1)
    with pytest.raises(ValueError, match='dim'):
        distance_weights(torch.ones(1, 2), 1)
