# SPDX-License-Identifier: Apache-2.0
"""DINOLoss, IBOTLoss and NestedClusterLoss: plain loops, padding, levels, what is kept, ranks, odd rows, bad input."""

import pytest
import torch
import torch.nn.functional as F

from clusterplug.heads import MatryoshkaHead, PrototypeScores
from clusterplug.losses import DINOLoss, IBOTLoss, NestedClusterLoss, NestedViewLoss, SwAVLoss, masked_tokens
from clusterplug.testing import count_host_syncs, run_gloo

B, K = 6, 5


def draw(*shape, seed=0, dtype=torch.float64, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def official_codes(teacher, temperature, num_iters=3):
    """Sinkhorn of DINOv2: prototypes first, samples last."""
    q = (teacher / temperature).exp().T
    q = q / q.sum()
    for _ in range(num_iters):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def dino_by_loop(scores, teacher, temperature=0.07):
    codes = official_codes(torch.cat(teacher), temperature).view(len(teacher), -1, teacher[0].shape[1])
    losses = [
        -(codes[t] * F.log_softmax(s_scores / 0.1, -1)).sum(-1).mean()
        for t in range(len(teacher)) for s, s_scores in enumerate(scores) if s != t
    ]  # fmt: skip
    return sum(losses) / len(losses)


@pytest.mark.parametrize('views', [2, 5])
def test_dino_equals_the_official_terms_and_their_gradient(views):
    scores = [draw(B, K, seed=s).requires_grad_() for s in range(views)]
    teacher = [draw(B, K, seed=10 + t, scale=0.2) for t in range(2)]
    loss, expected = DINOLoss()(scores, teacher), dino_by_loop(scores, teacher)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    if views == 5:  # 2 global and 3 local views: pairs (0, 1), (1, 0) and 2 x 3
        assert len({(s, t) for t in range(2) for s in range(5) if s != t}) == 8
    for one, other in zip(torch.autograd.grad(loss, scores), torch.autograd.grad(expected, scores)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_codes_of_huge_logits_are_finite():
    """exp(logits / 0.04) of the authors overflows in fp32 above 3.5."""
    scores = [draw(B, K, seed=s, dtype=torch.float32, scale=100.0) for s in range(2)]
    assert DINOLoss(teacher_temperature=0.04)(scores, scores).isfinite()
    assert IBOTLoss(teacher_temperature=0.04)(scores[0], scores[1]).isfinite()


def test_ibot_weights_images_equally_and_padding_changes_nothing():
    visible = torch.tensor([[True, False, False, False], [True, True, False, True], [True] * 4])
    index, weights, valid = masked_tokens(visible, 7)
    assert index[:4].tolist() == [1, 2, 3, 6]
    assert valid.tolist() == [True] * 4 + [False] * 3
    torch.testing.assert_close(weights, torch.tensor([1 / 9] * 3 + [1 / 3] + [0.0] * 3))
    student, teacher = draw(12, K).requires_grad_(), draw(12, K, seed=1, scale=0.2)
    loss = IBOTLoss()(student[index], teacher[index], weights, valid)
    codes = official_codes(teacher[index[:4]], 0.07)
    each = -(codes * F.log_softmax(student[index[:4]] / 0.1, -1)).sum(-1)
    torch.testing.assert_close(loss, (each * weights[:4]).sum() / weights.sum())
    for filler in (0.0, 1e9, torch.nan):
        padded = torch.where(valid[:, None], teacher[index], filler)
        torch.testing.assert_close(IBOTLoss()(student[index], padded, weights, valid), loss)
    # zeros that count, as in the authors' code, change the codes
    spoiled = torch.where(valid[:, None], teacher[index], 0.0)
    assert abs(float(IBOTLoss()(student[index], spoiled, weights) - loss)) > 1e-3
    plain = IBOTLoss()(student, teacher)
    torch.testing.assert_close(
        plain, -(official_codes(teacher, 0.07) * F.log_softmax(student / 0.1, -1)).sum(-1).mean()
    )
    assert masked_tokens(visible.view(3, 2, 2))[0].shape == (12,)
    nothing = IBOTLoss()(student, teacher, mask=torch.zeros(12, dtype=torch.bool))
    assert nothing == 0
    nothing.backward()
    assert student.grad.eq(0).all()


def test_one_tensor_stands_for_all_levels():
    levels, classes = [torch.randn(6, 4), torch.randn(6, 8)], torch.arange(6) % 4
    loss = NestedClusterLoss(torch.nn.functional.cross_entropy)
    torch.testing.assert_close(loss(levels, classes), loss(levels, [classes] * 2), rtol=0, atol=0)
    with pytest.raises(TypeError, match='must be a list over the levels'):
        loss(torch.randn(2, 6, 4), classes)  # what may be two levels or two views


def test_double_precision_stays():
    scores, teacher, weights = (torch.rand(6, *shape).double() for shape in ((5,), (5,), ()))
    one = torch.stack([IBOTLoss()(scores, teacher, weights=torch.eye(6)[n].double()) for n in range(6)])
    whole = IBOTLoss()(scores, teacher, weights=weights)
    torch.testing.assert_close(whole, (one * weights).sum() / weights.sum(), rtol=1e-12, atol=0)


def test_levels_add_up_and_five_copies_give_five_times():
    scores = [draw(B, K, seed=s) for s in range(3)]
    teacher = [draw(B, K, seed=10 + t, scale=0.2) for t in range(2)]
    one = DINOLoss()(scores, teacher)
    torch.testing.assert_close(NestedClusterLoss(DINOLoss())([scores] * 5, [teacher] * 5), 5 * one)
    torch.testing.assert_close(NestedClusterLoss(DINOLoss())([scores], [teacher]), one)
    torch.testing.assert_close(NestedClusterLoss(DINOLoss(), reduction='mean')([scores] * 5, [teacher] * 5), one)
    torch.testing.assert_close(NestedClusterLoss(DINOLoss(), weights=[1, 0.5])([scores] * 2, [teacher] * 2), 1.5 * one)
    by_view = NestedViewLoss(DINOLoss())([[each] * 5 for each in scores], [[each] * 5 for each in teacher])
    torch.testing.assert_close(by_view, 5 * one)
    built = NestedClusterLoss(dict(type='clusterplug.DINOLoss', teacher_temperature=0.05))
    assert built.base_loss.teacher_temperature == 0.05


def pair(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    head = MatryoshkaHead(16, 32, hidden_channels=6, bottleneck=4, lazy=True).to(dtype)
    return (
        head,
        [draw(B, 16, seed=s, dtype=dtype) for s in range(3)],
        [draw(B, 16, seed=s, dtype=dtype) for s in (8, 9)],
    )


@pytest.mark.parametrize('base', ['dino', 'swav'])
def test_factors_give_the_loss_and_gradient_of_scores(base):
    head, views, other = pair()
    loss = NestedClusterLoss(DINOLoss() if base == 'dino' else SwAVLoss())
    found = []
    for make in (head.factors, head):
        levels = [list(level) for level in zip(*[make(x) for x in views])]
        goals = [list(level) for level in zip(*[make(x) for x in other])]
        value = loss(levels, goals) if base == 'dino' else loss(levels)
        value = value if isinstance(value, torch.Tensor) else sum(value.values())
        found.append((value, torch.autograd.grad(value, list(head.parameters()))))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, dense in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(one, dense, rtol=1e-7, atol=1e-10)


def kept_elements(function):
    """Numbers that autograd keeps for the backward pass, parameters apart."""
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
    return result, sum(sizes.values())


def test_no_logits_of_any_level_are_kept():
    torch.manual_seed(0)
    head = MatryoshkaHead(32, 4096, hidden_channels=8, bottleneck=4)
    views = [draw(64, 32, seed=s, dtype=torch.float32) for s in range(4)]
    loss = NestedClusterLoss(DINOLoss())

    def run(make):
        levels = [list(level) for level in zip(*[make(x) for x in views])]
        with torch.no_grad():
            goals = [list(level) for level in zip(*[make(x) for x in views[:2]])]
        return lambda: loss(levels, goals)

    logits = 4 * 64 * sum(head.num_prototypes)
    value, kept = kept_elements(run(head.factors))
    dense, kept_dense = kept_elements(run(head))
    torch.testing.assert_close(value, dense)
    assert kept < 0.15 * logits
    assert kept_dense >= logits
    value.backward()


def test_in_the_model_of_views():
    pytest.importorskip('mmengine')
    from clusterplug.pretraining import MultiViewModel

    before = None
    for lazy in (False, True):
        torch.manual_seed(0)
        model = MultiViewModel(
            backbone=torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 16)),
            head=dict(type='clusterplug.MatryoshkaHead', in_channels=16, num_prototypes=32, hidden_channels=6,
                      bottleneck=4, lazy=lazy),
            loss=dict(type='clusterplug.NestedViewLoss', base_loss=dict(type='clusterplug.DINOLoss')),
            teacher=dict(type='ExponentialMovingAverage', momentum=0.1),
        )  # fmt: skip
        inputs = {'views': [draw(4, 3, 8, 8, seed=s, dtype=torch.float32) for s in range(2)]}
        inputs['views'].append(draw(4, 3, 4, 4, seed=7, dtype=torch.float32))
        result = model.loss(inputs)
        value = sum(each for name, each in result.items() if 'loss' in name)
        value.backward()
        assert model.backbone[2].weight.grad.abs().sum() > 0
        if before is not None:
            torch.testing.assert_close(value, before)
        value.detach()
        sample = model.predict(inputs)[0]
        assert sample.prototype.shape == (1,)


def test_odd_rows_are_ignored_types_and_synchronizations():
    scores = [draw(B, K, seed=s, dtype=torch.float32) for s in range(2)]
    teacher = [draw(B, K, seed=10 + t, scale=0.2, dtype=torch.float32) for t in range(2)]
    kept = torch.tensor([0, 1, 3, 4])
    expected = DINOLoss()([each[kept] for each in scores], [each[kept] for each in teacher])
    odd, goal = [each.clone() for each in scores], [each.clone() for each in teacher]
    odd[0][2, 1], goal[0][2, 1], goal[1][5, 0], goal[0][5, 0], goal[1][2] = (
        torch.nan,
        torch.inf,
        torch.nan,
        torch.nan,
        0,
    )
    goal[1][2, 0] = torch.nan
    odd = [each.requires_grad_() for each in odd]
    loss = DINOLoss()(odd, goal)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(each.grad.isfinite().all() for each in odd)
    prototypes = draw(K, 4, dtype=torch.float32).requires_grad_()
    z = draw(B, 4, seed=3, dtype=torch.float32)
    z[1, 0] = torch.nan
    IBOTLoss()(PrototypeScores(z, prototypes), PrototypeScores(z, prototypes)).backward()
    assert prototypes.grad.isfinite().all()
    half = DINOLoss()([each.bfloat16() for each in scores], [each.bfloat16() for each in teacher])
    torch.testing.assert_close(half, DINOLoss()(scores, teacher), rtol=0.02, atol=0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(DINOLoss()(scores, teacher), DINOLoss()(scores, teacher))
    empty = DINOLoss()([each[:0].requires_grad_() for each in scores], [each[:0] for each in teacher])
    assert empty == 0
    assert count_host_syncs(lambda: DINOLoss()(odd, teacher).backward()).total() == 0


def one_rank(rank, world_size):
    part = slice(0, 2) if rank == 0 else slice(2, B)
    scores = [draw(B, K, seed=s, dtype=torch.float32)[part].requires_grad_() for s in range(3)]
    teacher = [draw(B, K, seed=10 + t, scale=0.2, dtype=torch.float32)[part] for t in range(2)]
    mask = (torch.arange(B) != 1)[part]
    loss = DINOLoss()(scores, teacher) + IBOTLoss()(scores[0], teacher[1], mask=mask)
    loss.backward()
    return loss.detach(), [each.grad for each in scores]


def test_two_ranks_with_uneven_rows_equal_one_process():
    scores = [draw(B, K, seed=s, dtype=torch.float32).requires_grad_() for s in range(3)]
    teacher = [draw(B, K, seed=10 + t, scale=0.2, dtype=torch.float32) for t in range(2)]
    loss = DINOLoss()(scores, teacher) + IBOTLoss()(scores[0], teacher[1], mask=torch.arange(B) != 1)
    loss.backward()
    found = run_gloo(one_rank, 2)
    torch.testing.assert_close(sum(each[0] for each in found) / 2, loss.detach())
    for view in range(3):
        grad = torch.cat([each[1][view] for each in found]) / 2
        torch.testing.assert_close(grad, scores[view].grad, rtol=1e-4, atol=1e-6)


def test_bad_input():
    scores, teacher = [draw(B, K)] * 3, [draw(B, K)] * 2
    with pytest.raises(ValueError, match='at least 2 views'):
        DINOLoss()(scores[:1], teacher)
    with pytest.raises(TypeError, match='scores must be a list'):
        DINOLoss()(scores[0], teacher)
    with pytest.raises(ValueError, match='must have one shape'):
        DINOLoss()(scores, [draw(B, K + 1)] * 2)
    with pytest.raises(ValueError, match='teacher_temperature'):
        DINOLoss(teacher_temperature=0)
    with pytest.raises(ValueError, match=r'mask must have shape \(6,\)'):
        IBOTLoss()(scores[0], scores[0], mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match='mask must be a bool tensor'):
        IBOTLoss()(scores[0], scores[0], mask=torch.ones(6))
    with pytest.raises(TypeError, match=r'weights must be a tensor \(6,\), got list'):
        IBOTLoss()(scores[0], scores[0], weights=[1.0] * 6)
    with pytest.raises(TypeError, match='must be a list over the levels'):
        NestedClusterLoss(DINOLoss())(scores[0])
    with pytest.raises(ValueError, match='weights must be a finite number'):
        NestedClusterLoss(DINOLoss(), weights=[float('nan')])
    with pytest.raises(ValueError, match='equally many levels'):
        NestedClusterLoss(DINOLoss())([scores] * 2, [teacher])
    with pytest.raises(ValueError, match='weights must hold one number'):
        NestedClusterLoss(DINOLoss(), weights=[1.0])([scores] * 2, [teacher] * 2)
    with pytest.raises(TypeError, match='base_loss must be'):
        NestedClusterLoss(3)
    with pytest.raises(ValueError, match='num_rows must be at least the number of masked tokens, 2'):
        masked_tokens(torch.zeros(1, 2, dtype=torch.bool), 1)
    with pytest.raises(TypeError, match='mask must be a bool tensor'):
        masked_tokens(torch.zeros(1, 2))
