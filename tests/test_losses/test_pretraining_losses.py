# SPDX-License-Identifier: Apache-2.0
"""Losses of pre-training on inputs that nobody planned: each raises or is right."""

import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mm]')

from clusterplug.heads import ClassPairGate, MultiLabelClusterHead, PrototypeScores
from clusterplug.layers import InterSliceEncoder
from clusterplug.losses import (
    BatchEnhancedLoss,
    DeepClusterLoss,
    DINOLoss,
    GatedContrastLoss,
    IBOTLoss,
    IntraInterLoss,
    NestedClusterLoss,
    NestedViewLoss,
    NTXentLoss,
    SimLAPLoss,
    SwAVLoss,
)
from clusterplug.pretraining import MaskedSliceModel

B, D = 12, 6


def rows(count, number=B, seed=5, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(number, D, generator=g) for _ in range(count)]


PROTOTYPES, QUEUE = rows(1, 5, 8)[0], torch.stack(rows(2, 20, 9))


def deep_cluster(views, labels):
    loss = DeepClusterLoss(B)
    loss.table.write(torch.arange(len(labels)), label_0=labels)
    return loss(views, torch.arange(len(labels)))


def batch_enhanced(views, labels, neighbors=False):
    more = {}
    if neighbors:
        found = [view.detach()[:, None].expand(-1, 3, -1) for view in views[:2]]
        valid = [torch.ones(len(labels), 3, dtype=torch.bool)] * 2
        more = dict(neighbors=found, negatives=found, valid=valid)
    return sum(BatchEnhancedLoss()(views[:2], views[2:4], [views[4], views[0]], **more).values())


def factors(views):
    return [PrototypeScores(view, PROTOTYPES.to(view.dtype)) for view in views]


def intra_inter(views, labels):
    slices = [view[:, None].expand(-1, 2, -1) for view in views[:2]]
    mask = torch.ones(len(labels), 2, dtype=torch.bool)
    return sum(IntraInterLoss(mask_weight=0)(slices, views[2:], mask=mask).values())


def gated(pairing):
    torch.manual_seed(0)
    return GatedContrastLoss(ClassPairGate(3, D, 8, 8), pairing=pairing)


def simlap(views, labels):
    torch.manual_seed(0)
    return SimLAPLoss(ClassPairGate(3, D, 8, 8), pairing='identical')(views, labels)


def multi_label(views, labels):
    torch.manual_seed(0)
    return MultiLabelClusterHead(9, D, sample_rate=1.0)(views[0], labels[:, None] * 3)


def masked_slices(views, labels):
    torch.manual_seed(0)
    model = MaskedSliceModel(InterSliceEncoder(D, 1, 2, downsample=1, dropout=0.0), 0.5)
    hidden = torch.arange(4).expand(len(labels), 4) < 2
    model.draw = lambda *args: hidden
    return model(views[0][:, None].expand(-1, 4, -1))


CASES = {  # number of inputs (B, D), loss of them and of labels
    'SwAV': (2, lambda v, y: SwAVLoss()(v)),
    'SwAV, queue': (2, lambda v, y: SwAVLoss()(v, QUEUE)),
    'DeepCluster': (2, deep_cluster),
    'DINO': (3, lambda v, y: DINOLoss()(v, v[:2])),
    'DINO, factors': (3, lambda v, y: DINOLoss()(factors(v), factors(v[:2]))),
    'iBOT': (2, lambda v, y: IBOTLoss()(*v)),
    'nested SwAV': (2, lambda v, y: NestedClusterLoss(SwAVLoss())([v, v])),
    'nested DINO': (2, lambda v, y: NestedViewLoss(DINOLoss())(*[[[x, x[:, :4]] for x in v]] * 2)),
    'BECLR': (5, batch_enhanced),
    'BECLR, neighbors': (5, lambda v, y: batch_enhanced(v, y, True)),
    'NT-Xent': (2, lambda v, y: NTXentLoss()(v)),
    'gated': (2, lambda v, y: gated(lambda labels: (labels + 1) % 3)(*v, y)),
    'gated, own class': (2, lambda v, y: gated('identical')(*v, y)),
    'SimLAP': (2, simlap),
    'intra and inter': (4, intra_inter),
    'MLCD': (1, multi_label),
    'hidden slices': (1, masked_slices),
}
LABELS = torch.arange(B) % 3
RAISES = ('SwAV', 'SwAV, queue', 'nested SwAV', 'intra and inter')  # on rows that are not finite
REFUSED = {
    1: ('SwAV', 'nested SwAV', 'BECLR', 'BECLR, neighbors', 'intra and inter'),
    0: ('BECLR', 'BECLR, neighbors'),
}  # so few samples
every = pytest.mark.parametrize(('number', 'loss'), CASES.values(), ids=CASES)


def value(loss, views, labels=LABELS):
    views = [view.clone().requires_grad_() for view in views]
    found = loss(views, labels)
    assert found.dim() == 0
    found.backward()
    grads = [view.grad for view in views if view.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    assert found.isfinite()
    return found.detach()


@pytest.mark.parametrize('name', CASES)
def test_rows_that_are_not_finite(name):
    number, loss = CASES[name]
    views = rows(number)
    views[0][3], views[-1][5, 2] = float('nan'), float('inf')
    if name in RAISES:
        with pytest.raises(ValueError, match='must be finite'):
            loss(views, LABELS)
        return
    found = value(loss, views)
    if name in ('DeepCluster', 'gated', 'gated, own class', 'SimLAP', 'NT-Xent', 'BECLR, neighbors'):
        return  # they ignore the row, not the sample; compared with loops in their own tests
    keep = torch.tensor([n for n in range(B) if n not in (3, 5)])
    torch.testing.assert_close(found, value(loss, [view[keep] for view in views], LABELS[keep]))


@every
def test_one_sample_and_none(number, loss):
    for size in (1, 0):
        views, labels = rows(number, size), LABELS[:size]
        if any(loss is CASES[name][1] for name in REFUSED[size]):
            with pytest.raises(ValueError, match='sample'):
                loss(views, labels)
        else:
            found = value(loss, views, labels)
            assert size or found == 0


@every
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(number, loss, dtype):
    views = rows(number)
    if loss is masked_slices:  # a layer with weights, as any of torch: autocast casts for it
        with torch.autocast('cpu', dtype):
            torch.testing.assert_close(value(loss, views), value(loss, views), rtol=0.02, atol=0.02)
        return
    expected = value(loss, [view.to(dtype).float() for view in views])
    # prototypes of half precision are others
    near = dict(rtol=0.02, atol=0.02)
    torch.testing.assert_close(value(loss, [view.to(dtype) for view in views]).float(), expected, **near)
    with torch.autocast('cpu', dtype):
        torch.testing.assert_close(value(loss, [view.to(dtype).float() for view in views]), expected, **near)
    assert value(loss, [(2e4 * view).clamp(-6e4, 6e4).to(dtype) for view in views]).isfinite()


@every
def test_huge_rows(number, loss):
    assert value(loss, rows(number, scale=1e30)).isfinite()


@every
def test_strides_and_no_gradient(number, loss):
    views = rows(number)
    expected = value(loss, views)
    torch.testing.assert_close(value(loss, [view.T.contiguous().T for view in views]), expected)
    wide = [torch.stack([view, view + 9], 2)[..., 0] for view in views]
    assert not wide[0].is_contiguous()
    torch.testing.assert_close(loss(wide, LABELS).detach(), expected)
    with torch.no_grad():
        torch.testing.assert_close(loss(views, LABELS), expected)
    same = [view[:1] for view in views]
    found = loss([view.expand(B, -1) for view in same], LABELS)
    torch.testing.assert_close(found, loss([view.repeat(B, 1) for view in same], LABELS))


@every
def test_integers(number, loss):
    with pytest.raises((TypeError, ValueError), match='floating'):
        loss([view.long() for view in rows(number)], LABELS)
