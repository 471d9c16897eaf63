# SPDX-License-Identifier: Apache-2.0
"""progressive_transport: the authors' scaling in float64, a constrained solver, POT, closed forms, bad input."""

import math

import pytest
import torch

from clusterplug.functional import progressive_transport
from clusterplug.functional.transport import progressive


def log_probabilities(n, k, seed=0, dtype=torch.float64, sharpness=10.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, 32, generator=generator, dtype=dtype), dim=1)
    w = torch.nn.functional.normalize(torch.randn(k, 32, generator=generator, dtype=dtype), dim=1)
    return (sharpness * x @ w.T).log_softmax(1)


def plain_scaling(scores, epsilon, mass, penalty, tol=1e-13, most=30000):
    """The authors' loop over a matrix with a virtual column, which is scaled like all others; and its iterations."""
    n, k = scores.shape
    kernel = (torch.cat([scores, scores.new_zeros(n, 1)], 1) / epsilon).exp()
    target = torch.tensor([mass / k] * k + [1 - mass], dtype=torch.float64)
    power = torch.tensor([penalty / (penalty + epsilon)] * k + [1.0], dtype=torch.float64)
    b = torch.full((k + 1,), 1 / (k + 1), dtype=torch.float64)
    for number in range(most):  # noqa: B007
        before = b
        b = (target / (kernel.T @ (1 / n / (kernel @ b)))) ** power
        if ((b - before).abs() / b).max() < tol:
            break
    return (kernel * b / (kernel @ b)[:, None])[:, :-1], number


@pytest.mark.parametrize('mass', [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('penalty', [0.05, 1.0])
def test_equals_the_authors_scaling_with_exact_mass(mass, penalty):
    scores = log_probabilities(128, 10)
    plan = progressive_transport(scores, epsilon=0.1, mass=mass, penalty=penalty)
    expected, _ = plain_scaling(scores, 0.1, mass, penalty)
    torch.testing.assert_close(plan, expected, atol=1e-6, rtol=0)
    assert float(plan.sum()) == pytest.approx(128 * mass, rel=1e-9)
    assert plan.sum(1).max() <= 1 + 1e-12


def test_iterations_do_not_depend_on_the_mass_and_are_few():
    scores, used = log_probabilities(512, 20), []
    for mass in (0.1, 0.5, 0.9, 1.0):
        result = progressive_transport(scores, epsilon=0.1, mass=mass, penalty=1.0, full_output=True)
        assert bool(result.converged)
        used.append(int(result.num_iters))
    assert max(used) <= 40
    assert plain_scaling(scores, 0.1, 0.1, 1.0, tol=1e-8)[1] >= 10 * used[0]


def test_the_mass_is_exact_after_every_iteration():
    scores = log_probabilities(200, 8)
    for iterations in (1, 2, 3, 7):
        result = progressive_transport(
            scores, epsilon=0.1, mass=0.3, penalty=1.0, max_iters=iterations, full_output=True
        )
        assert float(result.plan.sum()) == pytest.approx(60, rel=1e-12)
        assert not bool(result.converged)


def test_equals_a_general_solver():
    optimize = pytest.importorskip('scipy.optimize')
    n, k, mass, epsilon, penalty = 6, 3, 0.5, 0.1, 1.0
    cost = -log_probabilities(n, k, sharpness=3.0).numpy()
    import numpy as np

    def objective(flat):
        q = flat.reshape(n, k)
        rest, sizes = 1 / n - q.sum(1), q.sum(0)
        safe = [np.maximum(each, 1e-300) for each in (q, rest, sizes)]
        entropy = (safe[0] * np.log(safe[0])).sum() + (safe[1] * np.log(safe[1])).sum()
        divergence = (safe[2] * np.log(safe[2] / (mass / k)) - sizes + mass / k).sum()
        return (q * cost).sum() + penalty * divergence + epsilon * entropy

    constraints = [
        {'type': 'eq', 'fun': lambda flat: flat.sum() - mass},
        {'type': 'ineq', 'fun': lambda flat: 1 / n - flat.reshape(n, k).sum(1)},
    ]
    start = np.full(n * k, mass / (n * k))
    found = optimize.minimize(
        objective, start, bounds=[(1e-12, 1)] * (n * k), constraints=constraints, method='SLSQP',
        options={'ftol': 1e-15, 'maxiter': 1000},
    )  # fmt: skip
    plan = progressive_transport(torch.from_numpy(-cost), epsilon=epsilon, mass=mass, penalty=penalty)
    torch.testing.assert_close(plan / n, torch.from_numpy(found.x.reshape(n, k)), atol=1e-6, rtol=0)


def test_whole_mass_equals_pot():
    ot = pytest.importorskip('ot')
    import numpy as np

    n, k = 128, 10
    scores = log_probabilities(n, k)
    a, b = np.full(n, 1 / n), np.full(k, 1 / k)
    met = progressive_transport(scores, epsilon=0.1, mass=1.0, penalty=math.inf)
    oracle = n * ot.sinkhorn(a, b, -scores.numpy(), 0.1, numItermax=20000, stopThr=1e-14)
    torch.testing.assert_close(met, torch.from_numpy(oracle), atol=2e-6, rtol=0)
    soft = progressive_transport(scores, epsilon=0.1, mass=1.0, penalty=1.0)
    oracle = n * ot.unbalanced.sinkhorn_unbalanced(
        a, b, -scores.numpy(), 0.1, (np.inf, 1.0), reg_type='entropy', numItermax=20000, stopThr=1e-14
    )
    torch.testing.assert_close(soft, torch.from_numpy(oracle), atol=2e-6, rtol=0)


def test_closed_form_without_a_penalty():
    scores = log_probabilities(100, 6)
    plan = progressive_transport(scores, epsilon=0.1, mass=0.4, penalty=0.0)
    kernel = (scores / 0.1).exp()
    weight = plan.sum(1)
    rest = kernel.sum(1) * (1 - weight) / weight  # e^t of every row: one number
    torch.testing.assert_close(rest / rest[0], torch.ones(100, dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(plan, kernel / (kernel.sum(1, keepdim=True) + rest[0]), rtol=1e-8, atol=0)
    order = kernel.sum(1).argsort()
    assert (weight[order].diff() >= 0).all()  # confident rows first


def test_sizes_follow_the_penalty():
    scores = log_probabilities(512, 20)
    spread = []
    for penalty in (0.0, 1.0, 1e3):
        sizes = progressive_transport(scores, epsilon=0.1, mass=0.5, penalty=penalty).sum(0)
        spread.append(float(sizes.std() / sizes.mean()))
    assert spread[0] > 2 * spread[1] > 50 * spread[2]
    assert spread[2] < 1e-3


def test_equivariance():
    scores = log_probabilities(60, 5)
    generator = torch.Generator().manual_seed(0)
    rows, cols = torch.randperm(60, generator=generator), torch.randperm(5, generator=generator)
    options = {'epsilon': 0.1, 'mass': 0.3, 'penalty': 1.0}
    plan = progressive_transport(scores, **options)
    torch.testing.assert_close(progressive_transport(scores[rows][:, cols], **options), plan[rows][:, cols])


def test_a_batch_is_its_problems_with_masses_masks_and_fewer_clusters():
    scores = torch.stack([log_probabilities(40, 6, seed) for seed in range(3)])
    masses = torch.tensor([0.2, 0.7, 1.0])
    prior = torch.tensor([[1 / 6] * 6, [0.25] * 4 + [0.0] * 2, [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[0, 30:] = False
    given = scores.masked_fill(~mask.unsqueeze(-1), math.nan)
    together = progressive_transport(given, epsilon=0.1, mass=masses, penalty=1.0, prior=prior, mask=mask)
    alone = progressive_transport(scores[0, :30], epsilon=0.1, mass=0.2, penalty=1.0)
    torch.testing.assert_close(together[0, :30], alone, atol=1e-7, rtol=0)
    assert together[0, 30:].eq(0).all()
    assert together[1, :, 4:].eq(0).all()
    fewer = progressive_transport(scores[1, :, :4], epsilon=0.1, mass=0.7, penalty=1.0)
    torch.testing.assert_close(together[1, :, :4], fewer, atol=1e-7, rtol=0)
    torch.testing.assert_close(together.sum((1, 2)), torch.tensor([6.0, 28.0, 40.0], dtype=torch.float64))
    all_masked = progressive_transport(given, epsilon=0.1, mass=0.5, penalty=1.0, mask=torch.zeros_like(mask))
    assert all_masked.eq(0).all()


def test_warm_start_and_fixed_iterations():
    scores = log_probabilities(100, 8)
    options = {'epsilon': 0.1, 'mass': 0.3, 'penalty': 1.0}
    first = progressive_transport(scores, **options, full_output=True)
    again = progressive_transport(scores, **options, init=first.potentials, full_output=True)
    assert int(again.num_iters) == 1 < int(first.num_iters)
    torch.testing.assert_close(again.plan, first.plan, atol=1e-7, rtol=0)
    fixed = progressive_transport(scores, **options, tol=0, max_iters=60)
    torch.testing.assert_close(fixed, first.plan, atol=1e-7, rtol=0)
    with pytest.warns(UserWarning, match='max_iters=2 did not suffice'):
        progressive_transport(scores, **options, max_iters=2)


def test_extreme_scores():
    scores = log_probabilities(80, 5)
    scores[:, 4] -= 5000  # a cluster that nobody takes freely
    plan = progressive_transport(scores, epsilon=0.1, mass=0.5, penalty=math.inf)
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 8.0, dtype=torch.float64), rtol=1e-5, atol=0)
    sharp = progressive_transport(1e4 * scores[:, :4], epsilon=0.1, mass=0.5, penalty=0.0)
    assert sharp.isfinite().all()
    assert float(sharp.sum()) == pytest.approx(40)
    equal = progressive_transport(torch.zeros(10, 4), epsilon=0.1, mass=0.3, penalty=1.0)
    torch.testing.assert_close(equal, torch.full((10, 4), 0.075))


def test_large_problems_are_computed_in_fp32(monkeypatch):
    scores = log_probabilities(9000, 6).float()
    wide = progressive_transport(scores, epsilon=0.1, mass=0.2, penalty=1.0)
    monkeypatch.setattr(progressive, '_WIDE_ENTRIES', 0)
    narrow = progressive_transport(scores, epsilon=0.1, mass=0.2, penalty=1.0, full_output=True)
    assert bool(narrow.converged)
    torch.testing.assert_close(narrow.plan, wide, atol=3e-6, rtol=0)
    assert float(narrow.plan.double().sum()) == pytest.approx(1800, rel=1e-6)


def test_types():
    scores = log_probabilities(50, 4)
    expected = progressive_transport(scores, epsilon=0.1, mass=0.5, penalty=1.0)
    for dtype, error in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        with torch.autocast('cpu', torch.bfloat16):
            plan = progressive_transport(scores.to(dtype), epsilon=0.1, mass=0.5, penalty=1.0)
        assert plan.dtype == dtype
        exact = progressive_transport(scores.to(dtype).double(), epsilon=0.1, mass=0.5, penalty=1.0)
        torch.testing.assert_close(plan.double(), exact, atol=error, rtol=0)
    assert not progressive_transport(scores.requires_grad_(), epsilon=0.1, mass=0.5, penalty=1.0).requires_grad
    assert expected.dtype == torch.float64
    empty = progressive_transport(torch.zeros(0, 5, 3), epsilon=0.1, mass=0.5, penalty=1.0)
    assert empty.shape == (0, 5, 3)


@pytest.mark.parametrize(('change', 'message'), [
    ({'mass': 0.0}, 'mass must be'), ({'mass': 1.1}, 'mass must be'), ({'mass': math.nan}, 'mass must be'),
    ({'mass': torch.tensor(0.0)}, 'mass must be in'), ({'mass': torch.tensor([0.5, 0.5])}, 'mass must be a number'),
    ({'epsilon': 0.0}, 'epsilon must be'), ({'penalty': -1.0}, 'penalty must be'), ({'tol': -1.0}, 'tol must be'),
    ({'max_iters': 0}, 'max_iters must be'), ({'prior': torch.tensor([0.5, 0.2, 0.1])}, 'prior must be .* sum to 1'),
    ({'prior': torch.tensor([1.5, -0.5, 0.0])}, 'prior must be'), ({'prior': torch.ones(4)}, 'prior must have shape'),
    ({'init': torch.zeros(4)}, 'init must have shape'), ({'mask': torch.ones(3, dtype=torch.bool)}, 'mask must have'),
])  # fmt: skip
def test_bad_options(change, message):
    options = {'epsilon': 0.1, 'mass': 0.5, 'penalty': 1.0, **change}
    with pytest.raises(ValueError, match=message):
        progressive_transport(torch.zeros(5, 3), **options)


def test_bad_scores():
    options = {'epsilon': 0.1, 'mass': 0.5, 'penalty': 1.0}
    with pytest.raises(ValueError, match='at least 2 clusters'):
        progressive_transport(torch.zeros(5, 1), **options)
    for bad in (math.nan, math.inf, -math.inf):
        scores = torch.zeros(5, 3)
        scores[2, 1] = bad
        with pytest.raises(ValueError, match='scores must be finite'):
            progressive_transport(scores, **options)
    with pytest.raises(TypeError, match='floating'):
        progressive_transport(torch.zeros(5, 3, dtype=torch.int64), **options)
    with pytest.raises(TypeError, match='prior must be a floating tensor'):
        progressive_transport(torch.zeros(5, 3), **options, prior=[0.5, 0.25, 0.25])


@pytest.mark.slow
def test_a_hundred_thousand_rows():
    scores = log_probabilities(100_000, 100).float()
    result = progressive_transport(scores, epsilon=0.1, mass=0.1, penalty=1.0, full_output=True)
    assert bool(result.converged)
    assert float(result.plan.double().sum()) == pytest.approx(10_000, rel=1e-6)
