# SPDX-License-Identifier: Apache-2.0
"""Parts that PointClusterLoss is composed of, and the flat names that their options had before."""

import inspect
import warnings

import pytest
import torch
from _small_loss import batch, make, state
from torch import nn

from clusterplug.losses import AnchorSampler, BalancedAssigner, PointClusterLoss, SubclassContrast
from clusterplug.registry import MODELS

FORMER = [
    ('sinkhorn_eps', 0.1, 'assigner', 'epsilon'),
    ('sinkhorn_iters', 5, 'assigner', 'num_iters'),
    ('cell_size', 2.0, 'assigner', 'cell_size'),
    ('max_anchors', 30, 'sampler', 'max_anchors'),
    ('enqueue_per_step', 3, 'sampler', 'enqueue_per_step'),
    ('terms', ('center', 'queue'), 'contrast', 'terms'),
    ('reference', True, 'contrast', 'reference'),
]


@pytest.mark.parametrize(('name', 'value', 'part', 'new'), FORMER)
def test_former_flat_names_act_and_name_the_new_place(name, value, part, new):
    with pytest.warns(DeprecationWarning, match=rf'{name} has moved; write {part}=dict\({new}=') as told:
        former = make(**{name: value})
    assert len(told) == 1
    assert getattr(getattr(former, part), new) == value
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        composed = make(**{part: {new: value}})
    for step in range(2):
        inputs = batch(seed=step)
        a, b = former(*inputs), composed(*inputs)
        assert list(a) == list(b)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(each, state(composed)[key]) for key, each in state(former).items())


def test_former_names_are_all_that_is_left_besides_the_flat_ones_and_the_parts():
    flat = (
        'num_classes', 'in_channels', 'num_clusters', 'embed_dims', 'momentum', 'temperature', 'num_anchors_per_class',
        'queue_len', 'regions', 'loss_weight', 'ignore_index', 'projector',
    )  # fmt: skip
    names = tuple(inspect.signature(PointClusterLoss).parameters)
    assert names == (*flat, 'assigner', 'sampler', 'contrast', *(name for name, *_ in FORMER))


def test_an_option_in_both_places_is_refused():
    with (
        pytest.warns(DeprecationWarning, match='has moved'),
        pytest.raises(ValueError, match=r'sinkhorn_eps was given next to assigner.*write assigner=dict\(epsilon=0.1\)'),
    ):
        make(sinkhorn_eps=0.1, assigner=dict(epsilon=0.2))
    with (
        pytest.warns(DeprecationWarning, match='has moved'),
        pytest.raises(ValueError, match='max_anchors was given next to sampler'),
    ):
        make(max_anchors=5, sampler=AnchorSampler())
    # two options of one part, one of them under its former name, do not meet
    with pytest.warns(DeprecationWarning, match='has moved'):
        loss = make(sinkhorn_eps=0.1, assigner=dict(cell_size=3.0))
    assert (loss.assigner.epsilon, loss.assigner.cell_size) == (0.1, 3.0)


def test_parts_from_a_config_with_and_without_type():
    pytest.importorskip('mmengine')
    config = dict(
        type='clusterplug.PointClusterLoss', num_classes=3, in_channels=8, num_clusters=4, embed_dims=8,
        assigner=dict(type='clusterplug.BalancedAssigner', epsilon=0.1), sampler=dict(max_anchors=12),
        contrast=SubclassContrast(terms=('center',)),
    )  # fmt: skip
    loss = MODELS.build(config)
    assert (loss.assigner.epsilon, loss.sampler.max_anchors, loss.contrast.terms) == (0.1, 12, ('center',))
    assert config['assigner'] == dict(type='clusterplug.BalancedAssigner', epsilon=0.1)  # not consumed
    assert set(loss(*batch())) == {'loss_cluster_center'}
    assert loss.memory.sizes.sum() * 100 <= 12 + 1e-4
    with pytest.raises(TypeError, match=r'sampler must be None, a dict\(type=...\) or a module, got str'):
        make(sampler='AnchorSampler')
    with pytest.raises(TypeError, match='eps'):
        make(assigner=dict(eps=0.1))


class ToTheFirst(nn.Module):
    """Every anchor to subclass 0 of its class."""

    cell_size = 1.0

    def forward(self, x, valid, memory):
        left_out = ~valid | (memory.num_seeded == 0)[:, None]
        ids = torch.zeros(valid.shape, dtype=torch.int64).masked_fill(left_out, memory.num_clusters)
        return ids, left_out, torch.ones(valid.shape)


class TheFirstRows(nn.Module):
    """The first anchors of every class, whatever their predictions are."""

    enqueue_per_step = 2

    def forward(self, labels, predictions, *, num_classes, num_anchors_per_class, num_slots, generator=None):
        rows = torch.zeros(num_classes, num_slots, dtype=torch.int64)
        valid = torch.zeros(num_classes, num_slots, dtype=torch.bool)
        for c in range(num_classes):
            found = (labels == c).nonzero()[:num_anchors_per_class, 0]
            rows[c, : len(found)], valid[c, : len(found)] = found, True
        return rows, valid


def test_parts_of_ones_own():
    loss = make(assigner=ToTheFirst(), sampler=TheFirstRows(), num_anchors_per_class=5)
    loss(*batch())
    assert (loss.memory.sizes[:, 0] * 100).round().tolist() == [5, 5, 5]
    assert loss.memory.sizes[:, 1:-1].sum() == 0
    assert loss.memory.num_filled[:, 0].tolist() == [2, 2, 2]


def test_some_negatives_stand_for_all_on_average():
    """Of 15 rings of 50 two slots each, of 183 slots of anchors every fifth; the memory moves on without them."""
    whole, some = (make(num_anchors_per_class=60, contrast=dict(max_negatives=most)) for most in (5000, 40))
    for step in range(20):
        for loss in (whole, some):
            loss(*batch(seed=step))
    assert all(torch.equal(each, state(some)[key]) for key, each in state(whole).items())
    expected, drawn = whole.eval()(*batch(seed=20)), []
    some.eval()
    for step in range(20, 60):  # which slots are drawn, and which anchors, follows from the number of the step
        some.memory._step = step
        drawn.append(some(*batch(seed=20)))
    for name, value in expected.items():
        values = torch.stack([each[name] for each in drawn]).detach()
        if name == 'loss_cluster_center':
            continue
        assert values.std() > 0, name
        assert values.mean().item() == pytest.approx(value.item(), rel=0.05), name


def test_defaults_of_the_parts():
    loss = make()
    assert isinstance(loss.assigner, BalancedAssigner)
    assert (loss.assigner.epsilon, loss.assigner.num_iters, loss.assigner.cell_size) == (0.04, None, 1.0)
    assert (loss.sampler.max_anchors, loss.sampler.enqueue_per_step) == (None, 10)
    assert (loss.contrast.terms, loss.contrast.reference) == (('queue', 'point', 'center'), False)
    assert not [name for name in loss.state_dict() if not name.startswith(('memory.', 'projector.'))]
