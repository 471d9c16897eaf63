# SPDX-License-Identifier: Apache-2.0
"""LowRankDenoiser and DenoisingLoss: frames stay frames, training is PCA, state, levels, bad input."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from clusterplug.datasets import MoLRG
from clusterplug.functional import low_rank_posterior_mean
from clusterplug.layers import LowRankDenoiser
from clusterplug.losses import DenoisingLoss
from clusterplug.registry import MODELS


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('orthogonal', [True, False])
@pytest.mark.parametrize('dims', [[3, 3], [1, 4, 2]])
def test_is_the_posterior_mean_of_its_bases(dims, orthogonal):
    torch.manual_seed(0)
    denoiser = LowRankDenoiser(10, dims, orthogonal=orthogonal, learn_weights=True)
    denoiser.log_weights.data = torch.arange(len(dims)).float()
    x, bases = torch.randn(7, 10), denoiser.bases()
    expected = low_rank_posterior_mean(x, bases, signal=0.7, noise=0.5, log_weights=denoiser.log_weights)
    torch.testing.assert_close(denoiser(x, 0.7, 0.5), expected)
    joined = torch.cat(bases, 1)
    gram = joined.T @ joined
    for basis in bases:
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5) == orthogonal
    again = LowRankDenoiser(10, dims, orthogonal=orthogonal, learn_weights=True)
    again.load_state_dict(denoiser.state_dict())
    assert torch.equal(again(x, 0.7, 0.5), denoiser(x, 0.7, 0.5))


def test_hard_form():
    data = MoLRG(12, [2, 2], 5, noise=0.2, seed=1)
    denoiser = LowRankDenoiser(12, [2, 2], soft=False)
    denoiser.set_bases(data.bases)
    assert torch.equal(denoiser.assign(data.x), data.labels)
    # the clean point decides, however noisy the other is
    noisy = data.x.flip(0)
    got = denoiser(noisy, 0.6, 0.8, clean=data.x)
    own = torch.stack(data.bases)[data.labels]
    torch.testing.assert_close(got, 0.6 * (own @ (own.mT @ noisy[..., None]))[..., 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(denoiser(noisy, 0.6, 0.8), denoiser(noisy, 0.6, 0.8, clean=noisy))


def test_start_at_given_bases():
    data = MoLRG(12, [2, 3], 5, seed=1)
    denoiser = LowRankDenoiser(12, [2, 3])
    denoiser.set_bases(data.bases)
    for got, basis in zip(denoiser.bases(), data.bases):
        torch.testing.assert_close(got @ got.T, basis @ basis.T, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match='bases must be tensors'):
        denoiser.set_bases(data.bases[:1])


def test_training_one_component_is_pca():
    data = MoLRG(16, [3], 40, noise=0.1, seed=2)
    denoiser = LowRankDenoiser(16, [3])
    denoiser.reset_parameters(seeded())
    optimizer, loss = (
        torch.optim.Adam(denoiser.parameters(), lr=0.03),
        DenoisingLoss('vp', max_noise=0.2, antithetic=True),
    )
    generator = seeded(1)
    for step in range(250):
        optimizer.param_groups[0]['lr'] = 0.1 * 0.98**step
        optimizer.zero_grad()
        loss(denoiser, data.x, generator).backward()
        optimizer.step()
    leading = torch.linalg.eigh(data.x.T @ data.x)[1][:, -3:]
    got = denoiser.bases()[0]
    assert (got @ got.T - leading @ leading.T).norm() < 0.05


def test_gradients_and_half_precision():
    denoiser = LowRankDenoiser(6, [2, 2]).double()
    x = torch.randn(3, 6, dtype=torch.float64, generator=seeded())

    def fn(weight, x):
        return torch.func.functional_call(denoiser, {'weight': weight}, (x, 0.7, 0.5))

    assert gradcheck(fn, (torch.randn(6, 4, dtype=torch.float64).requires_grad_(), x.requires_grad_()))
    half = LowRankDenoiser(6, [2, 2]).half()
    assert half.weight.dtype == torch.float32
    assert half(x.half(), 0.7, 0.5).dtype == torch.float16


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        ((6, [4, 4]), {}, 'orthogonal components need'),
        ((6, [7]), dict(orthogonal=False), 'dims must be'),
        ((6, 4), {}, 'dims must hold'),
        ((6, []), {}, 'dims must hold'),
        ((0, [1]), {}, 'in_channels'),
    ],
)
def test_bad_denoisers(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        LowRankDenoiser(*arguments, **options)
    LowRankDenoiser(6, [4, 4], orthogonal=False)


def test_registered():
    pytest.importorskip('mmengine')
    assert isinstance(MODELS.build(dict(type='LowRankDenoiser', in_channels=6, dims=[2, 2])), LowRankDenoiser)
    assert isinstance(MODELS.build(dict(type='DenoisingLoss')), DenoisingLoss)


def test_loss_by_a_loop():
    loss = DenoisingLoss('edm', 'edm', data_std=0.4)
    x = torch.randn(6, 2, 3, generator=seeded())
    found = loss(lambda x, signal, noise: 0.5 * x, x, seeded(3))
    generator = seeded(3)
    signal, noise = loss.levels(6, generator=generator)
    drawn, expected = torch.randn(x.shape, generator=generator), 0.0
    for row in range(6):
        clean = 0.5 * (signal[row] * x[row] + noise[row] * drawn[row])
        weight = (noise[row] ** 2 + 0.16) / (0.4 * noise[row]) ** 2
        expected += weight * ((clean - x[row]) ** 2).sum() / 6
    torch.testing.assert_close(found, expected)


def test_antithetic_noise_sums_to_nothing():
    seen = []
    DenoisingLoss('vp', antithetic=True)(lambda x, s, g: seen.extend([x, s, g]) or x, torch.zeros(5, 4), seeded())
    x, signal, noise = seen
    assert len(x) == 10
    assert torch.equal(x[:5], -x[5:])
    assert torch.equal(signal[:5], signal[5:])
    assert torch.equal(noise[:5], noise[5:])


@pytest.mark.parametrize('schedule', ['vp', 've', 'edm'])
def test_levels(schedule):
    loss = DenoisingLoss(schedule)
    signal, noise = loss.levels(20_000, generator=seeded())
    assert noise.min() >= loss.min_noise - 1e-6
    assert noise.max() <= loss.max_noise + 1e-6
    if schedule == 'vp':
        torch.testing.assert_close(signal.square() + noise.square(), torch.ones(20_000))
        assert float(noise.asin().mean()) == pytest.approx((math.asin(0.02) + math.asin(0.9999)) / 2, abs=0.01)
    else:
        assert (signal == 1).all()
    if schedule == 'edm':
        assert float(noise.log().mean()) == pytest.approx(-1.2, abs=0.03)
    before = torch.get_rng_state()
    loss(lambda x, s, g: x, torch.zeros(3, 4), seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_loss_of_nothing_and_bad_input():
    loss = DenoisingLoss()
    assert loss(lambda x, s, g: x, torch.zeros(0, 4)) == 0
    with torch.autocast('cpu', torch.bfloat16):
        assert loss(lambda x, s, g: x.bfloat16(), torch.ones(3, 4).bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match='denoiser must return'):
        loss(lambda x, s, g: x[:1], torch.zeros(3, 4))
    with pytest.raises(TypeError, match='floating'):
        loss(lambda x, s, g: x, torch.zeros(3, 4).long())
    with pytest.raises(ValueError, match='shape'):
        loss(lambda x, s, g: x, torch.zeros(3))
    for options, message in (
        (dict(schedule='cosine'), 'schedule must be'),
        (dict(weighting='snr'), 'weighting must be'),
        (dict(max_noise=2.0), 'max_noise must be'),
        (dict(min_noise=0), 'min_noise must be'),
        (dict(data_std=0), 'data_std must be'),
    ):
        with pytest.raises(ValueError, match=message):
            DenoisingLoss(**options)
