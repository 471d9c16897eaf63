# SPDX-License-Identifier: Apache-2.0
"""Slices, splits, importance, resume of the head of subspace learners; the attention layer."""

import pytest
import torch

from clusterplug.heads import SubspaceLearnerHead, normalize_slices
from clusterplug.layers import SpatialAttention
from clusterplug.losses import MarginLoss
from clusterplug.testing import count_host_syncs, run_gloo


def randn(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def test_slices_equal_a_plain_loop():
    x, partition = randn(7, 12, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 2, 1, 3, 0, 0, 2, 1, 3])
    expected = torch.empty_like(x)
    for learner in range(4):
        own = partition == learner
        expected[:, own] = torch.nn.functional.normalize(x[:, own], dim=1)
    torch.testing.assert_close(normalize_slices(x, partition), expected)
    assert torch.autograd.gradcheck(lambda x: normalize_slices(x, partition), x.requires_grad_())


def test_odd_slices():
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0], [3e30, 4e30, 1e-30, 0.0], [torch.nan, 1.0, 6.0, 8.0]])
    found = normalize_slices(x, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(found[:2], torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.6, 0.8, 1.0, 0.0]]))
    torch.testing.assert_close(found[2, 2:], torch.tensor([0.6, 0.8]))
    assert found[2, :2].isnan().all()
    assert normalize_slices(x.half()[:1], torch.tensor([0, 0, 1, 1])).dtype == torch.half


def test_learner_of_each_row():
    head = SubspaceLearnerHead(6, 9, num_learners=3)
    x = randn(5, 6)
    every = head(x)
    assert torch.equal(head(x, 1), torch.where(head.partition == 1, every, 0.0))
    rows = head(x, torch.tensor([0, 1, 2, -1, 1]))
    assert torch.equal(rows[4], head(x, 1)[4])
    assert (rows[3] == 0).all()
    torch.testing.assert_close(every.norm(dim=1), torch.full((5,), 3**0.5))


def test_split_keeps_what_it_should():
    head = SubspaceLearnerHead(6, 16, num_learners=2)
    x, before = randn(5, 6), head(randn(5, 6)).detach()
    first = head(x, 0).detach()
    weight = head.fc.weight.detach().clone()
    keep = [9, 8, 13, 15, 14]
    assert head.split(torch.tensor(keep)) == 2
    sizes = torch.bincount(head.partition)
    assert sizes.tolist() == [8, 5, 3]
    assert torch.equal(head(x, 0), first)  # earlier learners bit for bit
    assert torch.equal(head.fc.weight[keep], weight[keep])
    kept = head(x, 1)[:, keep]
    old = torch.nn.functional.normalize(before[:, keep], dim=1)
    torch.testing.assert_close(kept, old)  # the old output, up to its length
    rest = [10, 11, 12]
    assert not (head.fc.weight[rest] == weight[rest]).any()
    again = SubspaceLearnerHead(6, 16, num_learners=2)
    again.split(keep)
    assert torch.equal(again.fc.weight[rest], head.fc.weight[rest])  # independent of the weights before


def test_split_order_loses_no_row():
    """Copied in place one after the other, sources 2, 0, 5 would become 2, 2, 5."""
    head = SubspaceLearnerHead(4, 6)
    weight = head.fc.weight.detach().clone()
    head.split([2, 0, 5])
    for row in (0, 2, 5):
        assert torch.equal(head.fc.weight[row], weight[row])


def test_importance_by_hand_and_identity():
    head = SubspaceLearnerHead(6, 8, num_learners=2)
    labels = torch.arange(12) % 3
    seen, gradients = [], []
    for step in range(3):
        embedding = head(randn(12, 6, seed=step))
        embedding.register_hook(gradients.append)
        seen.append(embedding.detach())
        learner = torch.arange(12) % 2
        masked = torch.where(head.partition == learner[:, None], embedding, 0.0)
        MarginLoss()(masked, labels, learner).backward()
    product = torch.cat(seen) * torch.cat(gradients)
    assert product.sum(1).abs().max() < 1e-6  # the loss scales rows to unit length: contributions cancel
    torch.testing.assert_close(head.importance_sum[0], product.sum(0), rtol=1e-5, atol=1e-7)
    assert head.importance_count == 36
    score = head.importance()
    expected = product.mean(0).abs()[4:]
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    torch.testing.assert_close(score[4:], expected, rtol=1e-4, atol=1e-5)
    assert (score[:4] == -1).all()
    head.reset_importance()
    assert (head.importance()[4:] == 0).all()  # all equal: nothing to be told apart
    head.eval()
    head(randn(12, 6)).sum().backward()
    assert head.importance_count == 0


def test_state_survives():
    head = SubspaceLearnerHead(6, 16)
    head.split(range(7))
    head.split([7, 9, 11])
    other = SubspaceLearnerHead(6, 16)
    other.load_state_dict(head.state_dict())
    assert other.num_learners == 3
    x = randn(4, 6)
    assert torch.equal(other(x), head(x))
    other.split([8, 10])
    head.split([8, 10])
    assert torch.equal(other(x), head(x))


def test_sums_stay_fp32_in_a_model_that_is_cast():
    head = SubspaceLearnerHead(6, 4).bfloat16()
    assert head.fc.weight.dtype == torch.bfloat16
    for _ in range(4):
        (head(torch.ones(300, 6).bfloat16()) * torch.arange(4.0)).sum().backward()
    assert head.importance_count == 1200
    assert head.importance_sum.dtype == torch.float32


def test_one_learner_is_plain_margin_training():
    torch.manual_seed(0)
    head = SubspaceLearnerHead(6, 8)
    plain = torch.nn.Linear(6, 8)
    plain.load_state_dict(head.fc.state_dict())
    loss, labels = MarginLoss(), torch.arange(16) % 4
    steps = [torch.optim.Adam(each.parameters(), 1e-2) for each in (head, plain)]
    for step in range(5):
        x = randn(16, 6, seed=step)
        for optimizer, model in zip(steps, (lambda x: head(x, torch.zeros(16, dtype=torch.long)), plain)):
            optimizer.zero_grad()
            loss(model(x), labels).backward()
            optimizer.step()
    torch.testing.assert_close(head.fc.weight, plain.weight, rtol=1e-5, atol=1e-6)


def _rank_importance(rank, world_size):
    head = SubspaceLearnerHead(4, 6)
    x = randn(8, 4)
    rows = slice(0, 3) if rank == 0 else slice(3, 8)
    weights = torch.arange(8.0)[rows, None] * torch.arange(6.0) % 5
    torch.nn.init.constant_(head.fc.bias, 0.1)
    torch.nn.init.eye_(head.fc.weight)
    (head(x[rows]) * weights).sum().backward()
    return head.importance()


@pytest.mark.slow
def test_two_ranks_equal_one():

    head = SubspaceLearnerHead(4, 6)
    torch.nn.init.constant_(head.fc.bias, 0.1)
    torch.nn.init.eye_(head.fc.weight)
    (head(randn(8, 4)) * (torch.arange(8.0)[:, None] * torch.arange(6.0) % 5)).sum().backward()
    for found in run_gloo(_rank_importance, 2):
        torch.testing.assert_close(found, head.importance())


def test_no_waits():
    head, learner = SubspaceLearnerHead(6, 8, num_learners=2), torch.zeros(5, dtype=torch.long)
    x = randn(5, 6)
    assert not count_host_syncs(lambda: head(x, learner).sum().backward())


def test_bad_input():
    with pytest.raises(ValueError, match='num_learners'):
        SubspaceLearnerHead(4, 3, num_learners=4)
    head = SubspaceLearnerHead(4, 6, num_learners=2)
    for keep in ([], [3, 4, 5], [0], [3, 3], [6]):
        with pytest.raises(ValueError, match='keep'):
            head.split(keep)
    for learner in (2, 7, torch.tensor([0, 2])):  # would be all 0, without a word and without a gradient
        with pytest.raises(ValueError, match='learner'):
            head(randn(2, 4), learner)
    for x in (randn(2, 5), randn(1, 2, 4)):
        with pytest.raises(ValueError, match='x must have shape'):
            head(x)
    for keep in (torch.tensor([True, False, True]), [3.5]):
        with pytest.raises(TypeError, match='each of keep'):
            head.split(keep)
    with pytest.raises(ValueError, match='kind must be'):
        head.importance(kind='tailor')
    with pytest.raises(ValueError, match='learner'):
        head.importance(2)
    with pytest.raises(ValueError, match='learner'):
        head(randn(2, 4), torch.zeros(3, dtype=torch.long))
    assert head(randn(0, 4)).shape == (0, 6)


@pytest.mark.parametrize(('dims', 'shape'), [(0, (9, 6)), (1, (2, 6, 5)), (2, (2, 6, 5, 4)), (3, (1, 6, 3, 4, 2))])
def test_attention(dims, shape):
    layer = SpatialAttention(6, (8, 4), dims=dims)
    x = randn(*shape)
    weights = layer.attention(x)
    assert weights.shape == (shape[0], 1, *shape[2:])
    assert ((weights > 0) & (weights < 1)).all()
    assert torch.equal(layer(x), x * weights)
    with pytest.raises(ValueError, match='must be'):
        layer(x[:, :5])


def test_attention_of_sparse_voxels():
    spconv = pytest.importorskip('spconv.pytorch')
    x, coords = randn(3, 6), torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 2, 1]], dtype=torch.int32)
    layer = SpatialAttention(6, (4,), dims=0)
    found = layer(spconv.SparseConvTensor(x, coords, [4, 4, 4], 2))
    assert torch.equal(found.features, layer(x))
    with pytest.raises(ValueError, match='odd'):
        SpatialAttention(6, kernel_size=2)
