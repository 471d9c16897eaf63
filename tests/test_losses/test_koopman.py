# SPDX-License-Identifier: Apache-2.0
"""temporal_contrast, linear_dynamics, KoopmanLoss: loops, limits, signs, operators, bad input."""

import math

import pytest
import torch

from clusterplug.functional import linear_dynamics, spectral_entropy, temporal_contrast
from clusterplug.losses import KoopmanLoss


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loop(z, k, temperature):
    losses = []
    for sequence in z:
        unit = sequence / sequence.norm(dim=1, keepdim=True)
        for t in range(k, len(sequence) - k):
            scores = [math.exp(float(unit[t] @ unit[s]) / temperature) for s in range(len(sequence))]
            close = sum(scores[s] for s in range(len(sequence)) if 0 < abs(s - t) <= k)
            losses.append(-math.log(close / (sum(scores) - scores[t])))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(('steps', 'k'), [(3, 1), (16, 3), (9, 4)])
def test_contrast_equals_the_loop(steps, k):
    z = randn(2, steps, 5)
    found = temporal_contrast(z, num_neighbors=k, temperature=0.3)
    assert math.isclose(float(found), loop(z, k, 0.3), rel_tol=1e-12, abs_tol=1e-12)


def test_contrast_of_constant_and_of_odd_sequences():
    constant = temporal_contrast(torch.ones(2, 16, 4), num_neighbors=3, temperature=0.1)
    torch.testing.assert_close(constant, torch.tensor(math.log(15 / 6)))
    z = randn(2, 8, 3, dtype=torch.float32)
    torch.testing.assert_close(
        temporal_contrast(z * 1e30, num_neighbors=2, temperature=0.1),
        temporal_contrast(z, num_neighbors=2, temperature=0.1),
    )
    assert temporal_contrast(torch.zeros(1, 8, 3), num_neighbors=2, temperature=0.1).isfinite()
    z = randn(2, 7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: temporal_contrast(z, num_neighbors=2, temperature=0.5), z)


def test_linear_data_give_their_map_back():
    a = torch.linalg.qr(randn(4, 4)).Q * 0.9
    z = [randn(3, 1, 4)]
    for _ in range(11):
        z.append(z[-1] @ a)
    z = torch.cat(z, 1)
    for ridge in (0.0, 1e-12):
        found = linear_dynamics(z[:, :-1], z[:, 1:], ridge=ridge)
        torch.testing.assert_close(found, a.expand(3, 4, 4), rtol=0, atol=1e-8)
    wide = randn(2, 5, 9)
    eye = torch.eye(9, dtype=torch.float64)
    primal = torch.linalg.solve(wide.mT @ wide + 0.1 * eye, wide.mT @ wide.roll(1, 1))
    torch.testing.assert_close(linear_dynamics(wide, wide.roll(1, 1), ridge=0.1), primal, rtol=0, atol=1e-12)


def test_terms_written_out_and_the_entropy_is_maximized():
    z = randn(3, 12, 4).requires_grad_()
    loss = KoopmanLoss(4, 'learned', num_neighbors=2, temperature=0.2, consistency_weight=3.0, loss_weight=2.0)
    terms = loss(z)
    torch.testing.assert_close(terms['loss_contrast'], 4 * temporal_contrast(z, num_neighbors=2, temperature=0.2))
    torch.testing.assert_close(terms['loss_consistency'], 6 * (z[:, 1:] - z[:, :-1]).square().mean())
    torch.testing.assert_close(terms['loss_entropy'], -0.2 * spectral_entropy(z.flatten(0, 1)))
    step = torch.autograd.grad(terms['loss_entropy'], z)[0]
    assert spectral_entropy((z - step).flatten(0, 1)) > spectral_entropy(z.flatten(0, 1))
    assert set(KoopmanLoss(4, contrast_weight=0.0, entropy_weight=0.0)(z)) == {'loss_consistency'}


def test_operators():
    z = randn(2, 10, 4, dtype=torch.float32)
    fitted = KoopmanLoss(4).dynamics(z)
    expected = linear_dynamics(z[:, :-1], z[:, 1:], ridge=0.1).mean(0)
    torch.testing.assert_close(fitted, expected)
    turning = KoopmanLoss(4, 'orthogonal')
    torch.nn.init.normal_(turning.weight)
    k = turning.dynamics().detach()
    torch.testing.assert_close(k @ k.mT, torch.eye(4))
    turning(z)['loss_consistency'].backward()
    assert turning.weight.grad.abs().sum() > 0
    apart = KoopmanLoss(4, 'learned')(z[:, :-1], z[:, 1:])
    torch.testing.assert_close(apart['loss_consistency'], KoopmanLoss(4, 'learned')(z)['loss_consistency'])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        narrow = KoopmanLoss(4)(z.bfloat16())
    assert all(value.dtype == torch.float32 for value in narrow.values())
    other = KoopmanLoss(4, 'orthogonal')
    other.load_state_dict(turning.state_dict())
    assert torch.equal(other.dynamics(), turning.dynamics())


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda: temporal_contrast(torch.ones(2, 6, 3), num_neighbors=3, temperature=0.1), ValueError, 'more than 2'),
        (lambda: temporal_contrast(torch.ones(2, 6, 3), num_neighbors=1, temperature=0), ValueError, 'temperature'),
        (lambda: linear_dynamics(torch.ones(4, 2), torch.ones(5, 2)), ValueError, 'shape of z'),
        (lambda: linear_dynamics(torch.ones(4, 2), torch.ones(4, 2), ridge=-1.0), ValueError, 'ridge'),
        (lambda: KoopmanLoss(4, 'linear'), ValueError, "'learned'"),
        (lambda: KoopmanLoss(4)(torch.ones(2, 9, 5)), ValueError, r'\(B, T, 4\)'),
        (lambda: KoopmanLoss(4)(torch.ones(2, 9, 4), torch.ones(2, 8, 4)), ValueError, 'shape of latents'),
        (lambda: KoopmanLoss(4).dynamics(), ValueError, 'latents must be given'),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
