"""PointClusterLoss: values against a plain loop, limits of the input, gradients, state."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clusterplug.functional.contrast import subclass_contrast
from clusterplug.heads import ProjectionHead
from clusterplug.losses import PointClusterLoss
from clusterplug.losses.point_cluster import TERMS
from clusterplug.testing import count_host_syncs, count_launches

NAMES = tuple(f'loss_cluster_{term}' for term in TERMS)


def make(num_classes=3, num_clusters=4, dims=8, seed=0, centers=True, projector=None, **options):
    """A small loss; with ``centers`` all of them exist, on random places."""
    torch.manual_seed(seed)
    projector = projector if projector is not None else ProjectionHead(dims, dims, (16,))
    loss = PointClusterLoss(num_classes, dims, num_clusters, dims, projector=projector, **options)
    if centers:
        memory = loss.memory
        memory.centers.copy_(F.normalize(torch.randn(memory.centers.shape), dim=-1))
        memory.num_seeded.copy_(memory.clusters_of[:, 0])
    return loss


def batch(num_points=200, num_classes=3, dims=8, seed=0, ignore_index=255, share_ignored=0.1):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_points,), generator=g)
    predictions = torch.randint(0, num_classes, (num_points,), generator=g)
    labels[torch.rand(num_points, generator=g) < share_ignored] = ignore_index
    return torch.randn(num_points, dims, generator=g), labels, predictions


def total(losses):
    return sum(losses.values())


def state(loss):
    return copy.deepcopy(loss.state_dict())


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_zero_with_a_path(losses, features, loss):
    assert set(losses) == {f'loss_cluster_{term}' for term in loss.terms}
    for value in losses.values():
        assert value.dim() == 0
        assert value.item() == 0
    loss.zero_grad()
    total(losses).backward()
    for parameter in loss.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    if features.requires_grad:
        assert torch.equal(features.grad, torch.zeros_like(features))


# ---------------------------------------------------------------- values


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
    loss = make(2, 1, dims=2, projector=nn.Identity(), loss_weight=20.0, reference=reference)
    loss.memory.centers.copy_(torch.eye(2)[:, None])
    loss.num_anchors_per_class = 5
    features, labels = torch.eye(2).repeat_interleave(5, 0), torch.tensor([0] * 5 + [1] * 5)
    value = loss(features, labels)['loss_cluster_point'].item()
    assert value == pytest.approx(0.6933 if reference else 2.27e-4, rel=1e-3)


def _expected(loss, x, labels, before, num_iters=16):
    """The three terms from the card, with loops over classes; ``x`` are the embeddings of all points, as anchors."""
    memory, anchors, ids = before, [], []
    for c in range(loss.num_classes):
        members, k = x[labels == c], int(memory.num_seeded[c])
        if len(members) == 0 or k == 0:
            continue
        scores = members.double() @ memory.centers[c, :k].double().T
        label = scores.argmax(1)
        if len(members) >= (0 if loss.reference else 2 * k):
            kernel, v = (scores / loss.sinkhorn_eps).exp(), torch.ones(len(members), dtype=torch.float64)
            for _ in range(num_iters):
                u = 1 / (kernel.T @ v)
                v = 1 / (kernel @ u)
            label = (kernel * u).argmax(1)
        anchors.append(members)
        ids.append(label + 1000 * c)
    anchors, ids = torch.cat(anchors).double(), torch.cat(ids)
    rows = [(c, k) for c in range(loss.num_classes) for k in range(int(memory.num_seeded[c]))]
    queue = [memory.queue[c, k, : memory.num_filled[c, k]] for c, k in rows]
    queue_ids = torch.cat([torch.full((len(q),), 1000 * c + k) for q, (c, k) in zip(queue, rows)])
    if loss.reference:
        rows = [(c, k) for c, k in rows if (labels == c).any()]
    centers, center_ids = torch.stack([memory.centers[c, k] for c, k in rows]), [1000 * c + k for c, k in rows]
    option = dict(temperature=loss.temperature)
    own = dict(exclude_self=True, count_self_as_negative=loss.reference)
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
    loss = make(4, num_clusters, reference=reference, num_anchors_per_class=130, centers=not reference)
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
    everything, some = make(), make(terms=terms)
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


def test_momentum_and_balance_reach_the_memory():
    frozen, moving = make(momentum=1.0), make(momentum=0.0)
    before = frozen.memory.centers.clone()
    frozen(*batch())
    moving(*batch())
    torch.testing.assert_close(frozen.memory.centers, before, rtol=0, atol=2e-7)
    assert (moving.memory.centers - before).abs().max() > 0.1
    balanced, nearest = make(1, 4), make(1, 4, balance=0.0)
    for loss in (balanced, nearest):
        loss(batch(500, 1)[0] + 2, torch.zeros(500, dtype=torch.long))
    assert balanced.memory.sizes.max() < nearest.memory.sizes.max()


# ---------------------------------------------------------------- nothing to compare


@pytest.mark.parametrize('centers', [False, True])
@pytest.mark.parametrize('num_points', [0, 1, 50])
@pytest.mark.parametrize('terms', [TERMS, ('center',), ('queue',)])
def test_no_valid_label_is_zero_and_leaves_the_memory(num_points, centers, terms):
    loss = make(centers=centers, terms=terms)
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


# ---------------------------------------------------------------- gradients


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
            terms=(term,), num_anchors_per_class=300, projector=nn.Identity(), loss_weight=20.0, temperature=0.5
        )
        loss(*batch())
        features, labels, predictions = batch(60, seed=2)
        loss.eval()
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


# ---------------------------------------------------------------- state


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
    assert launches.total() <= 200
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
