# SPDX-License-Identifier: Apache-2.0
"""PointClusterLoss: values against a plain loop, and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from _small_loss import NAMES, assert_same, assert_zero_with_a_path, batch, make, state, total
from torch import nn

from clusterplug.functional import assign_subclasses
from clusterplug.functional.contrast import subclass_contrast
from clusterplug.losses.point_cluster import TERMS


def test_point_to_center_with_one_cluster_is_cross_entropy_on_cosines():
    loss = make(5, 1, projector=nn.Identity(), loss_weight=1.0, num_anchors_per_class=200)
    features, labels, _ = batch(150, 5)
    centers = loss.memory.centers[:, 0].clone()
    losses = loss(features, labels)
    logits = F.normalize(features, dim=1) @ centers.T / 0.1
    expected = F.cross_entropy(logits, labels, ignore_index=255) * 0.05
    torch.testing.assert_close(losses['loss_cluster_center'], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('reference', [False, True])
def test_floor_of_the_point_term(reference):
    """Two classes that are one tight subclass each: 2.27e-4, or ln 2 where an anchor counts among its negatives."""
    loss = make(2, 1, dims=2, projector=nn.Identity(), loss_weight=20.0, contrast=dict(reference=reference))
    loss.memory.centers.copy_(torch.eye(2)[:, None])
    loss.num_anchors_per_class = 5
    features, labels = torch.eye(2).repeat_interleave(5, 0), torch.tensor([0] * 5 + [1] * 5)
    value = loss(features, labels)['loss_cluster_point'].item()
    assert value == pytest.approx(0.6933 if reference else 2.27e-4, rel=1e-3)


def _ids(loss, members, centers, sizes):
    """Subclass of each member of one class, as the assignment alone gives it."""
    x, rows = F.pad(members, (0, 0, 0, 1))[None], F.pad(centers, (0, 0, 0, 1))[None]
    valid = (torch.arange(len(members) + 1) < len(members))[None]
    sizes = F.pad(sizes, (0, 1))[None]
    ids, *_ = assign_subclasses(x, rows, valid=valid, num_active=torch.tensor([len(centers)]), sizes=sizes)
    return ids[0, :-1]


def _expected(loss, x, labels, before):
    """The three terms from the card, with loops over classes; ``x`` are the embeddings of all points, as anchors."""
    memory, anchors, ids = before, [], []
    for c in range(loss.num_classes):
        members, k = x[labels == c], int(memory.num_seeded[c])
        if len(members) == 0 or k == 0:
            continue
        label = _ids(loss, members, memory.centers[c, :k], memory.sizes[c, :k])
        anchors.append(members)
        ids.append(label + 1000 * c)
    anchors, ids = torch.cat(anchors).double(), torch.cat(ids)
    rows = [(c, k) for c in range(loss.num_classes) for k in range(int(memory.num_seeded[c]))]
    queue = [memory.queue[c, k, : memory.num_filled[c, k]] for c, k in rows]
    queue_ids = torch.cat([torch.full((len(q),), 1000 * c + k) for q, (c, k) in zip(queue, rows)])
    if loss.contrast.reference:
        rows = [(c, k) for c, k in rows if (labels == c).any()]
    centers, center_ids = torch.stack([memory.centers[c, k] for c, k in rows]), [1000 * c + k for c, k in rows]
    option = dict(temperature=loss.temperature)
    own = dict(exclude_self=True, count_self_as_negative=loss.contrast.reference)
    raw = dict(
        queue=subclass_contrast(anchors, ids, torch.cat(queue).double(), queue_ids, **option),
        point=subclass_contrast(anchors, ids, anchors, ids, **own, **option),
        center=subclass_contrast(anchors, ids, centers.double(), torch.tensor(center_ids), **option),
    )
    scale = loss.loss_weight * loss.temperature / 2
    return {f'loss_cluster_{name}': values.sum() / max(1, len(values)) * scale for name, values in raw.items()}


@pytest.mark.parametrize('num_clusters', [1, 4, [2, 5, 3, 4]])
@pytest.mark.parametrize(
    # with as few as 6 points Sinkhorn is tied, and the authors' label depends on rounding
    ('num_points', 'reference'),
    [(6, False), (25, False), (120, False), (25, True), (120, True)],
)
def test_terms_equal_a_loop_over_classes(num_points, num_clusters, reference):
    loss = make(4, num_clusters, contrast=dict(reference=reference), num_anchors_per_class=130, centers=not reference)
    for step in range(6):
        features, labels, _ = batch(num_points, 3 if step % 2 else 4, seed=step)
        before = copy.deepcopy(loss.memory)
        with torch.no_grad():
            x = F.normalize(loss.projector(features), dim=1)
        losses = loss(features, labels)
        if before.num_seeded.sum() == 0 or not (before.num_seeded[labels[labels < 255]] > 0).any():
            continue
        for name, value in _expected(loss, x, labels, before).items():
            assert losses[name].item() == pytest.approx(value.item(), rel=2e-3, abs=1e-5), (name, step)


def test_hard_anchors_come_first_from_the_predictions():
    loss = make(1, 1, projector=nn.Identity(), num_anchors_per_class=10, centers=True)
    features = torch.zeros(100, 8)
    features[:10, 0], features[10:, 1] = 1, 1  # the first ten are predicted wrongly
    labels = torch.zeros(100, dtype=torch.long)
    logits = torch.zeros(100, 1)
    losses = loss(features, labels, (torch.arange(100) < 10).long())
    assert loss.memory.sizes[0, 0] == pytest.approx(0.1)
    mean = loss.memory.queue[0, 0, : loss.memory.num_filled[0, 0]].mean(0)
    assert mean[0].item() == pytest.approx(0.5)
    assert mean[1].item() == pytest.approx(0.5)
    assert set(losses) == set(NAMES)
    assert loss(features, labels, logits).keys() == losses.keys()


def test_logits_and_their_classes_are_the_same():
    features, labels, predictions = batch()
    logits = F.one_hot(predictions, 3).float() * 4
    assert_same(make()(features, labels, predictions), make()(features, labels, logits))


@pytest.mark.parametrize('terms', [('queue',), ('point',), ('center',), ('center', 'queue'), TERMS])
def test_terms_can_be_chosen_and_do_not_change_each_other(terms):
    everything, some = make(), make(contrast=dict(terms=terms))
    for step in range(3):
        inputs = batch(seed=step)
        whole, part = everything(*inputs), some(*inputs)
        assert set(part) == {f'loss_cluster_{term}' for term in terms}
        for name in part:
            torch.testing.assert_close(part[name], whole[name])
    assert_same(state(everything.memory), state(some.memory))


def test_weight_scales_and_zero_keeps_the_gradient_path_and_the_memory():
    full, half, none = make(loss_weight=1.0), make(loss_weight=1.0), make(loss_weight=0.0)
    half.weight_factor = 0.5
    inputs = batch()
    a, b, c = full(*inputs), half(*inputs), none(*inputs)
    for name in NAMES:
        torch.testing.assert_close(b[name], a[name] / 2)
    assert_zero_with_a_path(c, inputs[0], none)
    assert_same(state(full.memory), state(none.memory))


def test_momentum_reaches_the_memory():
    frozen, moving = make(momentum=1.0), make(momentum=0.0)
    before = frozen.memory.centers.clone()
    frozen(*batch())
    moving(*batch())
    torch.testing.assert_close(frozen.memory.centers, before, rtol=0, atol=2e-7)
    assert (moving.memory.centers - before).abs().max() > 0.1


def test_gradient_reaches_anchors_and_projector_only():
    loss = make(num_anchors_per_class=3)
    loss(*batch())
    features, labels, predictions = batch(seed=1)
    leaf = features.requires_grad_()
    total(loss(leaf, labels, predictions)).backward()
    touched = leaf.grad.any(1)
    assert 0 < touched.sum() <= 9
    assert not touched[labels == 255].any()
    assert all(parameter.grad.any() for parameter in loss.projector.parameters())
    for name, buffer in loss.named_buffers():
        assert not buffer.requires_grad, name
        assert buffer.grad is None


def test_gradient_equals_finite_differences():
    """Centers, queue and assignment are held; each term on its own, in the direction of its gradient."""
    for term in TERMS:
        loss = make(
            contrast=dict(terms=(term,)),
            num_anchors_per_class=300,
            projector=nn.Identity(),
            loss_weight=20.0,
            temperature=0.5,
        )
        loss(*batch())
        features, labels, predictions = batch(60, seed=2)
        loss.eval()
        assigned = loss.assigner.forward
        held = []
        loss.assigner.forward = lambda *inputs, held=held, assigned=assigned: (
            held[0] if held else held.append(assigned(*inputs)) or held[0]
        )
        leaf = features.clone().requires_grad_()
        total(loss(leaf, labels, predictions)).backward()
        direction, step = leaf.grad / leaf.grad.norm(), 5e-3
        up = total(loss(features + step * direction, labels, predictions))
        down = total(loss(features - step * direction, labels, predictions))
        assert ((up - down) / (2 * step)).item() == pytest.approx(leaf.grad.norm().item(), rel=0.02), term


def test_training_the_embedding_lowers_the_loss():
    loss = make(centers=False, momentum=0.99, num_anchors_per_class=100)
    g = torch.Generator().manual_seed(0)
    modes = torch.randint(0, 12, (300,), generator=g)  # four of each class
    features = torch.randn(12, 8, generator=g)[modes] + 0.3 * torch.randn(300, 8, generator=g)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    history = []
    for _ in range(60):
        value = total(loss(features, modes % 3))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    assert sum(history[-5:]) < 0.5 * sum(history[5:10])
