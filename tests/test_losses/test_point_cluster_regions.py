# SPDX-License-Identifier: Apache-2.0
"""Regions: anchors of one object or cell share a subclass, found from the mean of all its points."""

import pytest
import torch
import torch.nn.functional as F
from _small_loss import batch, make, total
from torch import nn

from clusterplug.testing import count_host_syncs, run_gloo


def test_anchors_of_a_region_share_a_subclass_and_centers_follow_region_means():
    """Two objects around e0 and e1; single points of the second lie nearer to e0's center."""
    loss = make(1, 2, dims=4, projector=nn.Identity(), regions='instance', momentum=0.0, num_anchors_per_class=10)
    loss.memory.centers.copy_(torch.eye(4)[:2])
    first = torch.eye(4)[0].repeat(4, 1)
    second = torch.eye(4)[1] * 3 + torch.eye(4)[0] * torch.tensor([[4.0], [0.0], [0.0], [0.0]])
    features = torch.cat([first, second])
    regions = torch.tensor([5] * 4 + [9] * 4)
    labels = torch.zeros(8, dtype=torch.int64)
    loss(features, labels, regions=regions)
    mean = F.normalize(second.mean(0), dim=0)
    torch.testing.assert_close(loss.memory.centers[0], torch.stack([torch.eye(4)[0], mean]))
    # the queue holds the points themselves, four of each object, the point next to e0 among the second's
    assert loss.memory.num_filled.tolist() == [[4, 4]]
    stored = loss.memory.queue[0, 1, :4]
    assert torch.isclose(stored[:, 0], torch.tensor(0.8)).sum() == 1
    # sizes count objects
    torch.testing.assert_close(loss.memory.sizes[0, :2], torch.tensor([0.01, 0.01]))


def test_each_point_its_own_region_is_the_loss_without_regions():
    by_point, by_region = make(), make(regions='cell')
    for step in range(3):
        features, labels, predictions = batch(seed=step)
        a = by_point(features, labels, predictions)
        b = by_region(features, labels, predictions, regions=torch.full_like(labels, -1))
        for name in a:
            torch.testing.assert_close(a[name], b[name])
    for name, value in by_point.memory.state_dict().items():
        torch.testing.assert_close(value, by_region.memory.state_dict()[name])


def test_regions_are_needed_and_checked():
    features, labels, predictions = batch()
    with pytest.raises(ValueError, match=r"regions must be given .N,., as the loss was built with regions='cell'"):
        make(regions='cell')(features, labels, predictions)
    with pytest.raises(ValueError, match=r'regions must be \(N,\) int64 like the labels, got \(3,\)'):
        make(regions='cell')(features, labels, predictions, regions=torch.zeros(3, dtype=torch.int64))


def test_empty_batch_gradients_and_no_waits():
    loss = make(regions='cell')
    empty = loss(torch.zeros(0, 8), torch.zeros(0).long(), torch.zeros(0).long(), regions=torch.zeros(0).long())
    assert total(empty).item() == 0
    features, labels, predictions = batch()
    regions = labels * 10 + torch.arange(len(labels)) % 4
    features.requires_grad_()
    value = []
    waits = count_host_syncs(lambda: value.append(total(loss(features, labels, predictions, regions=regions))))
    assert waits.total() == 0
    value[0].backward()
    assert features.grad.isfinite().all()
    assert features.grad.any()


def _run(rank, size):
    loss = make(num_anchors_per_class=90, sampler=dict(enqueue_per_step=60), queue_len=300, regions='cell')
    for step in range(3):
        g = torch.Generator().manual_seed(10 * step + rank)
        labels = torch.randint(0, 3, ((40, 17)[rank],), generator=g)
        regions = labels * 100 + rank * 1000 + torch.randint(0, 4, labels.shape, generator=g)
        total(loss(torch.randn(len(labels), 8, generator=g), labels, regions=regions)).backward()
    return loss.memory.state_dict()


def test_two_ranks_equal_one_process():
    ranks = run_gloo(_run, 2)
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name
    loss = make(num_anchors_per_class=90, sampler=dict(enqueue_per_step=60), queue_len=300, regions='cell')
    for step in range(3):
        parts = []
        for rank in range(2):
            g = torch.Generator().manual_seed(10 * step + rank)
            labels = torch.randint(0, 3, ((40, 17)[rank],), generator=g)
            regions = labels * 100 + rank * 1000 + torch.randint(0, 4, labels.shape, generator=g)
            parts.append((torch.randn(len(labels), 8, generator=g), labels, regions))
        features, labels, regions = (torch.cat(each) for each in zip(*parts))
        loss(features, labels, regions=regions)
    torch.testing.assert_close(loss.memory.centers, ranks[0]['center_store'][:, :-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.memory.sizes[:, :-1], ranks[0]['sizes'][:, :-1])


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_model_computes_and_keeps_fp32(kind):
    loss = make().to(kind)
    assert {value.dtype for value in loss.state_dict().values()} == {torch.float32, torch.int64}
    features, labels, predictions = batch()
    features = features.to(kind).requires_grad_()
    value = total(loss(features, labels, predictions))
    value.backward()
    assert value.isfinite()
    assert features.grad.dtype == kind


def test_huge_features_are_ignored_and_leave_no_trace():
    loss, clean = make(), make()
    for size in (1e16, 1e20, 3e38):
        features, labels, predictions = batch()
        features[::7] *= size
        assert total(loss(features, labels, predictions)).isfinite()
    for each in (loss, clean):
        for step in range(2):
            value = total(each(*batch(seed=step)))
    assert value.isfinite()
    assert all(value.isfinite().all() for value in loss.memory.state_dict().values())


def test_an_ignored_label_among_the_classes():
    loss = make(4, ignore_index=0)
    features, labels, predictions = batch(num_classes=4, share_ignored=0.0)
    loss(features, labels, predictions)
    assert loss.memory.num_filled[0].sum() == 0
    assert (loss.memory.num_filled[1:].sum(1) > 0).all()


def test_sampled_negatives_are_right_in_the_mean():
    from clusterplug.functional import bank_contrast_terms

    g = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(6, 10, 8, generator=g), dim=-1)
    anchors = F.normalize(torch.randn(12, 8, generator=g), dim=-1).requires_grad_()
    ids, empty = torch.arange(12) % 6, torch.zeros(6, 10, dtype=torch.bool)
    empty[2, 4:] = True
    everything = bank_contrast_terms(anchors, ids, bank, empty, temperature=0.5)
    all_slots = bank_contrast_terms(anchors, ids, bank, empty, temperature=0.5, negatives=torch.arange(10))
    torch.testing.assert_close(all_slots[0], everything[0])
    assert torch.equal(all_slots[1], everything[1])
    gradients = [torch.autograd.grad(each[0].sum(), anchors)[0] for each in (everything, all_slots)]
    torch.testing.assert_close(gradients[0], gradients[1])
    values = torch.stack(
        [
            bank_contrast_terms(
                anchors, ids, bank, empty, temperature=0.5, negatives=torch.randperm(10, generator=g)[:5]
            )[0]
            for _ in range(200)
        ]
    )
    torch.testing.assert_close(values.mean(0), everything[0], rtol=0.02, atol=0.02)
