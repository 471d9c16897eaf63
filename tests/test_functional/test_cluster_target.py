# SPDX-License-Identifier: Apache-2.0
"""Targets of soft assignments: rows by hand, plain loops, fixed points, the objective, odd input, ranks."""

import pytest
import torch

from clusterplug.functional import cluster_target, student_assignment
from clusterplug.testing.distributed import run_gloo

P = torch.tensor([[0.8, 0.2], [0.6, 0.4]])


def dirichlet(concentration, count, seed):
    torch.manual_seed(seed)
    return torch.distributions.Dirichlet(torch.as_tensor(concentration)).sample((count,))


def test_rows_by_hand():
    torch.testing.assert_close(cluster_target(P), torch.tensor([[0.8727, 0.1273], [0.4909, 0.5091]]), atol=5e-5, rtol=0)
    expected = torch.tensor([0.8 / 1.4**0.5, 0.2 / 0.6**0.5])
    torch.testing.assert_close(cluster_target(P, 'sqrt')[0], expected / expected.sum())


@pytest.mark.parametrize('kind', ['dec', 'sqrt'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_plain_loop(kind, dtype):
    p = torch.rand(3, 11, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1).to(dtype)
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) > 0.3
    target = cluster_target(p, kind, mask=mask)
    assert target.dtype == dtype
    for b in range(3):
        mass = [sum(float(p[b, n, k]) for n in range(11) if mask[b, n]) for k in range(5)]
        for n in range(11):
            row = [float(p[b, n, k]) ** 2 / mass[k] if kind == 'dec' else float(p[b, n, k]) / mass[k] ** 0.5
                   for k in range(5)]  # fmt: skip
            expected = torch.tensor([each / sum(row) if mask[b, n] else 0.0 for each in row], dtype=dtype)
            torch.testing.assert_close(target[b, n], expected)


@pytest.mark.parametrize('kind', ['dec', 'sqrt'])
def test_fixed_points(kind):
    uniform = torch.full((7, 4), 0.25)
    one_hot = torch.eye(4).repeat(3, 1)
    torch.testing.assert_close(cluster_target(uniform, kind), uniform)
    torch.testing.assert_close(cluster_target(one_hot, kind), one_hot)


def imbalance(p):
    mean = p.mean(0)
    return float((mean * (mean * len(mean)).log()).sum())


def test_masses_come_nearer_to_each_other():
    for seed in range(30):
        skewed = dirichlet(torch.linspace(0.2, 3, 6).double(), 200, seed)
        even = dirichlet(torch.ones(6).double(), 200, seed)
        assert imbalance(cluster_target(skewed, 'dec')) <= imbalance(skewed)
        for p in (skewed, even):
            assert imbalance(cluster_target(p, 'sqrt')) <= imbalance(p)


def test_sqrt_is_near_the_minimum_of_its_objective_and_dec_is_not():
    """The stationary point of KL(Q || P) + KL(f || u) is q ~ p / f(q): a damped fixed-point iteration finds it."""

    def objective(q, p):
        return float((q * (q / p).log()).sum(-1).mean()) + imbalance(q)

    for seed in range(4):
        p = dirichlet(torch.linspace(0.5, 2, 5).double(), 150, seed).clamp_min(1e-9)
        q = p.clone()
        for _ in range(300):
            fresh = p / q.mean(0)
            q = (q * (fresh / fresh.sum(-1, keepdim=True))).sqrt()
            q = q / q.sum(-1, keepdim=True)
        best = objective(q, p)
        assert best <= objective(cluster_target(p, 'sqrt'), p) <= 1.03 * best
        assert objective(cluster_target(p, 'dec').clamp_min(1e-300), p) > 1.1 * best


def test_mass_of_the_whole_set_serves_a_batch():
    p = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for kind in ('dec', 'sqrt'):
        whole = cluster_target(p, kind)
        for mass in (p.sum(0), p.sum(0, keepdim=True), 1e-30 * p.sum(0)):
            torch.testing.assert_close(cluster_target(p[3:7], kind, mass=mass), whole[3:7])


def test_odd_rows_spoil_no_others():
    p = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    bad = p.clone()
    bad[2] = torch.nan
    clean = cluster_target(torch.cat([p[:2], p[3:]]))
    result = cluster_target(bad)
    assert result[2].isnan().all()
    torch.testing.assert_close(torch.cat([result[:2], result[3:]]), clean)
    mask = torch.ones(6, dtype=torch.bool)
    mask[2] = False
    assert torch.equal(cluster_target(bad, mask=mask)[2], torch.zeros(3))
    empty = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    result = cluster_target(empty)
    assert result.isfinite().all()
    assert (result[:, 2] == 0).all()
    assert (result[2] == 0).all()
    tiny = cluster_target(torch.full((4, 2), 1e-30) * torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(tiny, cluster_target(torch.full((4, 2), 0.25) * torch.tensor([1.0, 3.0])))
    assert not cluster_target(p.clone().requires_grad_()).requires_grad


def test_bad_input():
    for call, error in [
        (lambda: cluster_target(P, 'cube'), ValueError), (lambda: cluster_target(P.long()), TypeError),
        (lambda: cluster_target(P[:0]), ValueError),
        (lambda: cluster_target(-P), ValueError), (lambda: cluster_target(P, mass=torch.ones(3)), ValueError),
        (lambda: cluster_target(P, mass=2.0), TypeError), (lambda: cluster_target(P, mask=P), TypeError),
        (lambda: student_assignment(P, P[:, :1]), ValueError),
        (lambda: student_assignment(P, P, degrees=0), ValueError),
    ]:  # fmt: skip
        with pytest.raises(error):
            call()


@pytest.mark.parametrize('degrees', [0.5, 1.0, 4.0])
def test_student_assignment(degrees):
    generator = torch.Generator().manual_seed(0)
    z, centers = torch.randn(7, 3, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
    q = student_assignment(z, centers, degrees=degrees)
    for n in range(7):
        row = torch.stack([(1 + (z[n] - each).square().sum() / degrees) ** (-(degrees + 1) / 2) for each in centers])
        torch.testing.assert_close(q[n], row / row.sum())
    inputs = (z.requires_grad_(), centers.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: student_assignment(a, b, degrees=degrees), inputs)
    far = student_assignment(z.float().detach() + 1e4, centers.float().detach() + 1e4, degrees=degrees)
    torch.testing.assert_close(far, q.float().detach(), atol=2e-3, rtol=0)


def _on_rank(rank, world_size):
    p = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    part = p[:4] if rank == 0 else p[4:]
    whole = cluster_target(p)
    torch.testing.assert_close(
        cluster_target(part, group=torch.distributed.group.WORLD), whole[:4] if rank == 0 else whole[4:]
    )


def test_two_ranks_with_uneven_rows():
    run_gloo(_on_rank, 2)
