# SPDX-License-Identifier: Apache-2.0
"""sample_sequence: np.interp, grid_sample, shifts, ends, slopes."""

import numpy as np
import pytest
import torch

from clusterplug.functional import sample_sequence


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_equals_numpy_and_grid_sample():
    x, at = randn(2, 3, 9, 4), 10 * torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(1)) - 1
    found = sample_sequence(x, at)
    for a in range(2):
        for b in range(3):
            for c in range(4):
                expected = np.interp(at[a, b].numpy(), np.arange(9), x[a, b, :, c].numpy())
                np.testing.assert_allclose(found[a, b, :, c].numpy(), expected, rtol=0, atol=1e-6)
    flat, places = x.flatten(0, 1).mT[:, :, None], at.flatten(0, 1).clamp(0, 8)
    grid = torch.stack([places / 4 - 1, torch.zeros_like(places)], -1)[:, None]
    expected = torch.nn.functional.grid_sample(flat, grid, align_corners=True)[:, :, 0].mT
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=0, atol=2e-6)


def test_own_positions_integers_and_ends():
    x = randn(1, 8, 3)
    own = torch.arange(8.0)[None]
    assert torch.equal(sample_sequence(x, own), x)
    shifted = sample_sequence(x, own + 2)
    assert torch.equal(shifted, x[:, [2, 3, 4, 5, 6, 7, 7, 7]])
    assert torch.equal(sample_sequence(x, own - 100), x[:, :1].expand(-1, 8, -1))
    one = sample_sequence(x[:, :1], own)
    assert torch.equal(one, x[:, :1].expand(-1, 8, -1))
    # what the package of the authors' code returns here is 1.75, 2.25, ..., 1.75
    assert sample_sequence(torch.arange(8.0).view(1, 8, 1), own).flatten().tolist() == list(range(8))


def test_gradients():
    x, at = randn(2, 6, 3, dtype=torch.float64).requires_grad_(), 4.6 * torch.rand(2, 5, dtype=torch.float64) + 0.2
    assert torch.autograd.gradcheck(sample_sequence, (x, at.requires_grad_()))
    whole = torch.tensor([[2.0]], requires_grad=True)
    ramp = torch.arange(6.0).square().view(1, 6, 1)
    (slope,) = torch.autograd.grad(sample_sequence(ramp, whole).sum(), whole)
    assert slope == 5  # 9 - 4
    outside = torch.tensor([[-1.0, 9.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(sample_sequence(ramp, outside).sum(), outside)
    assert slope.eq(0).all()


def test_odd_values_and_bad_input():
    x = randn(1, 5, 2)
    found = sample_sequence(x, torch.tensor([[float('nan'), 1.5, float('inf')]]))
    assert found.isnan().any(-1).tolist() == [[True, False, False]]
    assert torch.equal(found[0, 2], x[0, 4])
    assert sample_sequence(x, torch.zeros(1, 0)).shape == (1, 0, 2)
    assert sample_sequence(x.half(), torch.zeros(1, 3)).dtype == torch.float16
    for bad, match in ((torch.zeros(2, 3), 'positions must have shape'), (torch.zeros(3), 'positions must have shape')):
        with pytest.raises(ValueError, match=match):
            sample_sequence(x, bad)
    with pytest.raises(TypeError, match='positions must be a floating'):
        sample_sequence(x, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match='at least one point'):
        sample_sequence(x[:, :0], torch.zeros(1, 3))
