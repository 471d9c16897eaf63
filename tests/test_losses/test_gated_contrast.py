# SPDX-License-Identifier: Apache-2.0
"""SimLAP: similarity inside gates, gates of class pairs, and the contrast between classes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clusterplug.functional import gated_similarity
from clusterplug.heads import ClassPairGate
from clusterplug.losses import GatedContrastLoss, SimLAPLoss
from clusterplug.registry import MODELS
from clusterplug.testing.counters import count_host_syncs
from clusterplug.testing.distributed import run_gloo


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(z, k, g):
    """The (B, N, D) form."""
    return F.cosine_similarity((z * g)[..., :, None, :], k[..., None, :, :] * g[..., :, None, :], dim=-1)


def test_similarity_equals_the_dense_form():
    z, k, g = randn(2, 7, 16), randn(2, 11, 16, seed=1), rand(2, 7, 16, seed=2)
    torch.testing.assert_close(gated_similarity(z, k, g), dense(z, k, g), rtol=0, atol=3e-7)
    scaled = gated_similarity(z * 1e-25, k * 1e25, g * 1e-20)
    torch.testing.assert_close(scaled, dense(z, k, g), rtol=0, atol=5e-7)
    product = gated_similarity(z, k, g, normalize_in_subspace=False)
    expected = (F.normalize(z, dim=-1) * g.square()) @ F.normalize(k, dim=-1).mT
    torch.testing.assert_close(product, expected, rtol=0, atol=3e-7)
    open_gates = torch.ones_like(g)
    both = [gated_similarity(z, k, open_gates, normalize_in_subspace=mode) for mode in (True, False)]
    torch.testing.assert_close(*both, rtol=0, atol=3e-7)
    half = gated_similarity(z.half(), k.half(), g.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), dense(z, k, g), rtol=0, atol=3e-3)


@pytest.mark.parametrize('mode', [True, False])
def test_similarity_gradient(mode):
    inputs = [
        randn(3, 4, dtype=torch.float64),
        randn(5, 4, seed=1, dtype=torch.float64),
        rand(3, 4, dtype=torch.float64),
    ]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: gated_similarity(*x, normalize_in_subspace=mode), inputs)


def test_closed_channels_and_odd_rows():
    z, k, g = randn(3, 4).requires_grad_(), randn(5, 4, seed=1).requires_grad_(), rand(3, 4, seed=2)
    g[:, 1] = 0
    g[2] = 0
    found = gated_similarity(z, k, g)
    assert found[2].eq(0).all()
    grads = torch.autograd.grad(found.sum(), (z, k))
    assert all(x.isfinite().all() and x[:, 1].eq(0).all() for x in grads)
    zero = gated_similarity(torch.zeros(2, 4, requires_grad=True), torch.zeros(3, 4), torch.ones(2, 4))
    assert zero.eq(0).all()
    bad_z, bad_k = z.detach().clone(), k.detach().clone()
    bad_z[0, 0], bad_k[3, 2] = float('nan'), float('inf')
    for mode in (True, False):
        found = gated_similarity(bad_z, bad_k, rand(3, 4, seed=3), normalize_in_subspace=mode)
        expected = gated_similarity(z, k, rand(3, 4, seed=3), normalize_in_subspace=mode)
        assert found[0].isnan().all()
        assert found[:, 3].isnan().all()
        keep = torch.tensor([0, 1, 2, 4])
        torch.testing.assert_close(found[1:, keep], expected[1:, keep])
    assert gated_similarity(z[:0], k, g[:0]).shape == (0, 5)
    assert gated_similarity(z, k[:0], g).shape == (3, 0)


def test_similarity_bad_input():
    for args in ((randn(3, 4), randn(5, 3), randn(3, 4)), (randn(3, 4), randn(5, 4), randn(2, 4)),
                 (randn(3, 0), randn(3, 0), randn(3, 0))):  # fmt: skip
        with pytest.raises(ValueError, match='must have'):
            gated_similarity(*args)
    with pytest.raises(TypeError, match='gates must have a floating dtype'):
        gated_similarity(randn(3, 4), randn(5, 4), torch.ones(3, 4, dtype=torch.int64))


def test_similarity_takes_a_tenth_of_the_memory():
    z, k, g = randn(64, 256), randn(512, 256, seed=1), rand(64, 256)

    def peak(call):
        with torch.profiler.profile(profile_memory=True) as profile:
            call()
        now = most = 0
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return most

    assert peak(lambda: dense(z, k, g)) > 10 * peak(lambda: gated_similarity(z, k, g))


@pytest.mark.parametrize('mode', ['fuse', 'product', 'open'])
@pytest.mark.parametrize('norm', ['layer', 'batch'])
def test_gate(mode, norm):
    torch.manual_seed(0)
    gate = MODELS.build(dict(type='ClassPairGate', num_classes=5, channels=7, mode=mode, norm=norm))
    y1, y2 = torch.tensor([0, 1, 2, 4, 0]), torch.tensor([3, 1, 0, 2, 0])
    g = gate(y1, y2)
    assert g.shape == (5, 7)
    assert torch.equal(g, gate(y2, y1))
    assert ((g >= 0) & (g <= 1)).all()
    if mode == 'fuse':
        assert 0.3 < g.mean() < 0.7
        assert not torch.allclose(g[0], g[1])
    if norm == 'layer':
        assert torch.allclose(gate(y1[:1], y2[:1]), g[:1])
        assert torch.allclose(gate.eval()(y1, y2), g)
        half = gate.half()
        assert torch.equal(half(y1, y2), g)
    assert gate(y1[:0], y2[:0]).shape == (0, 7) if norm == 'layer' else True


def test_gate_bad_input():
    gate = ClassPairGate(3, 4)
    with pytest.raises(ValueError, match='labels must be from 0 to num_classes - 1 = 2, got 0 to 3'):
        gate(torch.tensor([0]), torch.tensor([3]))
    with pytest.raises(ValueError, match='got -1 to 0'):
        gate(torch.tensor([0]), torch.tensor([-1]))
    with pytest.raises(ValueError, match='got 0 to 9'):
        ClassPairGate(3, 4, mode='open')(torch.tensor([0]), torch.tensor([9]))
    with pytest.raises(TypeError, match='y2 must be an integer'):
        gate(torch.tensor([0]), torch.tensor([0.5]))
    with pytest.raises(ValueError, match='one shape'):
        gate(torch.tensor([0]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match='mode'):
        ClassPairGate(3, 4, mode='closed')
    with pytest.raises(ValueError, match='num_classes'):
        ClassPairGate(0, 4)


def loop(z, keys, labels, partners, gate, temperature, own=False):
    """Sums over anchors, positives and negatives in float64."""
    z, keys = z.double(), keys.double()
    total = count = 0
    for b in range(len(z)):
        g = gate(labels[b : b + 1], partners[b : b + 1])[0].double()
        s = F.cosine_similarity(z[b] * g, keys * g, dim=-1) / temperature
        negative = [s[n].exp() for n in range(len(keys)) if labels[n] not in (labels[b], partners[b])]
        for n in range(len(keys)):
            if labels[n] == partners[b] and not (own and n == b):
                total = total + (s[n].exp() + sum(negative)).log() - s[n]
                count += 1
    return total / max(count, 1)


@pytest.mark.parametrize('pairing', ['arbitrary', 'identical', 'distinct'])
@pytest.mark.parametrize('own', [False, True])
def test_loss_equals_a_plain_loop(pairing, own):
    torch.manual_seed(0)
    gate = ClassPairGate(4, 6, 8, 8)
    loss = GatedContrastLoss(gate, 0.2, pairing)
    z, keys, labels = randn(10, 6), randn(10, 6, seed=1), torch.tensor([0, 1, 2, 0, 1, 2, 0, 3, 3, 1])
    keys = z if own else keys
    partners = loss.partners(labels)
    value = loss(z, keys, labels)
    torch.testing.assert_close(
        value.double(), loop(z, keys, labels, partners, gate, 0.2, own).detach(), rtol=1e-5, atol=1e-6
    )
    if own:
        assert torch.equal(GatedContrastLoss(gate, 0.2, pairing)(z, None, labels), value)


def test_open_gate_and_identical_pairs_are_supcon_and_nt_xent():
    loss = GatedContrastLoss(ClassPairGate(5, 6, mode='open'), 0.1, 'identical')
    z, keys = randn(5, 6), randn(5, 6, seed=1)
    logits = F.normalize(z, dim=1) @ F.normalize(keys, dim=1).T / 0.1
    labels = torch.arange(5)
    torch.testing.assert_close(loss(z, keys, labels), F.cross_entropy(logits, labels), rtol=1e-6, atol=1e-6)
    labels = torch.tensor([0, 0, 1, 1, 2])
    expected = loop(z, keys, labels, labels, lambda a, b: torch.ones(1, 6), 0.1)
    torch.testing.assert_close(loss(z, keys, labels).double(), expected, rtol=1e-5, atol=1e-6)


def test_partners():
    labels = torch.tensor([3, -1, 0, 0, 1, -1, 2, 2])
    gate = ClassPairGate(4, 6, mode='open')
    arbitrary = GatedContrastLoss(gate)
    seen = set()
    for step in range(20):
        arbitrary.step.fill_(step)
        partners = arbitrary.partners(labels)
        assert torch.equal(partners < 0, labels < 0)
        assert sorted(partners.tolist()) == sorted(labels.tolist())
        seen.add(tuple(partners.tolist()))
    assert len(seen) > 15
    distinct = GatedContrastLoss(gate, pairing='distinct')
    many = torch.arange(4).repeat(2000)
    partners = distinct.partners(many)
    assert (partners != many).all()
    counts = torch.stack([torch.bincount(partners[many == c], minlength=4) for c in range(4)])
    assert counts.sum(1).eq(2000).all()
    assert ((counts == 0) == torch.eye(4, dtype=torch.bool)).all()
    assert counts[counts > 0].min() > 550
    assert GatedContrastLoss(gate, pairing=lambda y: 3 - y).partners(torch.tensor([0, 1])).tolist() == [3, 2]


def test_state_resumes():
    gate, labels = ClassPairGate(4, 6, 8, 8), torch.arange(12) % 4
    first, second = GatedContrastLoss(gate), GatedContrastLoss(gate)
    data = [(randn(12, 6, seed=s), randn(12, 6, seed=s + 50)) for s in range(6)]
    values = [first(z, k, labels) for z, k in data]
    for z, k in data[:3]:
        second(z, k, labels)
    resumed = GatedContrastLoss(gate)
    resumed.load_state_dict(second.state_dict())
    assert [resumed(z, k, labels).item() for z, k in data[3:]] == [v.item() for v in values[3:]]
    assert int(first.eval().step) == 6
    first(*data[0], labels)
    assert int(first.step) == 6


def test_what_takes_no_part_gets_no_gradient():
    gate = ClassPairGate(6, 6, 8, 8)
    loss = GatedContrastLoss(gate, pairing=lambda y: torch.full_like(y, 1))
    z, keys = randn(1, 6).requires_grad_(), randn(4, 6, seed=1).requires_grad_()
    value = loss(z, keys, torch.tensor([0]), torch.tensor([0, 1, 2, -1]))
    gate_grad, key_grad = torch.autograd.grad(value, (gate.embedding.weight, keys))
    assert gate_grad.abs().sum(1).gt(0).tolist() == [True, True, False, False, False, False]
    assert key_grad.abs().sum(1).gt(0).tolist() == [False, True, True, False]


def test_nothing_to_compare_and_rows_that_are_not_finite():
    gate = ClassPairGate(3, 4, 8, 8)
    z, keys = randn(6, 4).requires_grad_(), randn(6, 4, seed=1)
    for labels, pairing in (([0] * 6, 'identical'), ([0] * 6, lambda y: y + 1), ([-1] * 6, 'arbitrary')):
        value = GatedContrastLoss(gate, pairing=pairing)(z, keys, torch.tensor(labels))
        assert value.item() == 0
        assert torch.autograd.grad(value, z)[0].eq(0).all()
    assert GatedContrastLoss(gate)(z[:0], keys[:0], torch.zeros(0, dtype=torch.int64)).item() == 0
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    bad = z.detach().clone()
    bad[1] = float('nan')
    other = keys.clone()
    other[3, 0] = float('inf')
    loss = GatedContrastLoss(gate, pairing='identical')
    found = loss(bad.requires_grad_(), other, labels)
    without = loss(z[[0, 2, 3, 4, 5]], keys[[0, 1, 2, 4, 5]], labels[[0, 2, 3, 4, 5]], labels[[0, 1, 2, 4, 5]])
    torch.testing.assert_close(found, without)
    assert torch.autograd.grad(found, bad)[0].isfinite().all()


def test_labels_of_narrow_types_and_a_batch_without_positives():
    z, keys, labels = torch.randn(8, 4), torch.randn(8, 4), torch.arange(8) % 2
    keys[3] = torch.nan
    loss = GatedContrastLoss(ClassPairGate(3, 4), pairing='identical')
    expected = loss(z, keys, labels)
    for dtype in (torch.uint8, torch.int32):
        torch.testing.assert_close(loss(z, keys, labels.to(dtype)), expected)
    absent = GatedContrastLoss(loss.gate, pairing=lambda labels: torch.full_like(labels, 2))
    with pytest.warns(UserWarning, match='no anchor of the batch has a key of its partner class'):
        assert absent(z, keys, labels) == 0


def test_options_types_and_no_waiting():
    gate, labels = ClassPairGate(3, 4, 8, 8), torch.tensor([0, 0, 0, 1, 2, -1])
    z, keys = randn(6, 4).requires_grad_(), randn(6, 4, seed=1)
    pairs, anchors = (
        GatedContrastLoss(gate, pairing='identical', reduction=r)(z, keys, labels) for r in ('pairs', 'anchors')
    )
    assert pairs != anchors
    plain, pushed = (GatedContrastLoss(gate, pairing='identical', binary_weight=w)(z, keys, labels) for w in (0, 2.0))
    g = gate(labels[:5], labels[:5])
    torch.testing.assert_close(pushed - plain, 2 * (g * (1 - g)).mean(), rtol=1e-4, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        low = GatedContrastLoss(gate, pairing='identical')(z.bfloat16(), keys.bfloat16(), labels)
    assert low.dtype == torch.bfloat16
    assert low.item() == pytest.approx(plain.item(), rel=0.05)
    for pairing in ('arbitrary', 'distinct', 'identical'):
        loss = GatedContrastLoss(gate, pairing=pairing)
        assert not count_host_syncs(lambda loss=loss: loss(z, keys, labels).backward())


@pytest.mark.parametrize(('options', 'error', 'match'), [
    (dict(temperature=0), ValueError, 'temperature'), (dict(pairing='near'), ValueError, 'pairing'),
    (dict(reduction='sum'), ValueError, 'reduction'), (dict(gate=3), TypeError, 'gate'),
    (dict(binary_weight=-1), ValueError, 'binary_weight'),
    (dict(gate=lambda a, b: a, pairing='distinct'), ValueError, 'num_classes of at least 2'),
])  # fmt: skip
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        GatedContrastLoss(**{'gate': ClassPairGate(3, 4), **options})


@pytest.mark.parametrize(('args', 'error', 'match'), [
    ((randn(3, 4), randn(3, 5), torch.zeros(3, dtype=torch.int64)), ValueError, 'z and keys must have shapes'),
    ((randn(3, 4), randn(2, 4), torch.zeros(3, dtype=torch.int64)), ValueError, 'key_labels must be given'),
    ((randn(3, 4), randn(3, 4), torch.zeros(3)), TypeError, 'labels must be an integer'),
    ((randn(3, 4), randn(3, 4), torch.zeros(2, dtype=torch.int64)), ValueError, 'labels must have shape'),
    ((randn(3, 4), randn(3, 4), torch.full((3,), 9)), ValueError, 'labels must be from 0'),
])  # fmt: skip
def test_bad_input(args, error, match):
    with pytest.raises(error, match=match):
        GatedContrastLoss(ClassPairGate(3, 4))(*args)


def test_between_views_and_with_labels_of_a_table():
    gate, labels = ClassPairGate(3, 4, 8, 8), torch.tensor([0, 1, 2, 0])
    views = [randn(4, 4, seed=s) for s in range(2)]
    plain = GatedContrastLoss(gate, pairing='identical')
    expected = (plain(*views, labels) + plain(*views[::-1], labels)) / 2
    torch.testing.assert_close(SimLAPLoss(gate, pairing='identical')(views, labels), expected)
    table = dict(type='SampleTable', num_samples=9, columns=dict(label=-1))
    pseudo = SimLAPLoss(gate, table=table, pairing='identical')
    ids = torch.tensor([5, 0, 8, 2])
    assert pseudo(views, sample_idx=ids).item() == 0
    pseudo.table.write(ids, label=labels)
    torch.testing.assert_close(pseudo(views, sample_idx=ids), expected)
    with pytest.raises(ValueError, match='sample_idx must be given'):
        pseudo(views, labels)
    with pytest.raises(ValueError, match='labels must be given'):
        SimLAPLoss(gate)(views)
    with pytest.raises(ValueError, match='two views'):
        SimLAPLoss(gate)(views[:1], labels)


SIZES = (4, 7)


def step(z, labels, loss):
    value = loss(z.requires_grad_(), None, labels)
    value.backward()
    return value.detach(), z.grad, loss.gate.layers[2].weight.grad


def make(labels):
    torch.manual_seed(0)
    z = randn(11, 6)
    return z, torch.arange(11) % 3, GatedContrastLoss(ClassPairGate(3, 6, 8, 8), pairing=lambda y: (y + 1) % 3)


def on_rank(rank, world_size):
    z, labels, loss = make(None)
    return step(z.split(SIZES)[rank].clone(), labels.split(SIZES)[rank], loss)


@pytest.mark.slow
def test_two_ranks_equal_one_process():
    z, labels, loss = make(None)
    value, grad, weight = step(z, labels, loss)
    found = run_gloo(on_rank, 2)
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, value)
    torch.testing.assert_close(torch.cat([found[0][1], found[1][1]]) / 2, grad)
    torch.testing.assert_close((found[0][2] + found[1][2]) / 2, weight)


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('pairing', ['identical', 'arbitrary', 'distinct'])
def test_the_logged_value_is_the_loss_of_equal_embeddings(pairing, normalize):
    loss = SimLAPLoss(ClassPairGate(4, 8), pairing=pairing, normalize_in_subspace=normalize)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 1, -1, 2, 0])
    assert loss.log_values() == {}
    collapsed = loss([randn(8).expand(10, 8)] * 3, labels)
    torch.testing.assert_close(loss.log_values()['ln_k'], collapsed.detach())
    other = loss([randn(10, 8), randn(10, 8, seed=1)], labels)
    assert abs(float(other.detach() - loss.log_values()['ln_k'])) > 0.01


def test_registered():
    assert isinstance(
        MODELS.build(dict(type='SimLAPLoss', gate=dict(type='ClassPairGate', num_classes=3, channels=4))), nn.Module
    )
