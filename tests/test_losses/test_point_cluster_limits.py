# SPDX-License-Identifier: Apache-2.0
"""PointClusterLoss at the limits of its input: nothing to compare, NaN, dtypes, layout."""

import math

import pytest
import torch
from _small_loss import NAMES, assert_same, assert_zero_with_a_path, batch, make, state, total
from torch import nn

from clusterplug.losses.point_cluster import TERMS


@pytest.mark.parametrize('centers', [False, True])
@pytest.mark.parametrize('num_points', [0, 1, 50])
@pytest.mark.parametrize('terms', [TERMS, ('center',), ('queue',)])
def test_no_valid_label_is_zero_and_leaves_the_memory(num_points, centers, terms):
    loss = make(centers=centers, contrast=dict(terms=terms))
    if centers:
        loss(*batch())
    before = state(loss.memory)
    features = torch.randn(num_points, 8, requires_grad=True)
    losses = loss(features, torch.full((num_points,), 255), torch.zeros(num_points, dtype=torch.long))
    assert_zero_with_a_path(losses, features, loss)
    after = state(loss.memory)
    assert after.pop('step') == before.pop('step') + 1
    torch.testing.assert_close(after.pop('sizes'), before.pop('sizes') * 0.99)
    torch.testing.assert_close(after.pop('center_store'), before.pop('center_store'), rtol=0, atol=2e-7)
    assert_same(after, before)


def test_empty_batch_with_logits():
    loss = make()
    features = torch.zeros(0, 8, requires_grad=True)
    assert_zero_with_a_path(loss(features, torch.zeros(0, dtype=torch.long), torch.zeros(0, 3)), features, loss)


def test_first_sight_seeds_and_costs_nothing():
    loss = make(centers=False)
    features, labels, predictions = batch()
    features.requires_grad_()
    assert_zero_with_a_path(loss(features, labels, predictions), features, loss)
    assert (loss.memory.num_seeded == loss.memory.seeds_per_step).all()
    assert total(loss(features, labels, predictions)) > 0


def test_one_point_has_a_center_but_no_fellow():
    loss = make()
    losses = loss(torch.randn(1, 8), torch.tensor([1]))
    assert losses['loss_cluster_point'] == 0
    assert losses['loss_cluster_queue'] == 0
    assert losses['loss_cluster_center'] > 0
    total(losses).backward()
    assert loss.memory.num_filled.sum() == 1


def test_all_anchors_alone_in_their_subclass():
    loss = make(2, 5, dims=5, projector=nn.Identity())
    loss.memory.centers.copy_(torch.eye(5).expand(2, -1, -1))
    losses = loss(torch.eye(5).repeat(2, 1), torch.tensor([0] * 5 + [1] * 5))
    assert losses['loss_cluster_point'] == 0
    assert losses['loss_cluster_center'] > 0


def test_a_class_that_never_comes_gets_nothing():
    loss = make(4, [3, 2, 5, 4], centers=False)
    for step in range(10):
        losses = loss(*batch(num_classes=3, seed=step))
        assert all(math.isfinite(value) for value in losses.values())
        total(losses).backward()
    assert loss.memory.num_seeded.tolist() == [3, 2, 5, 0]
    assert loss.memory.num_filled[3].sum() == 0
    assert not loss.memory.centers[3].any()
    assert (loss.memory.num_filled[:, :2] > 0)[:3].all()


# ---------------------------------------------------------------- NaN, dtypes, layout


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_rows_that_are_not_finite_take_no_part(value):
    features, labels, predictions = batch(120)
    bad = torch.arange(0, 120, 7)
    broken, clean_labels = features.clone(), labels.clone()
    broken[bad, 3] = value
    clean_labels[bad] = 255
    loss, clean = make(num_anchors_per_class=130), make(num_anchors_per_class=130)
    leaf = broken.requires_grad_()
    a, b = loss(leaf, labels, predictions), clean(features, clean_labels, predictions)
    for name in NAMES:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)
    total(a).backward()
    total(b).backward()
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[bad].any()
    for ours, expected in zip(loss.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-3, atol=1e-5)
    for name, buffer in loss.memory.state_dict().items():
        assert torch.isfinite(buffer).all(), name
    assert torch.equal(loss.memory.num_enqueued[:, :-1], clean.memory.num_enqueued[:, :-1])


def test_nothing_but_nan():
    loss = make(centers=False)
    features, labels, predictions = batch()
    leaf = (features * float('nan')).requires_grad_()
    assert_zero_with_a_path(loss(leaf, labels, predictions), leaf, loss)
    assert loss.memory.num_seeded.sum() == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('autocast', [False, True])
def test_any_floating_type_is_computed_in_fp32(dtype, autocast):
    features, labels, predictions = batch()
    features = features.to(dtype)
    plain, other = make(), make()
    for _ in range(2):
        expected = plain(features.float(), labels, predictions)
        leaf = features.clone().requires_grad_()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            losses = other(leaf, labels, predictions)
        total(losses).backward()
        assert leaf.grad.dtype == dtype
        assert leaf.grad.any()
        assert all(value.dtype == torch.float32 for value in losses.values())
        assert_same(losses, expected)
    assert_same(state(plain.memory), state(other.memory))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_of_labels(dtype):
    features, labels, predictions = batch()
    assert_same(make()(features, labels.to(dtype), predictions), make()(features, labels, predictions))


def test_non_contiguous_input():
    features, labels, predictions = batch(400)
    sparse = features.repeat_interleave(2, 0)[::2].T.contiguous().T
    assert not sparse.is_contiguous()
    assert_same(make()(sparse[::2], labels[::2], predictions[::2]),
                make()(features[::2].clone(), labels[::2].clone(), predictions[::2].clone()))  # fmt: skip


@pytest.mark.parametrize('ignore_index', [255, 3, 17, -1, -100])
def test_ignored_label_may_be_any_number_outside_the_classes(ignore_index):
    features, labels, predictions = batch(ignore_index=ignore_index)
    expected = make()(*batch())
    assert_same(make(ignore_index=ignore_index)(features, labels, predictions), expected)


def test_feature_rows_pick_the_row_of_each_label():
    features, _, _ = batch(40)
    g = torch.Generator().manual_seed(5)
    rows = torch.randint(0, 40, (300,), generator=g)
    _, labels, predictions = batch(300, seed=7)
    coarse, fine = make(), make()
    a_leaf, b_leaf = features.clone().requires_grad_(), features.clone().requires_grad_()
    a, b = coarse(a_leaf, labels, predictions, feature_rows=rows), fine(b_leaf[rows], labels, predictions)
    assert_same(a, b)
    total(a).backward()
    total(b).backward()
    torch.testing.assert_close(a_leaf.grad, b_leaf.grad)
    assert_same(state(coarse.memory), state(fine.memory))
    empty = coarse(features[:0], labels, predictions, feature_rows=rows)
    assert total(empty) == 0
