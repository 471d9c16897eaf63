# SPDX-License-Identifier: Apache-2.0
"""DiffusersDenoiser: all kinds of prediction, levels to steps, and a real UNet2DModel through Jacobians and edits."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from clusterplug.analysis import edit_sample, latent_directions, run_sampler, vp_levels
from clusterplug.functional import jacobian_svd
from clusterplug.losses import DenoisingLoss
from clusterplug.pretraining import DiffusersDenoiser


def scheduler(kind='epsilon', steps=1000):
    betas = torch.linspace(1e-4, 0.02, steps)
    return SimpleNamespace(alphas_cumprod=(1 - betas).cumprod(0), config=SimpleNamespace(prediction_type=kind))


class Exact(nn.Module):
    """What the best network predicts where all images are one constant, and the steps that it was asked for."""

    def __init__(self, kind, levels, clean=0.7):
        super().__init__()
        self.kind, self.levels, self.clean, self.seen = kind, levels, clean, []

    def forward(self, x, t):
        self.seen.append(t)
        signal = self.levels[t.round().long()].sqrt().view(-1, 1, 1, 1)
        noise = (1 - signal.square()).sqrt()
        epsilon = (x - signal * self.clean) / noise
        clean = torch.full_like(x, self.clean)
        return SimpleNamespace(
            sample={'epsilon': epsilon, 'sample': clean, 'v_prediction': signal * epsilon - noise * clean}[self.kind]
        )


class Wide(nn.Module):
    def forward(self, x, t):
        return SimpleNamespace(sample=torch.cat([x, x], 1))


@pytest.mark.parametrize('kind', ['epsilon', 'sample', 'v_prediction'])
def test_clean_images_at_the_levels_of_the_scheduler(kind):
    plan = scheduler(kind)
    denoiser = DiffusersDenoiser(Exact(kind, plan.alphas_cumprod), plan)
    steps = torch.tensor([0, 1, 400, 999])
    signal = plan.alphas_cumprod[steps].sqrt()
    noise = (1 - signal.square()).sqrt()
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 5.0):  # of signal and noise alike: another unit, the same step
        found = denoiser(scale * x, scale * signal, scale * noise)
        torch.testing.assert_close(found, torch.full_like(x, 0.7), rtol=0, atol=2e-3)
        torch.testing.assert_close(denoiser.unet.seen[-1], steps.float(), rtol=0, atol=2e-2)
    between = denoiser.timesteps(*(each[2:3] for each in (signal, noise * 1.001)))
    assert 400 < float(between) < 401
    ends = denoiser.timesteps(torch.tensor([1.0, 0.0]), torch.tensor([1e-9, 1.0]))
    assert ends.tolist() == [0.0, 999.0]


def test_bad_input():
    with pytest.raises(ValueError, match='alphas_cumprod'):
        DiffusersDenoiser(nn.Identity(), SimpleNamespace(sigmas=1))
    with pytest.raises(ValueError, match="got 'flow'"):
        DiffusersDenoiser(nn.Identity(), scheduler('flow'))
    wide = DiffusersDenoiser(Wide(), scheduler())
    with pytest.raises(ValueError, match='variances'):
        wide(torch.zeros(1, 1, 2, 2), torch.ones(1), torch.ones(1))


@pytest.mark.slow
def test_a_unet_of_diffusers(tmp_path):
    diffusers = pytest.importorskip('diffusers', reason='needs diffusers')
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
    ).eval()  # fmt: skip
    plan = diffusers.DDPMScheduler()
    denoiser = DiffusersDenoiser(unet, plan)
    # the clean image that their own scheduler makes of the same prediction
    x, t = torch.randn(1, 1, 8, 8), 300
    signal = plan.alphas_cumprod[t : t + 1].sqrt()
    noise = (1 - signal.square()).sqrt()
    with torch.no_grad():
        theirs = diffusers.DDPMScheduler(clip_sample=False).step(unet(x, t).sample, t, x).pred_original_sample
        torch.testing.assert_close(denoiser(x, signal, noise), theirs, rtol=1e-3, atol=1e-3)
    denoiser.requires_grad_(False)

    def fn(x):
        return denoiser(x[None], signal, noise)[0]

    found = jacobian_svd(fn, x[0], 3, method='power', num_iters=30)
    full = jacobian_svd(fn, x[0], 3, method='full')
    torch.testing.assert_close(found.s, full.s, rtol=1e-3, atol=0)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    local = latent_directions(fn, x[0], 2, mask=mask, null_rank=5)
    levels = vp_levels(6)
    edited = edit_sample(denoiser, x[0], local.directions[0], [0.0, 1.0], levels)
    assert edited.shape == (2, 1, 8, 8)
    assert edited.isfinite().all()
    assert (run_sampler(denoiser, x, levels) - edited[:1]).abs().max() < 1e-4
    denoiser.requires_grad_(True)
    DenoisingLoss()(denoiser, x).backward()
    assert all(weight.grad is not None for weight in unet.parameters())
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / 'pipeline')
    again = DiffusersDenoiser(str(tmp_path / 'pipeline')).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x, signal, noise), denoiser(x, signal, noise), rtol=1e-4, atol=1e-4)
