# SPDX-License-Identifier: Apache-2.0
"""sinkhorn: oracles, marginals, masks, extremes, launches."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from clusterplug.functional.transport import sinkhorn, sinkhorn_log_plan

FORMS = ('auto', 'log', 'scaling')


class CountOps(TorchDispatchMode):
    """Record the name of every operation that reaches the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


VIEWS = {'view', 'expand', 'unsqueeze', 'slice', 'detach', 'transpose', 'alias', '_unsafe_view', 'select', 'permute'}


def launches(function) -> list[str]:
    with CountOps() as counter:
        function()
    return [name for name in counter.names if name not in VIEWS]


def cosines(*shape, seed=0, dtype=torch.float32, dim=16):
    generator = torch.Generator().manual_seed(seed)
    *lead, n, k = shape
    x = torch.nn.functional.normalize(torch.randn(*lead, n, dim, generator=generator, dtype=dtype), dim=-1)
    c = torch.nn.functional.normalize(torch.randn(*lead, k, dim, generator=generator, dtype=dtype), dim=-1)
    return x @ c.mT


def loop_reference(scores, epsilon, num_iters, rows=None, cols=None):
    """Plain float64 loop over u and v for one problem."""
    scores = scores.double()
    n, k = scores.shape
    rows = torch.full((n,), 1 / n, dtype=torch.float64) if rows is None else rows.double() / rows.double().sum()
    cols = torch.full((k,), 1 / k, dtype=torch.float64) if cols is None else cols.double() / cols.double().sum()
    kernel = ((scores - scores.max()) / epsilon).exp()
    u = torch.ones(n, dtype=torch.float64)
    for _ in range(num_iters):
        v = cols / (kernel.T @ u)
        u = rows / (kernel @ v)
    return u[:, None] * kernel * v


@pytest.mark.parametrize('form', FORMS)
def test_one_iteration_by_hand(form):
    # kernel [[2, 1], [1, 1]]: columns sum to 3 and 2, so v = (1/6, 1/4); rows of E v = 7/12 and 5/12
    scores = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    expected = torch.tensor([[2 / 7, 3 / 14], [1 / 5, 3 / 10]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, epsilon=1.0, num_iters=1, form=form), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('form', FORMS)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 12),
    k=st.integers(1, 9),
    seed=st.integers(0, 999),
    epsilon=st.sampled_from([0.05, 0.3, 2.0]),
    num_iters=st.integers(1, 6),
)
def test_equals_plain_loop(form, n, k, seed, epsilon, num_iters):
    scores = cosines(n, k, seed=seed, dtype=torch.float64)
    plan = sinkhorn(scores, epsilon=epsilon, num_iters=num_iters, form=form)
    torch.testing.assert_close(plan, loop_reference(scores, epsilon, num_iters), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('num_iters', [1, 3, 50])
def test_equals_pot(form, num_iters):
    ot = pytest.importorskip('ot')
    scores = cosines(120, 13, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    rows = torch.rand(120, generator=generator, dtype=torch.float64) + 0.1
    cols = torch.rand(13, generator=generator, dtype=torch.float64) + 0.1
    rows, cols = rows / rows.sum(), cols / cols.sum()
    oracle = ot.sinkhorn(
        rows.numpy(), cols.numpy(), -scores.numpy(), 0.05, method='sinkhorn_log', numItermax=num_iters, stopThr=0,
        warn=False,
    )  # fmt: skip
    plan = sinkhorn(scores, epsilon=0.05, num_iters=num_iters, row_marginals=rows, col_marginals=cols, form=form)
    torch.testing.assert_close(plan, torch.from_numpy(oracle), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_swav_loop(form):
    scores = cosines(64, 30, seed=3)
    q = torch.exp(scores / 0.05).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    torch.testing.assert_close(sinkhorn(scores, epsilon=0.05, num_iters=3, form=form), q.T, rtol=2e-5, atol=1e-9)


def test_large_problem_takes_the_blocked_form_and_equals_the_others():
    scores = cosines(2, 700, 130, seed=2)
    names = launches(lambda: sinkhorn(scores, epsilon=0.05, num_iters=3))
    assert 'addmv_' in names
    auto = sinkhorn(scores, epsilon=0.05, num_iters=3)
    for form in ('log', 'scaling'):
        torch.testing.assert_close(auto, sinkhorn(scores, epsilon=0.05, num_iters=3, form=form), rtol=2e-5, atol=1e-10)
    shifted = sinkhorn(scores.double() + 1e4, epsilon=0.05, num_iters=3)
    torch.testing.assert_close(shifted.float(), auto, rtol=2e-5, atol=1e-10)
    mask = torch.rand(2, 700, generator=torch.Generator().manual_seed(0)) > 0.4
    used = torch.rand(2, 130, generator=torch.Generator().manual_seed(1)) > 0.4
    masked = [sinkhorn(scores, epsilon=0.05, num_iters=5, mask=mask, col_marginals=used, form=f) for f in FORMS]
    torch.testing.assert_close(masked[0], masked[1], rtol=2e-5, atol=1e-10)
    torch.testing.assert_close(masked[2], masked[1], rtol=2e-5, atol=1e-10)


def test_large_problem_with_unsafe_range_takes_the_log_form():
    scores = 200 * torch.randn(400, 200, generator=torch.Generator().manual_seed(0))
    auto = sinkhorn(scores, epsilon=0.05, num_iters=20)
    assert auto.isfinite().all()
    assert torch.equal(auto, sinkhorn(scores, epsilon=0.05, num_iters=20, form='log'))


def test_marginals_after_fifty_log_steps():
    scores = cosines(200, 10, dim=64)
    plan = sinkhorn(scores, epsilon=0.04, num_iters=50, form='log')
    assert (plan.sum(-1) * 200 - 1).abs().max() < 1e-5
    assert (plan.sum(-2) * 10 - 1).abs().max() < 1e-5
    counts = plan.argmax(-1).bincount(minlength=10)
    nearest = scores.argmax(-1).bincount(minlength=10)
    assert counts.min() >= 14 > nearest.min()
    assert counts.max() <= 26 < nearest.max()


@pytest.mark.parametrize('n', [3, 20, 200])
def test_kernel_identity_of_softmax_power(n):
    scores = cosines(n, 8, dtype=torch.float64)
    power = (scores.softmax(-1) ** 25).log()
    ours = sinkhorn(scores, epsilon=1 / 25, num_iters=300).argmax(-1)
    assert torch.equal(ours, sinkhorn(power, epsilon=1.0, num_iters=300).argmax(-1))


@pytest.mark.parametrize('form', FORMS)
def test_permutation_and_batch(form):
    scores = cosines(3, 40, 7)
    rows, cols = torch.randperm(40), torch.randperm(7)
    plan = sinkhorn(scores, epsilon=0.05, num_iters=20, form=form)
    permuted = sinkhorn(scores[:, rows][:, :, cols], epsilon=0.05, num_iters=20, form=form)
    torch.testing.assert_close(permuted, plan[:, rows][:, :, cols], rtol=1e-4, atol=1e-9)
    for index in range(3):
        single = sinkhorn(scores[index], epsilon=0.05, num_iters=20, form=form)
        torch.testing.assert_close(plan[index], single, rtol=1e-4, atol=1e-9)
    transposed = sinkhorn(scores.mT.contiguous().mT, epsilon=0.05, num_iters=20, form=form)
    torch.testing.assert_close(transposed, plan, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize('epsilon', [1.0, 0.05, 1e-3, 1e-9])
@pytest.mark.parametrize('form', ['auto', 'log', 'scaling'])
@pytest.mark.parametrize('case', ['huge', 'largest', 'minus', 'offset', 'logits', 'minus_inf', 'plus_inf', 'spread'])
def test_finite_for_extreme_scores(case, form, epsilon):
    base = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0))
    scores = {
        'huge': base * 1e20,
        'largest': base.sign() * torch.finfo(torch.float32).max,
        'minus': torch.full_like(base, -1e4),
        'offset': base + 1e6,
        'logits': base * 200,
        'minus_inf': base.masked_fill(base < -0.5, -torch.inf),
        'plus_inf': base.masked_fill(base > 1, torch.inf),
        'spread': base + torch.arange(30.0)[:, None] * 1e3,
    }[case]
    plan = sinkhorn(scores, epsilon=epsilon, num_iters=10, form=form)
    assert plan.isfinite().all()
    if form != 'scaling':
        torch.testing.assert_close(plan.sum(-1), torch.full((2, 30), 1 / 30), rtol=1e-4, atol=0)


def test_small_epsilon_meets_both_marginals_and_is_the_assignment():
    scores = cosines(12, 12, dtype=torch.float64)
    plan = sinkhorn(scores, epsilon=1e-3, num_iters=5000, form='log')
    torch.testing.assert_close(plan.sum(-2), torch.full((12,), 1 / 12, dtype=torch.float64), rtol=1e-3, atol=0)
    optimize = pytest.importorskip('scipy.optimize')
    _, assigned = optimize.linear_sum_assignment(-scores.numpy())
    assert plan.argmax(-1).tolist() == assigned.tolist()


def test_row_offsets_do_not_cost_digits():
    scores = cosines(50, 8)
    offsets = torch.randint(-4096, 4096, (50, 1)) * 2.0
    plan = sinkhorn((scores.double() + offsets), epsilon=0.05, num_iters=300)
    torch.testing.assert_close(plan.float(), sinkhorn(scores, epsilon=0.05, num_iters=300), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize('form', FORMS)
def test_mask_equals_removal_whatever_lies_there(form):
    scores = cosines(3, 25, 6)
    mask = torch.rand(3, 25, generator=torch.Generator().manual_seed(4)) > 0.4
    mask[2] = False
    dirty = scores.masked_fill(~mask.unsqueeze(-1), float('nan'))
    plan = sinkhorn(dirty, epsilon=0.05, num_iters=7, mask=mask, form=form)
    for index in range(2):
        removed = sinkhorn(scores[index][mask[index]], epsilon=0.05, num_iters=7, form=form)
        torch.testing.assert_close(plan[index][mask[index]], removed, rtol=1e-4, atol=1e-9)
    assert (plan[~mask] == 0).all()
    assert plan.isfinite().all()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('as_bool', [True, False])
def test_number_of_columns_for_each_problem(form, as_bool):
    scores = cosines(3, 25, 6)
    sizes = [6, 2, 0]
    used = torch.arange(6) < torch.tensor(sizes)[:, None]
    mask = torch.rand(3, 25, generator=torch.Generator().manual_seed(4)) > 0.3
    marginals = used if as_bool else used / used.sum(-1, keepdim=True).clamp(min=1)
    plan = sinkhorn(scores, epsilon=0.05, num_iters=60, mask=mask, col_marginals=marginals, form=form)
    for index, size in enumerate(sizes[:2]):
        separate = sinkhorn(scores[index, mask[index], :size], epsilon=0.05, num_iters=60, form=form)
        torch.testing.assert_close(plan[index, mask[index], :size], separate, rtol=1e-4, atol=1e-9)
    assert (plan.masked_select(~used[:, None]) == 0).all()
    assert (plan[2] == 0).all()
    assert plan.isfinite().all()


@pytest.mark.parametrize('form', FORMS)
def test_rows_of_marginal_zero_are_removed(form):
    scores = cosines(20, 5, dtype=torch.float64)
    rows = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[::3] = 0
    plan = sinkhorn(scores, epsilon=0.05, num_iters=9, row_marginals=rows / rows.sum(), form=form)
    expected = loop_reference(scores[rows > 0], 0.05, 9, rows[rows > 0])
    torch.testing.assert_close(plan[rows > 0], expected, rtol=1e-8, atol=1e-14)
    assert (plan[rows == 0] == 0).all()


@pytest.mark.parametrize('form', FORMS)
def test_one_row_one_column_and_nothing(form):
    one_row = sinkhorn(torch.tensor([[3.0, -1.0, 0.5]]), epsilon=0.1, num_iters=2, form=form)
    torch.testing.assert_close(one_row, torch.full((1, 3), 1 / 3))
    one_column = sinkhorn(torch.tensor([[3.0], [-1.0]]), epsilon=0.1, num_iters=1, form=form)
    torch.testing.assert_close(one_column, torch.full((2, 1), 0.5))
    nothing = sinkhorn(torch.ones(4, 3), epsilon=0.1, num_iters=3, mask=torch.zeros(4, dtype=torch.bool), form=form)
    assert torch.equal(nothing, torch.zeros(4, 3))


@pytest.mark.parametrize('form', FORMS)
def test_row_marginals_without_any_column_give_zeros(form):
    cols = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    rows = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.0, 0.0]])
    plan = sinkhorn(torch.rand(2, 3, 3), epsilon=0.1, num_iters=3, row_marginals=rows, col_marginals=cols, form=form)
    assert (plan[1] == 0).all()
    torch.testing.assert_close(plan[0].sum(-1), rows[0])
    bools = torch.tensor([[True, True, False], [False, False, False]])
    rows = torch.tensor([0.2, 0.3, 0.5])
    plan = sinkhorn(torch.rand(2, 3, 3), epsilon=0.1, num_iters=3, row_marginals=rows, col_marginals=bools, form=form)
    assert (plan[1] == 0).all()
    torch.testing.assert_close(plan[0].sum(-1), rows)


def test_nan_stays_in_its_problem():
    scores = cosines(2, 5, 3)
    scores[0, 2, 1] = float('nan')
    plan = sinkhorn(scores, epsilon=0.05, num_iters=3)
    assert plan[0].isnan().any()
    torch.testing.assert_close(plan[1], sinkhorn(scores[1], epsilon=0.05, num_iters=3))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    scores = cosines(30, 6).to(dtype)
    plan = sinkhorn(scores, epsilon=0.01, num_iters=20)
    assert plan.dtype == dtype
    assert torch.equal(plan, sinkhorn(scores.float(), epsilon=0.01, num_iters=20).to(dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for form in FORMS:
            inside = sinkhorn(scores.float(), epsilon=0.05, num_iters=5, form=form)
            outside = loop_reference(scores, 0.05, 5).float()
            torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-8)


def test_log_plan_is_the_logarithm_and_keeps_tiny_entries():
    scores = cosines(2, 20, 5)
    mask = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) > 0.3
    rows = torch.rand(2, 20, generator=torch.Generator().manual_seed(2)) + 0.1
    options = {'epsilon': 0.05, 'num_iters': 10, 'mask': mask, 'row_marginals': rows}
    torch.testing.assert_close(sinkhorn_log_plan(scores, **options).exp(), sinkhorn(scores, **options))
    tiny = sinkhorn_log_plan(scores, epsilon=1e-4, num_iters=10)
    assert tiny.isfinite().all()
    assert tiny.min() < -150


@pytest.mark.parametrize('form', ['log', 'scaling'])
def test_gradcheck(form):
    scores = cosines(2, 5, 3, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    used = torch.tensor([[True, True, True], [True, False, True]])
    rows = torch.rand(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.2
    plain = {'epsilon': 0.3, 'num_iters': 3, 'form': form}
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, **plain), scores)
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, mask=mask, col_marginals=used, **plain), scores)
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, row_marginals=rows, **plain), scores)


def test_large_problem_keeps_its_gradient():
    scores = cosines(400, 200).requires_grad_()
    weights = torch.randn(400, 200, generator=torch.Generator().manual_seed(0))
    gradients = []
    for form in FORMS:
        loss = (sinkhorn(scores, epsilon=0.05, num_iters=3, form=form) * weights).sum()
        gradients.append(torch.autograd.grad(loss, scores)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(gradients[2], gradients[1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('form', FORMS)
def test_compiles_without_graph_break(form):
    scores, mask = cosines(2, 30, 6), torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) > 0.3
    compiled = torch.compile(
        lambda s, m: sinkhorn(s, epsilon=0.05, num_iters=4, mask=m, form=form), fullgraph=True, backend='aot_eager'
    )
    expected = sinkhorn(scores, epsilon=0.05, num_iters=4, mask=mask, form=form)
    torch.testing.assert_close(compiled(scores, mask), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('masked', [False, True])
def test_two_launches_an_iteration_and_no_synchronisation(masked):
    scores = cosines(4, 50, 8)
    options = {}
    if masked:
        options['mask'] = torch.rand(4, 50, generator=torch.Generator().manual_seed(1)) > 0.3
        options['col_marginals'] = torch.arange(8) < torch.tensor([8, 3, 5, 8])[:, None]
    few = launches(lambda: sinkhorn(scores, epsilon=0.05, num_iters=5, form='log', **options))
    many = launches(lambda: sinkhorn(scores, epsilon=0.05, num_iters=25, form='log', **options))
    assert len(many) - len(few) == 2 * 20
    assert len(few) <= 2 * 5 + (35 if masked else 12)
    auto = launches(lambda: sinkhorn(scores, epsilon=0.05, num_iters=25, **options))
    assert auto == many
    assert not {'_local_scalar_dense', 'nonzero', 'item', 'is_nonzero'} & set(many)


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        ({'epsilon': 0.0}, ValueError, 'epsilon'),
        ({'epsilon': float('nan')}, ValueError, 'epsilon'),
        ({'num_iters': 0}, ValueError, 'num_iters'),
        ({'form': 'matrix'}, ValueError, "got 'matrix'"),
        ({'mask': torch.ones(4)}, TypeError, 'bool'),
        ({'mask': torch.ones(3, dtype=torch.bool)}, ValueError, 'mask must have shape'),
        ({'scores': torch.ones(4, 3, dtype=torch.long)}, TypeError, 'floating'),
        ({'scores': torch.ones(4)}, ValueError, '(..., N, K)'),
        ({'scores': torch.ones(0, 3)}, ValueError, 'N, K >= 1'),
        ({'scores': [[1.0]]}, TypeError, 'torch.Tensor'),
        ({'row_marginals': torch.tensor([0.5, 0.5, 0.5, -0.5])}, ValueError, 'got 1 entries'),
        ({'col_marginals': torch.tensor([0.5, float('nan'), 0.5])}, ValueError, 'finite and non-negative'),
        ({'col_marginals': torch.ones(4)}, ValueError, 'col_marginals must have shape'),
        ({'row_marginals': torch.ones(4), 'col_marginals': torch.ones(3)}, ValueError, 'equal sums, got 4 and 3'),
        ({'row_marginals': torch.ones(4, device='meta')}, ValueError, 'device'),
    ],
)
def test_bad_input(change, error, words):
    options = {'scores': torch.rand(4, 3), 'epsilon': 0.1, 'num_iters': 3} | change
    with pytest.raises(error) as caught:
        sinkhorn(options.pop('scores'), **options)
    assert words in str(caught.value)
