# SPDX-License-Identifier: Apache-2.0
"""PointClusterLoss: the state it keeps, resume, launches and waits."""

import copy

import pytest
import torch
from _small_loss import assert_same, batch, make, state, total
from torch.utils.checkpoint import checkpoint

from clusterplug.losses import PointClusterLoss
from clusterplug.testing import count_host_syncs, count_launches


def test_same_state_and_input_give_the_same_bits():
    losses = [make(centers=False) for _ in range(2)]
    for step in range(5):
        torch.manual_seed(100 + step)
        a = losses[0](*batch(2000, seed=step))
        torch.manual_seed(999)  # the global generator plays no part
        torch.rand(step)
        b = losses[1](*batch(2000, seed=step))
        assert_same(a, b)
    assert_same(state(losses[0]), state(losses[1]))


def test_global_generator_is_left_alone():
    loss = make(centers=False)
    before = torch.get_rng_state()
    loss(*batch())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_step_counter_drives_the_choice_of_anchors():
    loss = make(num_anchors_per_class=5)
    loss.eval()
    inputs = batch(2000)
    first, again = loss(*inputs), loss(*inputs)
    assert_same(first, again)
    loss.train()
    loss(*inputs)
    loss.eval()
    assert loss(*inputs)['loss_cluster_center'] != first['loss_cluster_center']


def test_eval_leaves_the_state():
    loss = make().eval()
    before = state(loss)
    loss(*batch())
    assert_same(state(loss), before)


def test_resume_from_a_state_dict_goes_on_bit_for_bit():
    straight = make(centers=False)
    for step in range(3):
        straight(*batch(1000, seed=step))
    resumed, twin = make(centers=False, seed=5), copy.deepcopy(straight)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for step in range(3, 7):
        expected = straight(*batch(1000, seed=step))
        assert_same(resumed(*batch(1000, seed=step)), expected)
        assert_same(twin(*batch(1000, seed=step)), expected)
    assert_same(state(resumed), state(straight))


def test_state_dict_holds_parameters_and_memory_only():
    names = set(make().state_dict())
    assert {name for name in names if name.startswith('memory.')} == {
        f'memory.{name}' for name in ('center_store', 'queue_store', 'num_seeded', 'num_enqueued', 'sizes', 'step')
    }
    assert all(name.startswith(('memory.', 'projector.')) for name in names)


def test_checkpoint_of_another_number_of_classes():
    loss, other = make(3), make(5)
    before = state(loss.memory)
    with pytest.raises(RuntimeError, match='memory of other sizes'):
        loss.load_state_dict(other.state_dict())
    assert_same(state(loss.memory), before)


def test_values_made_in_inference_mode_serve_training():
    """Small constants are kept; those first made where tensors record nothing must not spoil a later step."""
    loss = make(7, 3, dims=6, num_anchors_per_class=11, queue_len=13)
    with torch.inference_mode():
        loss.eval()(*batch(num_classes=7, dims=6))
    loss.train()
    total(loss(*batch(num_classes=7, dims=6))).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in loss.parameters())


def test_launches_and_synchronisations_of_a_step():
    torch.manual_seed(0)
    loss = PointClusterLoss(19, 32, ignore_index=19)  # K = 40, D = 64
    features, labels = torch.randn(56_000, 32), torch.randint(0, 20, (56_000,))
    logits = torch.randn(56_000, 19)
    loss(features[:2000], labels[:2000], logits[:2000])
    waits = []
    launches = count_launches(lambda: waits.append(count_host_syncs(lambda: loss(features, labels, logits))))
    assert launches.total() <= 250
    assert waits[0].total() == 0


def test_backward_does_not_wait():
    loss = make(centers=False)
    loss(*batch())
    assert count_host_syncs(lambda: total(loss(*batch())).backward()).total() == 0


def test_launches_do_not_grow_with_classes_or_clusters():
    totals = set()
    for num_classes, num_clusters in ((2, 2), (11, 5)):
        loss = make(num_classes, num_clusters)
        inputs = batch(20_000, num_classes)
        loss(*inputs)
        totals.add(count_launches(lambda: loss(*inputs)).total())  # noqa: B023
    assert len(totals) == 1


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_state_is_fp32_under_another_default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        loss = PointClusterLoss(3, 8, num_clusters=4, embed_dims=8)
        features, labels, predictions = batch()
        for _ in range(3):
            total(loss(features.requires_grad_(), labels, predictions)).backward()
    finally:
        torch.set_default_dtype(before)
    assert {value.dtype for value in loss.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize('reentrant', [False, True])
def test_a_step_is_not_computed_again(reentrant):
    """The memory has moved on, so that the gradient would be of other assignments."""
    loss, (features, labels, _) = make(), batch()
    found = checkpoint(lambda x: total(loss(x * 1, labels)), features.requires_grad_(), use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match='must not be computed again'):
        found.backward()
    assert loss.memory.step == 1
