# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes: attention along them, hidden ones predicted, slices and volumes agree."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mm]')

from clusterplug.layers import InterSliceEncoder
from clusterplug.layers.inter_slice_encoder import DeformableSliceAttention
from clusterplug.losses import IntraInterLoss, SwAVLoss
from clusterplug.pretraining import MaskedSliceModel
from clusterplug.registry import MODELS


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(**options):
    torch.manual_seed(0)
    return InterSliceEncoder(16, **{'depth': 2, 'heads': 4, 'downsample': 2, **options}).eval()


@pytest.mark.parametrize('points', [1, 3])
def test_without_offsets_it_is_attention(points):
    torch.manual_seed(0)
    layer = DeformableSliceAttention(16, 4, points, downsample=1, max_offset=0.0)
    x = randn(2, 7, 16)
    q, k, v = (part(x).unflatten(2, (4, 4)).transpose(1, 2) for part in (layer.query, layer.key, layer.value))
    expected = layer.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_positions_lie_within_the_volume_and_get_gradients():
    torch.manual_seed(0)
    layer = DeformableSliceAttention(16, 4, 2, downsample=2, max_offset=50.0)
    layer.offset.weight.data.mul_(100)
    x = randn(3, 9, 16).requires_grad_()
    at, counts = layer.positions(layer.query(x), torch.tensor([9, 9, 9]))
    assert at.shape == (3, 4, 10)
    assert at.min() == 0
    assert at.max() == 8
    assert counts.all()
    layer.max_offset = 1.0
    layer.offset.weight.data.mul_(0.01)
    layer(x).square().sum().backward()
    assert layer.offset.weight.grad.abs().max() > 0
    assert layer.spread.weight.grad.abs().max() > 0
    still, _ = DeformableSliceAttention(16, 4, 1, 4, 0.0).positions(x, torch.tensor([9, 9, 9]))
    assert still[0, 0].tolist() == [1.5, 5.5, 8.0]


def test_offsets_against_finite_differences():
    torch.manual_seed(1)
    layer = DeformableSliceAttention(4, 2, 1, 2, 1.5).double()
    x = randn(1, 6, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(layer, x, atol=1e-3)


def test_any_number_of_slices():
    encoder = small()
    for slices in (2, 3, 16, 65):
        x = randn(2, slices, 16)
        assert encoder(x).shape == x.shape
        assert encoder.embed(x).norm(dim=1).allclose(torch.ones(2))
    with pytest.raises(ValueError, match='at least downsample = 2 slices, got 1'):
        encoder(randn(2, 1, 16))
    assert encoder(randn(0, 4, 16)).shape == (0, 4, 16)
    assert MODELS.build(dict(type='clusterplug.InterSliceEncoder'))(randn(1, 8, 640)).shape == (1, 8, 640)


@pytest.mark.parametrize('points', [1, 2])
def test_padding_changes_nothing(points):
    encoder = small(points=points, downsample=3)
    lengths = torch.tensor([5, 9, 3, 0])
    x, mask = randn(4, 9, 16), torch.arange(9) < lengths[:, None]
    dirty = x.masked_fill(~mask[..., None], float('nan')).requires_grad_()
    found = encoder(dirty, mask)
    for number, length in enumerate(lengths[:3].tolist()):
        alone = encoder(x[number : number + 1, :length])
        torch.testing.assert_close(found[number, :length], alone[0], rtol=1e-4, atol=1e-5)
    assert found[~mask].eq(0).all()
    (grad,) = torch.autograd.grad(found.square().sum(), dirty)
    assert grad.isfinite().all()
    embedded = encoder.embed(dirty, mask)
    torch.testing.assert_close(embedded[0], encoder.embed(x[:1, :5])[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='behind padding'):
        encoder(x, mask.flip(1))


def test_order_counts():
    encoder, x = small(), randn(2, 8, 16)
    assert not torch.allclose(encoder.embed(x), encoder.embed(x.flip(1)), atol=1e-3)
    with pytest.raises(ValueError, match='channels must be a multiple of heads'):
        InterSliceEncoder(10, heads=4)
    with pytest.raises(ValueError, match=r'x must have shape \(B, S, 16\)'):
        encoder(randn(2, 8, 15))
    with pytest.raises(ValueError, match='kernel_size must be odd'):
        DeformableSliceAttention(8, 2, kernel_size=4)


def test_hidden_slices():
    model = MaskedSliceModel(small(dropout=0.0), mask_ratio=0.1)
    x = randn(5, 64, 16)
    hidden = model.draw(x)
    assert hidden.sum(1).tolist() == [math.ceil(6.4)] * 5
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden, model.draw(x))
    mask = torch.arange(64) < torch.tensor([64, 10, 11, 2, 30])[:, None]
    counts = model.draw(x, mask)
    assert counts.sum(1).tolist() == [7, 1, 2, 1, 3]
    assert not (counts & ~mask).any()
    generator = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(model.draw(x, generator=generator[0]), model.draw(x, generator=generator[1]))


def test_the_prediction_sees_nothing_of_a_hidden_slice():
    model = MaskedSliceModel(small(dropout=0.0), mask_ratio=0.25)
    x = randn(2, 8, 16)
    hidden = model.draw(x)
    other = torch.where(hidden[..., None], randn(2, 8, 16, seed=9) * 50, x)
    assert torch.equal(model.predict(x, hidden), model.predict(other, hidden))


def test_loss_by_hand_and_gradients():
    class Same(nn.Module):
        channels = 3

        def forward(self, x):
            return x

    model = MaskedSliceModel(Same(), 0.5)
    with torch.no_grad():
        model.decoder.weight.copy_(torch.eye(3))
        model.decoder.bias.zero_()
        model.token.fill_(1.0)
    x = torch.zeros(2, 4, 3, requires_grad=True)
    loss = model(x)
    assert loss == 1  # the token is predicted, 1 away from 0 in every channel
    assert torch.autograd.grad(loss, x)[0].eq(0).all()  # no gradient by way of targets, none by what is visible
    targets = randn(2, 4, 3).requires_grad_()
    loss = model(x, targets=targets, generator=torch.Generator().manual_seed(0))
    hidden = model.draw(x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, (1 - targets[hidden]).square().mean())
    loss.backward()
    assert targets.grad is None
    assert model.token.grad.abs().max() > 0
    assert MaskedSliceModel(Same(), 0.5, 'cosine')(x.detach() + 1).item() == pytest.approx(1, abs=1)


def test_nothing_hidden_everything_hidden_no_volumes():
    encoder = small(dropout=0.0)
    with pytest.warns(UserWarning, match='mask_ratio is 0'):
        assert MaskedSliceModel(encoder, 0.0)(randn(2, 8, 16)).item() == 0
    with pytest.raises(ValueError, match='mask_ratio must leave a slice'):
        MaskedSliceModel(encoder, 0.9)(randn(2, 4, 16))
    assert MaskedSliceModel(encoder, 0.5)(randn(0, 8, 16)).item() == 0
    with pytest.raises(ValueError, match='mask_ratio must be below 1'):
        MaskedSliceModel(encoder, 1.0)
    with pytest.raises(TypeError, match='attribute channels'):
        MaskedSliceModel(nn.Linear(3, 3))
    with pytest.raises(ValueError, match='targets must have the shape'):
        MaskedSliceModel(encoder, 0.5)(randn(2, 8, 16), targets=randn(2, 8, 15))
    low = MaskedSliceModel(encoder, 0.25).bfloat16()(randn(2, 8, 16).bfloat16())
    assert low.dtype == torch.bfloat16
    assert low.isfinite()


def test_joint_loss():
    slices, volumes = [randn(6, 3, 4, seed=s) for s in range(2)], [randn(6, 5, seed=s + 5) for s in range(2)]
    loss = IntraInterLoss(intra_weight=0.5, inter_weight=2.0, mask_weight=3.0)
    found = loss(slices, volumes, torch.tensor(7.0))
    swav = SwAVLoss()
    torch.testing.assert_close(found['loss_intra'], 0.5 * swav([s.flatten(0, 1) for s in slices]))
    torch.testing.assert_close(found['loss_inter'], 2 * swav(volumes))
    assert found['loss_mask'] == 21
    # one slice a volume and no mask term: SwAV of the slices
    single = IntraInterLoss(inter_weight=0.0, mask_weight=0.0)([s[:, :1] for s in slices])
    assert list(single) == ['loss_intra']
    torch.testing.assert_close(single['loss_intra'], swav([s[:, 0] for s in slices]))
    mask = torch.arange(3) < torch.tensor([3, 2, 1, 3, 3, 2])[:, None]
    masked = IntraInterLoss(inter_weight=0.0, mask_weight=0.0)(
        [s.masked_fill(~mask[..., None], float('nan')) for s in slices], mask=mask
    )
    torch.testing.assert_close(masked['loss_intra'], swav([s[mask] for s in slices]))
    with pytest.raises(ValueError, match='mask has a weight and no input; give it, or set mask_weight'):
        loss(slices, volumes)
    with pytest.raises(ValueError, match='must not all be 0'):
        IntraInterLoss(intra_weight=0, inter_weight=0, mask_weight=0)
    with pytest.raises(ValueError, match='slice_scores must be tensors'):
        loss([slices[0], volumes[0]], volumes, torch.tensor(1.0))


def trajectories(number, seed):
    """Five classes of smooth curves (16 slices, 32 numbers each), random phase and speed, noise of 0.3."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(99)) / math.sqrt(2)
    y = torch.arange(number) % 5
    phase = 2 * math.pi * torch.rand(number, 1, generator=generator)
    speed = 0.5 + 0.4 * torch.rand(number, 1, generator=generator)
    angle = phase + speed * torch.arange(16)
    clean = torch.stack([angle.sin(), angle.cos()], -1) @ basis[y]
    return clean + 0.3 * torch.randn(clean.shape, generator=generator), y


@pytest.mark.slow
def test_it_learns_what_is_hidden():
    torch.manual_seed(0)
    x, y = trajectories(600, 0)
    x_test, y_test = trajectories(200, 1)
    encoder = InterSliceEncoder(32, depth=2, heads=4, points=1, downsample=2, ffn_channels=64, dropout=0.0)
    model = MaskedSliceModel(encoder, mask_ratio=2 / 16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    for _ in range(60):
        for rows in torch.randperm(600).split(60):
            loss = model(x[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        error = sum(model(x_test).item() for _ in range(5)) / 5
        hidden = model.draw(x_test)
        near = F.pad(x_test.mT, (1, 1), mode='replicate').mT
        average = ((near[:, :-2] + near[:, 2:]) / 2 - x_test)[hidden].square().mean().item()
        zero = x_test[hidden].square().mean().item()
        z, z_test = model.encoder(x).mean(1), model.encoder(x_test).mean(1)
    linear = pytest.importorskip('sklearn.linear_model').LogisticRegression(max_iter=2000)
    probe = linear.fit(z.numpy(), y.numpy()).score(z_test.numpy(), y_test.numpy())
    raw = linear.fit(x.mean(1).numpy(), y.numpy()).score(x_test.mean(1).numpy(), y_test.numpy())
    assert error <= 0.12 < average < zero
    assert probe >= 0.95 > raw
