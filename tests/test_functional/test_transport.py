# SPDX-License-Identifier: Apache-2.0
"""partial_transport and unbalanced_transport: oracles, limits, masks, bad input."""

import math

import numpy as np
import pytest
import torch

from clusterplug.functional.transport import partial_transport, sinkhorn, sinkhorn_log_plan, unbalanced_transport


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('mass', [0.2, 0.6, 0.9])
@pytest.mark.parametrize('epsilon', [0.05, 0.5])
def test_partial_equals_pot(mass, epsilon):
    partial = pytest.importorskip('ot').partial
    scores, rows, cols = rand(15, 6), rand(15, seed=1), rand(6, seed=2)
    rows, cols = rows / rows.sum(), 1.2 * cols / cols.sum()
    oracle = partial.entropic_partial_wasserstein(
        rows.numpy(), cols.numpy(), 1 - scores.numpy(), epsilon, m=mass, numItermax=20000, stopThr=1e-14
    )
    plan = partial_transport(scores, epsilon=epsilon, num_iters=4000, mass=mass, row_marginals=rows, col_marginals=cols)
    torch.testing.assert_close(plan, torch.from_numpy(oracle), rtol=1e-5, atol=1e-8)
    assert plan.sum().item() == pytest.approx(mass, rel=1e-10)
    assert (plan.sum(1) <= rows * (1 + 1e-6)).all()
    assert (plan.sum(0) <= cols * (1 + 1e-6)).all()


@pytest.mark.parametrize(('row_penalty', 'col_penalty'), [(1.0, 1.0), (math.inf, 0.5), (0.2, 3.0)])
def test_unbalanced_equals_pot(row_penalty, col_penalty):
    unbalanced = pytest.importorskip('ot').unbalanced
    scores, rows, cols = rand(15, 6), rand(15, seed=1), rand(6, seed=2)
    cols = cols * rows.sum() / cols.sum()
    with pytest.warns(UserWarning, match='overwritten'):
        oracle = unbalanced.sinkhorn_unbalanced(
            rows.numpy(), cols.numpy(), -scores.numpy(), 0.1, (row_penalty, col_penalty), reg_type='entropy',
            numItermax=20000, stopThr=1e-15,
        )  # fmt: skip
    plan = unbalanced_transport(
        scores, epsilon=0.1, num_iters=2000, row_penalty=row_penalty, col_penalty=col_penalty, row_marginals=rows,
        col_marginals=cols,
    )  # fmt: skip
    torch.testing.assert_close(plan, torch.from_numpy(oracle), rtol=1e-8, atol=1e-12)


def test_limits_are_sinkhorn():
    scores = rand(12, 5)
    balanced = sinkhorn(scores, epsilon=0.1, num_iters=500)
    both = unbalanced_transport(scores, epsilon=0.1, num_iters=500, col_penalty=math.inf)
    torch.testing.assert_close(both, balanced, rtol=1e-10, atol=1e-14)
    three = unbalanced_transport(scores, epsilon=0.1, num_iters=3, col_penalty=math.inf)
    torch.testing.assert_close(three, sinkhorn(scores, epsilon=0.1, num_iters=3), rtol=1e-10, atol=1e-14)
    strong = unbalanced_transport(scores, epsilon=0.1, num_iters=500, col_penalty=1e9)
    torch.testing.assert_close(strong, balanced, rtol=1e-6, atol=1e-10)
    everything = partial_transport(scores, epsilon=0.1, num_iters=5000, mass=1.0)
    torch.testing.assert_close(everything, balanced, rtol=1e-4, atol=1e-7)


def test_partial_moves_the_confident_rows_first():
    scores = torch.eye(4).repeat(3, 1)
    scores[8:] = 0.25
    plan = partial_transport(scores, epsilon=0.02, num_iters=300, mass=0.5)
    assert plan[:8].sum() > 0.49
    assert plan[8:].sum() < 0.01


@pytest.mark.parametrize('solve', [partial_transport, unbalanced_transport])
def test_mask_zero_marginals_batch_and_types(solve):
    options = {'mass': 0.4} if solve is partial_transport else {'row_penalty': 2.0}
    options |= {'epsilon': 0.1, 'num_iters': 30}
    scores = rand(3, 14, 5)
    mask = rand(3, 14, seed=3) > 0.4
    mask[2] = False
    cols = torch.tensor([0.3, 0.0, 0.3, 0.2, 0.2], dtype=torch.float64)
    plan = solve(scores.masked_fill(~mask.unsqueeze(-1), math.nan), mask=mask, col_marginals=cols, **options)
    assert (plan[~mask] == 0).all()
    assert (plan[..., 1] == 0).all()
    for index in range(2):
        kept = scores[index][mask[index]][:, cols > 0]
        single = solve(kept, col_marginals=cols[cols > 0], **options)
        torch.testing.assert_close(plan[index][mask[index]][:, cols > 0], single, rtol=1e-9, atol=1e-14)
    nothing = solve(scores, col_marginals=torch.zeros(5), **options)
    assert (nothing == 0).all()
    half = solve(scores.half(), **options)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, solve(scores.half().float(), **options).half())


@pytest.mark.parametrize('solve', [partial_transport, unbalanced_transport])
@pytest.mark.parametrize('scale', [1e4, 1e20, 3e38])
def test_finite_for_huge_scores_and_tiny_epsilon(solve, scale):
    options = {'mass': 0.4} if solve is partial_transport else {}
    scores = (rand(8, 4).float() * 2 - 1) * scale
    for epsilon in (1.0, 1e-3):
        assert solve(scores, epsilon=epsilon, num_iters=20, **options).isfinite().all()


@pytest.mark.parametrize('solve', [partial_transport, unbalanced_transport])
def test_gradcheck_and_compile(solve):
    options = {'mass': 0.4} if solve is partial_transport else {}
    options |= {'epsilon': 0.3, 'num_iters': 4, 'mask': torch.tensor([True, True, False, True, True])}
    scores = rand(5, 3)
    assert torch.autograd.gradcheck(lambda s: solve(s, **options), scores.clone().requires_grad_())
    compiled = torch.compile(lambda s: solve(s, **options), fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(scores), solve(scores, **options))


def test_bad_input():
    scores = rand(5, 3)
    with pytest.raises(ValueError, match=r'mass must be a finite number > 0, got 0\.0'):
        partial_transport(scores, epsilon=0.1, num_iters=3, mass=0.0)
    with pytest.raises(ValueError, match=r'got 1.5 for 1'):
        partial_transport(scores, epsilon=0.1, num_iters=3, mass=1.5)
    with pytest.raises(ValueError, match='col_penalty'):
        unbalanced_transport(scores, epsilon=0.1, num_iters=3, col_penalty=0.0)
    with pytest.raises(ValueError, match='row_penalty'):
        unbalanced_transport(scores, epsilon=0.1, num_iters=3, row_penalty=math.nan)
    with pytest.raises(ValueError, match='epsilon'):
        unbalanced_transport(scores, epsilon=-1.0, num_iters=3)
    with pytest.raises(ValueError, match='non-negative'):
        unbalanced_transport(scores, epsilon=0.1, num_iters=3, row_marginals=-torch.ones(5))


# Weights that differ for each entry: an error of the derivative cannot cancel in a sum.
GRADIENT_CASES = [
    (solve, options, iterations, case)
    for solve, options in (
        (sinkhorn, {'form': 'log'}), (sinkhorn, {'form': 'scaling'}), (sinkhorn_log_plan, {}),
        (partial_transport, {'mass': 0.45}), (unbalanced_transport, {'row_penalty': 0.7, 'col_penalty': 0.4}),
        (unbalanced_transport, {}),
    )
    for iterations in (1, 2, 5)
    for case in ('uniform', 'marginals', 'zeros')
]  # fmt: skip


@pytest.mark.parametrize(('solve', 'options', 'iterations', 'case'), GRADIENT_CASES)
def test_gradient_is_that_of_what_is_computed(solve, options, iterations, case):
    scores = (3 * rand(4, 3, seed=5) - 1).requires_grad_()
    options = {'epsilon': 0.4, 'num_iters': iterations, **options}
    rows, cols = rand(4, seed=6) + 0.2, rand(3, seed=7) + 0.2
    if case == 'zeros':
        rows[2], cols[1] = 0, 0
    rows, cols = ((each / each.sum()).requires_grad_() for each in (rows, cols))

    def compute(scores, rows=None, cols=None):
        # The plan of balanced transport depends on proportions, and its marginals must have equal sums.
        if rows is not None and solve in (sinkhorn, sinkhorn_log_plan):
            rows, cols = rows / rows.sum(), cols / cols.sum()
        plan = solve(scores, row_marginals=rows, col_marginals=cols, **options)
        return plan.exp() if solve is sinkhorn_log_plan else plan

    if case == 'uniform':
        assert torch.autograd.gradcheck(compute, scores)
    elif case == 'marginals':
        assert torch.autograd.gradcheck(compute, (scores, rows, cols))
    else:  # at a marginal of 0 only the one-sided derivative exists; nothing may become NaN
        assert torch.autograd.gradcheck(lambda s: compute(s, rows.detach(), cols.detach()), scores)
        for gradient in torch.autograd.grad(compute(scores, rows, cols).square().sum(), (scores, rows, cols)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize('iterations', [1, 2, 50])
def test_a_constant_changes_nothing_in_partial_transport(iterations):
    scores = rand(6, 4)
    one, other = (
        partial_transport(shifted, epsilon=0.2, num_iters=iterations, mass=0.5) for shifted in (scores, scores + 7.0)
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)
    assert one.sum().item() == pytest.approx(0.5, rel=1e-12)


def test_numbers_of_numpy_and_bad_ones():
    scores = rand(5, 3)
    expected = partial_transport(scores, epsilon=0.5, num_iters=3, mass=0.25)
    options = {'epsilon': np.float32(0.5), 'num_iters': np.int16(3), 'mass': np.float64(0.25)}
    assert torch.equal(partial_transport(scores, **options), expected)
    for solve in (sinkhorn, sinkhorn_log_plan, unbalanced_transport):
        solve(scores, epsilon=np.float16(0.5), num_iters=np.uint8(3))
        for change, kind, words in (
            ({'epsilon': True}, TypeError, 'epsilon'), ({'epsilon': math.nan}, ValueError, 'epsilon'),
            ({'num_iters': 2.0}, TypeError, 'num_iters'), ({'num_iters': 0}, ValueError, 'num_iters'),
        ):  # fmt: skip
            with pytest.raises(kind, match=words):
                solve(scores, **{'epsilon': 0.5, 'num_iters': 3, **change})
