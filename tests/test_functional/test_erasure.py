# SPDX-License-Identifier: Apache-2.0
"""erase_directions: hand-computed, plain loop, dependent directions, gradients, bad input."""

import pytest
import torch

from clusterplug.functional import erase_directions


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram_schmidt(x, directions):
    """Plain loop: one orthonormal direction after the other."""
    frame = []
    for direction in directions:
        for unit in frame:
            direction = direction - (direction @ unit) * unit
        if direction.norm() > 1e-9:
            frame.append(direction / direction.norm())
    rows = []
    for row in x:
        for unit in frame:
            row = row - (row @ unit) * unit
        rows.append(row)
    return torch.stack(rows)


def test_by_hand():
    # the span of (2, 0, 0) and (1, 1, 0) is the x-y plane; (1, 1, 0) / sqrt 2 alone takes the mean of x and y
    x = torch.tensor([[3.0, 4.0, 5.0], [1.0, -1.0, 0.0]])
    torch.testing.assert_close(
        erase_directions(x, torch.tensor([[2.0, 0, 0], [1, 1, 0]])), torch.tensor([[0.0, 0, 5], [0, 0, 0]])
    )
    torch.testing.assert_close(
        erase_directions(x, torch.tensor([1.0, 1.0, 0.0])), torch.tensor([[-0.5, 0.5, 5.0], [1.0, -1.0, 0.0]])
    )


@pytest.mark.parametrize('count', [1, 2, 5, 9])
def test_equals_gram_schmidt(count):
    x, directions = randn(20, 9), randn(count, 9, seed=1)
    torch.testing.assert_close(erase_directions(x, directions), gram_schmidt(x, directions), rtol=0, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_projector_and_dtypes(dtype):
    x, directions = randn(2, 30, 16), randn(2, 3, 16, seed=1)
    ours = erase_directions(x.to(dtype), directions)
    assert ours.dtype == dtype
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    expected = torch.stack([gram_schmidt(a, b) for a, b in zip(x, directions)])
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=tolerance)
    once = erase_directions(x, directions)
    torch.testing.assert_close(erase_directions(once, directions), once)
    assert (once @ directions.mT).abs().max() < 1e-13
    matrix = erase_directions(torch.eye(16, dtype=torch.float64), directions[0])
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, matrix)
    assert torch.linalg.matrix_rank(matrix) == 13


def test_repeated_zero_tiny_and_huge_directions_span_the_same():
    x, directions = randn(10, 8, dtype=torch.float32), randn(2, 8, seed=1, dtype=torch.float32)
    expected = erase_directions(x, directions)
    many = torch.cat([directions * 1e30, directions[:1] * 1e-30, torch.zeros(1, 8), directions.sum(0, keepdim=True)])
    torch.testing.assert_close(erase_directions(x, many), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(erase_directions(x, torch.zeros(2, 8)), x)
    torch.testing.assert_close(erase_directions(x, x.new_zeros(0, 8)), x)
    assert erase_directions(x[:0], directions).shape == (0, 8)


def test_a_bad_row_stays_alone_and_directions_are_shared():
    x, directions = randn(3, 10, 8, dtype=torch.float32), randn(2, 8, seed=1, dtype=torch.float32)
    expected = erase_directions(x, directions)
    x[1, 4] = torch.nan
    ours = erase_directions(x, directions)
    assert ours[1, 4].isnan().all()
    ours[1, 4], expected[1, 4] = 0, 0
    torch.testing.assert_close(ours, expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(erase_directions(x[0], directions), expected[0])


def test_gradients():
    x, directions = randn(4, 6).requires_grad_(), randn(2, 6, seed=1)
    directions = torch.linalg.qr(directions.T)[0].T.contiguous().requires_grad_()  # equal singular values
    assert torch.autograd.gradcheck(erase_directions, (x, directions))


def test_bad_input():
    x = randn(4, 6)
    with pytest.raises(TypeError, match='directions must be a floating tensor'):
        erase_directions(x, torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r'directions must have shape \(\.\.\., R, 6\)'):
        erase_directions(x, randn(2, 5))
    with pytest.raises(ValueError, match='directions must be finite'):
        erase_directions(x, torch.full((1, 6), torch.nan))
    with pytest.raises(TypeError, match='x must have a floating dtype'):
        erase_directions(torch.ones(4, 6, dtype=torch.int64), randn(2, 6))
