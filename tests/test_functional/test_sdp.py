# SPDX-License-Identifier: Apache-2.0
"""Semidefinite programs of clustering: identities of the likelihood, feasibility, bounds, both solvers."""

import math

import numpy as np
import pytest
import torch

from clusterplug.functional import clustering_accuracy, kmeans, kmeans_sdp, likelihood_sdp, membership_labels
from clusterplug.functional.kmeans import _sdp_admm
from clusterplug.functional.kmeans.membership import means_energy, partition_value


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def two_shapes():
    x = torch.cat([randn(14, 2), 0.3 * randn(12, 2, seed=1) + torch.tensor([4.0, 1.0])])
    return x, torch.tensor([0] * 14 + [1] * 12), torch.stack([torch.eye(2), 0.09 * torch.eye(2)]).double()


def affinity(x, covariances):
    difference = x[:, None] - x[None]
    inverse = torch.linalg.inv(covariances)
    return torch.stack([
        -torch.einsum('ijd,de,ije->ij', difference, s, difference) / 2 - torch.logdet(c)
        for s, c in zip(inverse, covariances)
    ])  # fmt: skip


def partition_blocks(labels, num_clusters):
    member = torch.nn.functional.one_hot(labels, num_clusters).double().T
    return member[:, :, None] * member[:, None] / member.sum(1)[:, None, None]


def test_likelihood_identity_of_any_partition():
    stats = pytest.importorskip('scipy.stats')
    x, labels, covariances = two_shapes()
    labels = labels[torch.randperm(26, generator=seeded())]
    total = sum(
        stats.multivariate_normal(x[labels == k].mean(0).numpy(), covariances[k].numpy())
        .logpdf(x[labels == k].numpy()).sum()
        for k in range(2)
    )  # fmt: skip
    lifted = (affinity(x, covariances) * partition_blocks(labels, 2)).sum()
    assert 2 * total + 26 * 2 * math.log(2 * math.pi) == pytest.approx(float(lifted), abs=1e-8)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances), x.T, upper=False).mT
    value = partition_value(white, torch.logdet(covariances), labels)
    assert float(value) == pytest.approx(float(lifted), abs=1e-8)


def test_affine_projection_is_idempotent_and_orthogonal():
    blocks, trace = randn(3, 9, 9), 1.0
    projected = _sdp_admm.project(blocks, trace)
    torch.testing.assert_close(_sdp_admm.project(projected, trace), projected)
    torch.testing.assert_close(projected.sum((0, 2)), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(projected.diagonal(dim1=1, dim2=2).sum(1), torch.ones(3, dtype=torch.float64))
    other = _sdp_admm.project(randn(3, 9, 9, seed=1), trace)
    symmetric = (blocks + blocks.mT) / 2
    assert abs(float(((symmetric - projected) * (projected - other)).sum())) < 1e-10
    one = _sdp_admm.project(randn(1, 9, 9), 4.0)
    assert float(one.diagonal(dim1=1, dim2=2).sum()) == pytest.approx(4)


def test_small_program_is_feasible_and_certified():
    x, labels, covariances = two_shapes()
    memberships, objective, gap = likelihood_sdp(x, covariances)
    assert clustering_accuracy(labels, memberships.sum(-1).argmax(0)) == 1
    assert memberships.min() >= -1e-5
    assert torch.linalg.eigvalsh(memberships).min() >= -1e-5
    torch.testing.assert_close(memberships.sum((0, 2)), torch.ones(26, dtype=x.dtype), rtol=0, atol=1e-6)
    torch.testing.assert_close(memberships.diagonal(dim1=1, dim2=2).sum(1), torch.ones(2, dtype=x.dtype))
    truth = (affinity(x, covariances) * partition_blocks(labels, 2)).sum()
    torch.testing.assert_close(objective, truth, rtol=1e-3, atol=1e-3)
    assert 0 <= float(gap) < 1e-2


@pytest.mark.parametrize('covariances_differ', [False, True])
def test_objective_and_bound_equal_those_of_an_interior_point_solver(covariances_differ):
    cp = pytest.importorskip('cvxpy')
    pytest.importorskip('clarabel')
    x = randn(14, 2)  # no clusters: the relaxation is not tight
    covariances = torch.stack([torch.eye(2), (0.3 if covariances_differ else 1.0) * torch.eye(2)]).double()
    weights = affinity(x, covariances)
    blocks = [cp.Variable((14, 14), PSD=True) for _ in range(2)]
    limits = [sum(blocks) @ np.ones(14) == 1]
    for block in blocks:
        limits += [block >= 0, cp.trace(block) == 1]
    value = cp.sum([cp.sum(cp.multiply(a.numpy(), block)) for a, block in zip(weights, blocks)])
    best = cp.Problem(cp.Maximize(value), limits).solve(solver='CLARABEL')
    result = likelihood_sdp(x, covariances, tol=1e-7, num_iters=5000)
    assert float((weights * result.memberships).sum()) == pytest.approx(best, rel=1e-4)
    assert float(result.objective) == pytest.approx(best, rel=1e-4)
    assert float(result.objective + result.gap) >= best - 1e-6 * abs(best)


def test_bound_is_never_below_a_partition():
    x = randn(20, 3)
    result = kmeans_sdp(x, 3, tol=1e-4, num_iters=300)
    rounded = membership_labels(result.memberships, 3, generator=seeded())
    centered = x - x.mean(0)
    bound = float(means_energy(centered, rounded, 3) + result.gap)
    for seed in range(50):
        labels = torch.randint(0, 3, (20,), generator=seeded(seed))
        assert float(means_energy(centered, labels, 3)) <= bound + 1e-9
    best = kmeans(x.expand(50, 20, 3).contiguous(), 3, generator=seeded()).inertia.min()
    assert float(centered.square().sum() - best) <= bound + 1e-9
    # whatever the multipliers are, the bound holds
    wild = _sdp_admm.dual_bound((centered @ centered.T)[None], randn(1, 20, 20).abs(), randn(1, 20, 20), 3.0)
    assert float(centered.square().sum() - best) <= float(wild)


@pytest.mark.parametrize('solver', ['admm', 'factorized'])
def test_kmeans_program_finds_separated_clusters(solver):
    labels = torch.arange(60) % 3
    x = randn(60, 4) + 6 * torch.eye(4, dtype=torch.float64)[labels]
    result = kmeans_sdp(x, 3, solver=solver, tol=1e-5, generator=seeded())
    assert clustering_accuracy(labels, membership_labels(result.memberships, 3, generator=seeded())) == 1
    energy = means_energy(x, labels, 3)
    torch.testing.assert_close(result.objective, energy, rtol=2e-4, atol=0)
    assert float(result.gap) < 1e-3 * float(energy)


def test_objective_moves_with_the_origin_and_the_unit_as_the_formula_says():
    labels = torch.arange(40) % 2
    x = randn(40, 3) + 8 * labels[:, None]
    plain = kmeans_sdp(x, 2)
    moved = kmeans_sdp(1000 * x + 500, 2)
    torch.testing.assert_close(moved.objective, means_energy(1000 * x + 500, labels, 2), rtol=1e-5, atol=0)
    torch.testing.assert_close(moved.memberships, plain.memberships, rtol=0, atol=1e-4)


def test_equal_covariances_are_k_means_and_scaling_shifts_the_objective():
    labels = torch.arange(40) % 2
    x = randn(40, 3) + 6 * labels[:, None]
    covariances = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    one = likelihood_sdp(x, covariances, tol=1e-6)
    assert clustering_accuracy(labels, membership_labels(one.memberships, 2)) == 1
    other = likelihood_sdp(5 * x, 25 * covariances, tol=1e-6)
    expected = one.objective - 40 * 3 * math.log(25)
    torch.testing.assert_close(other.objective, expected, rtol=1e-3, atol=0)


def test_factorized_likelihood_from_labels_and_for_many_points():
    x, labels, covariances = two_shapes()
    result = likelihood_sdp(x, covariances, solver='factorized', init=labels, tol=1e-3, generator=seeded())
    assert torch.equal(membership_labels(result.memberships, 2), labels)
    many = torch.arange(20_000) % 2
    x = randn(20_000, 2) * torch.tensor([[1.0, 0.3]]).T[many] + torch.tensor([[0.0, 0.0], [5.0, 1.0]])[many]
    result = likelihood_sdp(x, covariances, solver='factorized', init=many, tol=1e-2, num_iters=60)
    assert result.memberships.shape == (2, 20_000, 2)
    assert clustering_accuracy(many, membership_labels(result.memberships, 2)) > 0.99


def test_duplicates_and_types():
    x = torch.tensor([[0.0, 0.0]] * 4 + [[5.0, 5.0]] * 4).half()
    for run in (lambda: kmeans_sdp(x, 2), lambda: likelihood_sdp(x, torch.eye(2).repeat(2, 1, 1))):
        result = run()
        assert all(each.dtype == torch.float16 for each in result)
        assert all(each.isfinite().all() for each in result)
    labels = membership_labels(kmeans_sdp(x.float(), 2).memberships, 2, generator=seeded())
    assert labels.tolist() in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    assert kmeans_sdp(torch.ones(5, 2), 2, num_iters=50).memberships.isfinite().all()


def test_a_run_that_ends_early_warns():
    with pytest.warns(UserWarning, match='stopped after 2 iterations'):
        kmeans_sdp(randn(30, 3), 3, num_iters=2)


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda: kmeans_sdp(randn(5, 2), 5), 'must not exceed'),
        (lambda: kmeans_sdp(randn(2, 5, 2), 2), 'must have shape'),
        (lambda: kmeans_sdp(torch.full((5, 2), torch.nan), 2), 'must be finite'),
        (lambda: kmeans_sdp(randn(5, 2), 2, solver='bm'), 'solver must be one of'),
        (lambda: kmeans_sdp(randn(20_000, 2), 2), 'bytes.*factorized'),
        (lambda: likelihood_sdp(randn(5, 2), torch.eye(3).repeat(2, 1, 1)), 'covariances must have shape'),
        (lambda: likelihood_sdp(randn(5, 2), -torch.eye(2).repeat(2, 1, 1)), 'positive definite'),
        (lambda: likelihood_sdp(randn(5, 2), torch.ones(2, 2, 2)), 'positive definite'),
        (lambda: likelihood_sdp(randn(5, 2), torch.eye(2).repeat(5, 1, 1)), 'must not exceed'),
        (lambda: likelihood_sdp(randn(5, 2), torch.eye(2).repeat(2, 1, 1), init=torch.full((5,), 2)), 'init must be'),
        (lambda: membership_labels(randn(2, 4, 4), 3), 'must hold 3 blocks'),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_result_takes_apart_in_three():
    memberships, objective, gap = kmeans_sdp(np_points(), 2)
    assert memberships.shape == (6, 6)
    assert objective.dim() == gap.dim() == 0


def np_points():
    return torch.from_numpy(np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]]))


def long_ones_across(size):
    generator = seeded()
    x = torch.randn(3 * size, 4, generator=generator, dtype=torch.float64)
    covariances = torch.stack([torch.eye(4) * 0.15, torch.diag(torch.tensor([4, 0.2, 0.2, 0.2])),
                               torch.diag(torch.tensor([0.2, 4, 0.2, 0.2]))]).double()  # fmt: skip
    labels = torch.arange(3 * size) // size
    means = torch.tensor([[0, 0, 0, 0], [2.2, 1.6, 0, 0], [1.6, -2.2, 0, 0]], dtype=torch.float64)
    return x * covariances.diagonal(dim1=1, dim2=2).sqrt()[labels] + means[labels], covariances


def test_overlapping_clusters_are_solved_in_few_iterations(recwarn):
    """A penalty that does not follow the residuals needs more than 400."""
    x, covariances = long_ones_across(40)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances), x.mT, upper=False).mT
    lengths = white.square().sum(-1)
    kernel = white @ white.mT - (lengths[:, :, None] + lengths[:, None]) / 2 - torch.logdet(covariances)[:, None, None]
    for unit in (1.0, 1e6):
        found = _sdp_admm.solve(kernel * unit, 1.0, 1e-4, 400)
        assert found.residual <= 1e-4
        assert found.num_iters <= 260
        value = (kernel * unit * found.blocks).sum()
        assert float((found.bound - value) / unit) < 0.02 * len(x)  # nats


def test_memberships_stay_relaxed_where_no_partition_is_as_good_and_start_the_next():
    x, covariances = long_ones_across(15)
    first = likelihood_sdp(x, covariances, tol=1e-3, num_iters=300)
    rows = first.memberships.sum(-1)
    assert ((rows > 0.05) & (rows < 0.95)).any()
    assert float(first.gap) > 0.1
    again = likelihood_sdp(x, covariances, tol=1e-3, num_iters=300, init=first.memberships)
    assert torch.equal(rows.argmax(0), again.memberships.sum(-1).argmax(0))
    for init in (first.memberships[:2], torch.full_like(first.memberships, torch.nan), rows[0], torch.full((45,), 3)):
        with pytest.raises(ValueError, match='init must be'):
            likelihood_sdp(x, covariances, init=init)
    with pytest.raises(ValueError, match='init must be'):
        likelihood_sdp(x, covariances, init=first.memberships, solver='factorized')
