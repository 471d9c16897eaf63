# SPDX-License-Identifier: Apache-2.0
"""Local CKA in closed form against its definition, and the null of CKA."""

import pytest
import torch

from clusterplug.functional import cka_null, linear_cka, local_cka_scores


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_definition(a, b, x, y):
    """Append each pair to the anchors and compute CKA of centered Gram matrices."""
    found = torch.zeros(len(x), len(y), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(y)):
            u, v = torch.cat([a, x[i : i + 1]]), torch.cat([b, y[j : j + 1]])
            center = torch.eye(len(u), dtype=torch.float64) - 1 / len(u)
            k, g = center @ u @ u.T @ center, center @ v @ v.T @ center
            found[i, j] = (k * g).sum() / ((k * k).sum() * (g * g).sum()).sqrt()
    return found


def test_closed_form_equals_append_and_recompute():
    """Check 4 of the method."""
    a, b, x, y = randn(40, 5) + 2, randn(40, 7, seed=1) - 1, randn(6, 5, seed=2), randn(4, 7, seed=3)
    b[:, :5] += a
    expected = by_definition(a, b, x, y)
    torch.testing.assert_close(local_cka_scores(a, b, x, y), expected, rtol=0, atol=1e-13)
    batch = local_cka_scores(*(torch.stack([each, each]) for each in (a, b, x, y)))
    torch.testing.assert_close(batch[1], expected, rtol=0, atol=1e-13)
    u, v = torch.cat([a, x[:1]]), torch.cat([b, y[1:2]])
    torch.testing.assert_close(expected[0, 1], linear_cka(u, v, biased=True))


def test_precision_of_narrow_input_shift_and_unit():
    a, b, x, y = randn(30, 4), randn(30, 3, seed=1), randn(5, 4, seed=2), randn(5, 3, seed=3)
    plain = local_cka_scores(a, b, x, y)
    assert local_cka_scores(*(each.half() for each in (a, b, x, y))).dtype == torch.float64
    moved = local_cka_scores(1e100 * (a + 5), b - 3, 1e100 * (x + 5), y - 3)
    torch.testing.assert_close(moved, plain, rtol=1e-12, atol=0)


def test_thirty_thousand_anchors():
    a, b = randn(30000, 50, dtype=torch.float32), randn(30000, 50, seed=1, dtype=torch.float32)
    x, y = randn(500, 50, seed=2, dtype=torch.float32), randn(500, 50, seed=3, dtype=torch.float32)
    scores = local_cka_scores(a, b, x, y)
    assert scores.shape == (500, 500)
    for i, j in ((0, 0), (499, 7)):
        both = torch.cat([a, x[i : i + 1]]).double(), torch.cat([b, y[j : j + 1]]).double()
        torch.testing.assert_close(scores[i, j], linear_cka(*both, biased=True).double(), rtol=1e-9, atol=0)


def test_no_queries():
    assert local_cka_scores(randn(9, 3), randn(9, 2), randn(0, 3), randn(4, 2)).shape == (0, 4)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'b': randn(9, 2)}, 'partners of x_anchor'),
        ({'x': randn(5, 4)}, "x must have shape ('queries', 3)"),
        ({'a': torch.ones(10, 3)}, 'x_anchor must vary'),
        ({'y': torch.full((4, 2), torch.nan)}, 'y must be finite'),
        ({'a': randn(1, 3), 'b': randn(1, 2)}, 'at least 2 anchors'),
    ],
)
def test_bad_input(change, words):
    given = {'a': randn(10, 3), 'b': randn(10, 2), 'x': randn(5, 3), 'y': randn(4, 2)} | change
    with pytest.raises(ValueError) as caught:
        local_cka_scores(*given.values())
    assert words in str(caught.value)


def test_null_is_around_zero_and_below_a_relation():
    """Shuffled samples: the mean of the unbiased form is within .02 of 0; the biased form is far above."""
    x = randn(64, 16)
    y = x + randn(64, 16, seed=1)
    null = cka_null(x, y, 60, generator=torch.Generator().manual_seed(0))
    assert null.shape == (60,)
    assert null.dtype == torch.float64
    assert abs(float(null.mean())) < 0.02
    assert float(null.max()) < float(linear_cka(x, y)) / 2
    assert float(cka_null(x, y, 20, biased=True, generator=torch.Generator().manual_seed(0)).min()) > 0.1
    again = cka_null(x, y, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(null, again)
    shuffled = x[torch.randperm(64, generator=torch.Generator().manual_seed(3))]
    assert abs(float(linear_cka(shuffled, y))) < 0.2


def test_null_of_constant_features_and_batches():
    with pytest.warns(UserWarning, match='no variation'):
        assert cka_null(torch.ones(8, 2), randn(8, 2), 3).isnan().all()
    with pytest.raises(ValueError, match='one pair of features at a time'):
        cka_null(randn(2, 8, 2), randn(2, 8, 2))
