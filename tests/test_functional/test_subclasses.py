# SPDX-License-Identifier: Apache-2.0
"""assign_subclasses: the paper's kernel in float64, marginals, permutation, limits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from clusterplug.functional.transport import assign_subclasses
from clusterplug.functional.transport._alternate_log_softmax import alternate_log_softmax


def _unit(generator, *shape):
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def _mixture(seed, num_points, num_centers, dims=16, noise=0.15):
    """Points around means, and centers near the means: Sinkhorn has something to balance."""
    g = torch.Generator().manual_seed(seed)
    means = _unit(g, num_centers, dims)
    x = F.normalize(means[torch.randint(0, num_centers, (num_points,), generator=g)]
                    + noise * torch.randn(num_points, dims, generator=g), dim=-1)  # fmt: skip
    return x, F.normalize(means + 0.1 * torch.randn(num_centers, dims, generator=g), dim=-1)


def _pad(x, centers, slots=None, rows=None):
    """One class with the empty last slot and the unused last center; what is empty holds other unit vectors."""
    slots, rows = slots or len(x) + 1, rows or len(centers) + 1
    g = torch.Generator().manual_seed(99)
    padded, padded_centers = _unit(g, slots, x.shape[1]), _unit(g, rows, x.shape[1])
    padded[: len(x)], padded_centers[: len(centers)] = x, centers
    return padded, padded_centers, torch.arange(slots) < len(x), torch.tensor(len(centers))


def _assign(x, centers, **options):
    px, pc, valid, active = _pad(x, centers)
    ids, left_out, closest = assign_subclasses(
        px[None], pc[None], valid=valid[None], num_active=active[None], **options
    )
    assert left_out[0].tolist() == [False] * len(x) + [True]
    assert ids[0, -1] == len(centers)
    return ids[0, :-1], closest[0, :-1]


def _sinkhorn_of_softmax_to_the_power(x, centers, power=25, num_iters=200):
    """The paper's form: softmax over the centers, raised to a power, in float64, then scaled to uniform marginals."""
    kernel = torch.softmax(x.double() @ centers.double().T, 1) ** power
    n, k = kernel.shape
    v = torch.full((n,), 1 / n, dtype=torch.float64)
    for _ in range(num_iters):
        u = 1 / k / (kernel.T @ v)
        v = 1 / n / (kernel @ u)
    return v[:, None] * kernel * u


@pytest.mark.parametrize(('num_points', 'num_centers'), [(20, 10), (80, 40), (200, 10), (500, 40)])
@pytest.mark.parametrize('seed', range(3))
def test_kernel_identity(seed, num_points, num_centers):
    """softmax to the power 25 has the labels of exp(25 cos): the normaliser of a point is absorbed by its scaling."""
    x, centers = _mixture(seed, num_points, num_centers)
    expected = _sinkhorn_of_softmax_to_the_power(x, centers)
    ids, _ = _assign(x, centers, epsilon=0.04, num_iters=200)
    # where fp32 and float64 differ, the two best entries of the plan must be equal to 1e-4
    top = expected.topk(2, dim=1)
    gap = 1 - top.values[:, 1] / top.values[:, 0]
    assert (gap[ids != top.indices[:, 0]] < 1e-4).all()
    assert (ids != top.indices[:, 0]).sum() <= 1


def _tight(seed, num_points, num_centers, noise):
    """Rows around six modes of unequal weight, and centers among them: what the loss makes of embeddings."""
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04]), num_points, True, generator=g)
    x = F.normalize(_unit(g, 6, 64)[which] + noise * torch.randn(num_points, 64, generator=g), dim=1)
    chosen = x[torch.randint(0, num_points, (num_centers,), generator=g)]
    return x, F.normalize(chosen + 0.02 * torch.randn(num_centers, 64, generator=g), dim=1)


@pytest.mark.parametrize(
    ('num_points', 'num_centers', 'noise'),
    [(400, 40, 0.05), (400, 40, 0.02), (80, 40, 0.1), (20, 40, 0.05), (5, 8, 0.05), (128, 8, 0.05), (1000, 10, 0.02)],
)
def test_default_gives_the_labels_of_the_limit_on_tight_rows(num_points, num_centers, noise):
    for seed in range(3):
        x, centers = _tight(seed, num_points, num_centers, noise)
        scores = x.double() @ centers.double().T / 0.04
        limit = alternate_log_softmax(scores, 4000).argmax(1)
        assert (_assign(x, centers)[0] == limit).float().mean() >= 0.99


def test_fewer_points_than_centers_are_spread_out():
    """Points around one direction, all nearest to the same center: transport gives them several."""
    g = torch.Generator().manual_seed(1)
    for number in (2, 5, 7):
        x, centers = F.normalize(_unit(g, 1, 16) + 0.05 * _unit(g, number, 16), dim=1), _unit(g, 8, 16)
        assert len((x @ centers.T).argmax(1).unique()) == 1
        assert len(_assign(x, centers)[0].unique()) > number / 2


def test_one_point_goes_where_few_were_before():
    x, centers = torch.eye(4)[:1], F.normalize(torch.eye(4)[:1] + 0.1 * torch.eye(4)[1:], dim=1)
    px, pc, valid, active = _pad(x, centers)
    options = dict(valid=valid[None], num_active=active[None])
    for sizes, expected in (([1.0, 9.0, 9.0], 0), ([9.0, 1.0, 9.0], 1), ([9.0, 9.0, 0.0], 2)):
        sizes = torch.tensor([[*sizes, 0.0]])
        ids, *_ = assign_subclasses(px[None], pc[None], sizes=sizes, **options)
        assert ids[0, 0] == expected
    # a center that is much nearer wins against a moderate difference
    near = torch.eye(4)[:2]
    px, pc, valid, active = _pad(x, near)
    ids, *_ = assign_subclasses(
        px[None], pc[None], valid=valid[None], num_active=active[None], sizes=torch.tensor([[9.0, 1.0, 0.0]])
    )
    assert ids[0, 0] == 0


@pytest.mark.parametrize(('num_points', 'num_centers'), [(200, 10), (50, 7)])
def test_marginals(num_points, num_centers):
    g = torch.Generator().manual_seed(0)
    x, centers = _unit(g, num_points, 16), _unit(g, num_centers, 16)
    plan = alternate_log_softmax(x @ centers.T / 0.04, 50).exp() / num_points
    torch.testing.assert_close(plan.sum(1), torch.full((num_points,), 1 / num_points), rtol=1e-5, atol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((num_centers,), 1 / num_centers), rtol=1e-4, atol=0)
    sizes = torch.bincount(plan.argmax(1), minlength=num_centers)
    nearest = torch.bincount((x @ centers.T).argmax(1), minlength=num_centers)
    assert (sizes - num_points / num_centers).abs().max() <= 0.3 * num_points / num_centers
    assert sizes.max() - sizes.min() < nearest.max() - nearest.min()


def test_argmax_sizes_are_balanced_for_200_points_and_10_centers():
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        ids, _ = _assign(_unit(g, 200, 32), _unit(g, 10, 32), num_iters=50)
        sizes = torch.bincount(ids, minlength=10)
        assert sizes.min() >= 16
        assert sizes.max() <= 24


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num_points=st.integers(1, 60), num_centers=st.integers(1, 9))
def test_permutation(seed, num_points, num_centers):
    x, centers = _mixture(seed, num_points, num_centers)
    g = torch.Generator().manual_seed(seed)
    points, order = torch.randperm(num_points, generator=g), torch.randperm(num_centers, generator=g)
    for options in ({}, {'num_iters': 20}):
        ids, closest = _assign(x, centers, **options)
        moved, moved_closest = _assign(x[points], centers[order], **options)
        differs = order[moved] != ids[points]
        # sums in another order may tip a tie
        assert differs.sum() <= 0.05 * num_points + 1
        torch.testing.assert_close(moved_closest, closest[points])


def test_a_constant_added_to_the_scores_of_a_point_changes_nothing():
    x, centers = _mixture(3, 100, 8)
    scores = x @ centers.T / 0.04
    shift = torch.linspace(-50, 50, 100)[:, None]
    limit, shifted = (
        alternate_log_softmax(scores.double(), 2000),
        alternate_log_softmax((scores + shift).double(), 2000),
    )
    torch.testing.assert_close(shifted, limit, rtol=1e-6, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(1, 5), slots=st.integers(2, 30), rows=st.integers(2, 6))
def test_batch_of_uneven_classes_equals_one_class_at_a_time(seed, num_classes, slots, rows):
    g = torch.Generator().manual_seed(seed)
    x, centers = _unit(g, num_classes, slots, 8), _unit(g, num_classes, rows, 8)
    valid = torch.rand(num_classes, slots, generator=g) < 0.7
    valid[:, -1] = False
    active = torch.randint(0, rows, (num_classes,), generator=g)
    ids, left_out, closest = assign_subclasses(x, centers, valid=valid, num_active=active)
    for c in range(num_classes):
        if active[c] == 0 or not valid[c].any():
            assert (ids[c] == rows - 1).all()
            assert left_out[c].all()
            assert (closest[c][valid[c]] < -1e5).all()
            continue
        expected, expected_closest = _assign(x[c][valid[c]], centers[c, : active[c]])
        assert torch.equal(left_out[c], ~valid[c])
        assert (ids[c][~valid[c]] == rows - 1).all()
        assert (ids[c][valid[c]] != expected).sum() <= 1
        torch.testing.assert_close(closest[c][valid[c]], expected_closest)


def test_number_of_centers_is_that_of_the_class_in_the_row_marginal():
    """The authors' 1/40 for classes of 10 clusters makes every label 0."""
    x, centers = _mixture(5, 100, 10)
    px, pc, valid, active = _pad(x, centers, rows=41)
    ids, *_ = assign_subclasses(px[None], pc[None], valid=valid[None], num_active=active[None])
    sizes = torch.bincount(ids[0, :-1], minlength=41)
    assert sizes[:10].min() >= 6
    assert sizes[10:].sum() == 0


@pytest.mark.parametrize('epsilon', [1e-3, 0.04, 1e4])
def test_extreme_epsilon_stays_finite(epsilon):
    x, centers = _mixture(6, 60, 5)
    ids, closest = _assign(x, centers, epsilon=epsilon)
    assert torch.isfinite(closest).all()
    assert ids.min() >= 0
    assert ids.max() < 5


def test_duplicates_and_equal_centers_are_shared_out():
    x = torch.eye(4)[:1].repeat(40, 1)
    ids, _ = _assign(x, torch.eye(4)[:1].repeat(3, 1))
    assert set(ids.tolist()) <= {0, 1, 2}


def test_relaxed_columns_equal_a_plain_unbalanced_scaling():
    x, centers = _mixture(8, 50, 6)
    kernel, power = (x.double() @ centers.double().T / 0.04).exp(), 0.6
    v = torch.ones(6, dtype=torch.float64)
    u = 1 / (kernel @ v)
    for _ in range(30):
        v = (1 / (kernel.T @ u)) ** power
        u = 1 / (kernel @ v)
    expected = u[:, None] * kernel * v
    plan = alternate_log_softmax((x @ centers.T / 0.04), 30, col_power=power).exp()
    torch.testing.assert_close(plan.double(), expected, rtol=1e-3, atol=1e-6)
