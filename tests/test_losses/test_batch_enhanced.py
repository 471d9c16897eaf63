# SPDX-License-Identifier: Apache-2.0
"""BatchEnhancedLoss: closed forms, plain loops, neighbors that pull, ranks, odd rows, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from clusterplug.losses import BatchEnhancedLoss
from clusterplug.testing import run_gloo

B, D, K = 5, 8, 3


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(batch=B, dtype=torch.float64):
    p, z, t = (draw(2, batch, D, seed=s, dtype=dtype) for s in range(3))
    n, m = (draw(2, batch, K, D, seed=s, dtype=dtype) for s in (3, 4))
    valid = torch.rand(2, batch, K, generator=torch.Generator().manual_seed(5)) > 0.3
    return p, z, t, n, valid, m


def by_loop(p, z, t, n=None, valid=None, m=None, temperature=2.0):
    batch, cos = p.shape[1], lambda a, b: F.cosine_similarity(a, b, dim=0)
    pulls = []
    for v in range(2):
        for i in range(batch):
            values = [cos(p[v, i], t[1 - v, i])]
            if n is not None:
                values += [cos(p[v, i], n[1 - v, i, j]) for j in range(n.shape[2]) if valid[1 - v, i, j]]
            pulls.append(sum(values) / len(values))
    pushes = []
    for v in range(2):
        for i in range(batch):
            values = []
            for w in range(2):
                for j in range(batch):
                    if j == i:
                        continue
                    values.append((cos(z[v, i], z[w, j]) / temperature).exp())
                    if m is not None:
                        values += [(cos(z[v, i], m[w, j, q]) / temperature).exp() for q in range(K) if valid[w, j, q]]
            pushes.append(sum(values) / len(values))
    return -sum(pulls) / len(pulls), (sum(pushes) / len(pushes)).log()


@pytest.mark.parametrize('extended', [False, True])
@pytest.mark.parametrize('block', [1, 70, 1 << 20])
def test_equals_the_loop_and_its_gradients(extended, block):
    p, z, t, *more = inputs()
    p.requires_grad_()
    z.requires_grad_()
    more = more if extended else []
    ours = BatchEnhancedLoss(block_elements=block)(p, z, t, *more)
    pull, push = by_loop(p, z, t, *more)
    torch.testing.assert_close(ours['loss_pos'], pull)
    torch.testing.assert_close(ours['loss_neg'], 0.1 * push)
    for one, other in zip(
        torch.autograd.grad(sum(ours.values()), (p, z)), torch.autograd.grad(pull + 0.1 * push, (p, z))
    ):
        torch.testing.assert_close(one, other)


def test_closed_forms():
    loss = BatchEnhancedLoss(neg_weight=1.0)
    apart = torch.eye(2 * B, 2 * B + 2)
    pair = (apart[:B], apart[B:])
    assert abs(float(loss(pair, pair, pair)['loss_neg'])) < 1e-6
    same = (torch.ones(B, D), torch.ones(B, D))
    found = loss(same, same, same)
    torch.testing.assert_close(found['loss_neg'], torch.tensor(0.5))
    torch.testing.assert_close(found['loss_pos'], torch.tensor(-1.0))


def test_neighbors_pull_as_the_other_view_does():
    """Theirs: the gradient is that of the plain loss, divided by 1 + k, whatever the neighbors are."""
    p, z, t, n, _, _ = inputs()
    valid = torch.ones(2, B, K, dtype=torch.bool)
    p.requires_grad_()
    (grad,) = torch.autograd.grad(BatchEnhancedLoss()(p, z, t, n, valid)['loss_pos'], p)
    (plain,) = torch.autograd.grad(BatchEnhancedLoss()(p, z, t)['loss_pos'], p)
    assert F.cosine_similarity(grad.flatten(), plain.flatten(), dim=0) < 0.9
    # a step against the gradient brings every prediction nearer to its neighbors (of the other view), in the mean
    near = lambda x: F.cosine_similarity(x[:, :, None], n.flip(0), dim=-1).mean(-1)  # noqa: E731
    assert (near(p - 0.5 * grad) > near(p)).all(1).any()
    assert (near(p - 0.5 * grad).mean() - near(p).mean()) > 0
    # one neighbor, far from the target: exactly half of the pull is its own
    one = torch.zeros(1, 2)
    p1 = torch.tensor([[1.0, 0.0]]).expand(2, 1, 2).clone()
    p1 = torch.cat([p1, torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])], 1).requires_grad_()
    t1 = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]).expand(2, 2, 2)
    n1 = torch.tensor([[[[0.0, -1.0]], [[0.0, 1.0]]]]).expand(2, 2, 1, 2)
    used = torch.ones(2, 2, 1, dtype=torch.bool)
    (grad,) = torch.autograd.grad(BatchEnhancedLoss()(p1, p1.detach(), t1, n1, used)['loss_pos'], p1)
    torch.testing.assert_close(grad[:, 0], one.expand(2, 2))  # up and down cancel


def test_targets_neighbors_and_negatives_get_no_gradient_and_own_neighbors_no_push():
    p, z, t, n, valid, m = (x.requires_grad_() if x.is_floating_point() else x for x in inputs())
    loss = BatchEnhancedLoss()(p, z, t, n, valid, m)
    grads = torch.autograd.grad(sum(loss.values()), (p, z, t, n, m), allow_unused=True)
    assert [grad is not None for grad in grads] == [True, True, False, False, False]
    # moving a sample's own negatives changes the push of the others alone
    z2 = torch.eye(2, 8, dtype=torch.float64).expand(2, 2, 8)
    far = torch.zeros(2, 2, 1, 8, dtype=torch.float64)
    far[..., 5] = 1
    own = far.clone()
    own[:, 0, 0] = z2[0, 0]  # neighbors of sample 0 lie on it: no push for it, and none for sample 1, orthogonal
    used = torch.ones(2, 2, 1, dtype=torch.bool)
    one = BatchEnhancedLoss()(z2, z2, z2, far, used, far)['loss_neg']
    other = BatchEnhancedLoss()(z2, z2, z2, far, used, own)['loss_neg']
    torch.testing.assert_close(one, other)


def test_odd_samples_are_ignored_and_types():
    p, z, t, n, valid, m = inputs(dtype=torch.float32)
    kept = torch.tensor([0, 2, 3])
    expected = BatchEnhancedLoss()(*(x[:, kept] for x in (p, z, t, n, valid, m)))
    p[0, 1, 2], z[1, 4, 0] = torch.nan, torch.inf
    valid[:, [1, 4]] = False
    p.requires_grad_()
    z.requires_grad_()
    found = BatchEnhancedLoss()(p, z, t, n, valid, m)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    sum(found.values()).backward()
    assert p.grad[:, kept].isfinite().all()
    assert z.grad[:, kept].isfinite().all()
    p, z, t, n, valid, m = inputs(dtype=torch.float32)
    plain = BatchEnhancedLoss()(p, z, t, n, valid, m)
    for scaled in (BatchEnhancedLoss()(p * 1e30, z, t * 1e-25, n, valid, m),):
        torch.testing.assert_close(scaled['loss_pos'], plain['loss_pos'])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = BatchEnhancedLoss()(p, z, t, n, valid, m)
    torch.testing.assert_close(inside['loss_neg'], plain['loss_neg'])
    half = BatchEnhancedLoss()(*(x.bfloat16() if x.is_floating_point() else x for x in (p, z, t, n, valid, m)))
    assert math.isclose(float(half['loss_pos']), float(plain['loss_pos']), abs_tol=0.02)


def one_rank(rank, world_size):
    p, z, t, n, valid, m = (x[:, 3 * rank : 3 * rank + 3] for x in inputs(6, torch.float32))
    p, z = p.clone().requires_grad_(), z.clone().requires_grad_()
    loss = BatchEnhancedLoss()(p, z, t, n, valid, m)
    sum(loss.values()).backward()
    return {name: value.detach() for name, value in loss.items()}, p.grad, z.grad


def test_two_ranks_equal_one_process():
    p, z, t, n, valid, m = inputs(6, torch.float32)
    p.requires_grad_()
    z.requires_grad_()
    loss = BatchEnhancedLoss()(p, z, t, n, valid, m)
    sum(loss.values()).backward()
    found = run_gloo(one_rank, 2)
    torch.testing.assert_close(sum(each[0]['loss_pos'] for each in found) / 2, loss['loss_pos'].detach())
    for each in found:
        torch.testing.assert_close(each[0]['loss_neg'], loss['loss_neg'].detach())
    for number, grad in ((1, p.grad), (2, z.grad)):
        torch.testing.assert_close(torch.cat([each[number] for each in found], 1) / 2, grad, rtol=1e-4, atol=1e-7)


def test_bad_input():
    p, z, t, n, valid, _m = inputs()
    loss = BatchEnhancedLoss()
    with pytest.raises(ValueError, match='need valid'):
        loss(p, z, t, n)
    with pytest.raises(ValueError, match='projections must hold two floating tensors'):
        loss(p, z[:, :3], t)
    with pytest.raises(TypeError, match='predictions must be a pair of tensors'):
        loss(p[:1], z, t)
    with pytest.raises(ValueError, match='valid must hold'):
        loss(p, z, t, n, valid.long())
    with pytest.raises(ValueError, match='neighbors must hold'):
        loss(p, z, t, n[..., :4], valid)
    with pytest.raises(ValueError, match='at least 2 samples'):
        loss(p[:, :1], z[:, :1], t[:, :1])
    with pytest.raises(ValueError, match='temperature'):
        BatchEnhancedLoss(temperature=0)
