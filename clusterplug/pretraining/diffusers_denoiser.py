# SPDX-License-Identifier: Apache-2.0
"""A U-Net of diffusers as a denoiser of clusterplug: for Jacobians, edits and training."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.registry import MODELS

__all__ = ['DiffusersDenoiser']

_PREDICTIONS = ('epsilon', 'sample', 'v_prediction')


@MODELS.register_module()
class DiffusersDenoiser(nn.Module):
    r"""Clean images from noisy ones by a ``UNet2DModel`` of diffusers, at any signal and noise.

    .. math:: f(x, s, g) = \hat x_0\left(\frac{x}{\sqrt{s^2 + g^2}}, t\right), \qquad
              \bar\alpha_t = \frac{s^2}{s^2 + g^2}

    with t found between the steps of the scheduler by linear interpolation of the log-signal-to-noise ratio; levels
    outside of them take the first or last step. It is what :func:`~clusterplug.functional.jacobian_svd`,
    :func:`~clusterplug.analysis.latent_directions`, ``edit_sample``, ``run_sampler`` and
    :class:`~clusterplug.losses.DenoisingLoss` expect, and ``denoiser`` of a
    :class:`~clusterplug.pretraining.DenoisingModel`, so that ``tools/latent_directions.py`` draws its directions.

    Args:
        unet: The network, called as ``unet(x, t).sample``; or the folder or Hub name of a pipeline with the parts
            ``unet`` and ``scheduler``, which needs diffusers.
        scheduler: Its scheduler: ``alphas_cumprod`` and ``config.prediction_type`` (``'epsilon'``, ``'sample'`` or
            ``'v_prediction'``) are used, so any of the discrete schedulers of diffusers (DDPM, DDIM, PNDM, ...). None:
            that of the pipeline.

    Inputs of ``forward``:
        x: (B, C, H, W). signal, noise: (B,), noise above 0.

    Returns of ``forward``:
        (B, C, H, W) in the units of the training images, -1 .. 1 for most; not clipped.

    Raises:
        ValueError: A scheduler without ``alphas_cumprod`` or of another kind of prediction; a network that returns
            other channels than it gets (learned variances are not supported).
        ModuleNotFoundError: A name is given and diffusers is not installed.

    Source: Ho et al. 2020 (arXiv 2006.11239); Salimans and Ho 2022 (arXiv 2202.00512) for v.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x, t):
        ...         return SimpleNamespace(sample=torch.zeros_like(x))
        >>> from types import SimpleNamespace
        >>> scheduler = SimpleNamespace(
        ...     alphas_cumprod=torch.linspace(0.99, 0.01, 10), config=SimpleNamespace(prediction_type='epsilon')
        ... )
        >>> DiffusersDenoiser(Net(), scheduler)(torch.ones(1, 1, 2, 2), torch.tensor([0.5]), torch.tensor([0.5])).mean()
        tensor(2.)
    """

    def __init__(self, unet: nn.Module | str, scheduler: Any = None):
        super().__init__()
        if isinstance(unet, str):
            unet, found = _load(unet)
            scheduler = found if scheduler is None else scheduler
        levels = getattr(scheduler, 'alphas_cumprod', None)
        if levels is None:
            raise ValueError(
                f'scheduler must have alphas_cumprod, as the discrete schedulers of diffusers do (DDPMScheduler, '
                f'DDIMScheduler, ...), got {type(scheduler).__name__}'
            )
        self.prediction = getattr(scheduler.config, 'prediction_type', None)
        if self.prediction not in _PREDICTIONS:
            raise ValueError(f'scheduler.config.prediction_type must be one of {_PREDICTIONS}, got {self.prediction!r}')
        self.unet = unet
        levels = torch.as_tensor(levels).double().clamp(1e-12, 1 - 1e-12)
        # falling signal: the log of noise over signal rises with t
        self.register_buffer('log_noise', (torch.log1p(-levels) - levels.log()).float(), persistent=False)

    def timesteps(self, signal: Tensor, noise: Tensor) -> Tensor:
        """(B,) the step, a number with a fraction, that has this ratio of signal and noise."""
        steps = self.log_noise
        wanted = (2 * (noise.log() - signal.log())).to(steps).clamp(steps[0], steps[-1])
        after = torch.searchsorted(steps, wanted).clamp(1, len(steps) - 1)
        low, high = steps[after - 1], steps[after]
        return (after - 1) + (wanted - low) / (high - low)

    def forward(self, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        signal, noise = (each.to(x).reshape(-1).expand(len(x)) for each in (signal, noise))
        length = (signal.square() + noise.square()).sqrt()
        t = self.timesteps(signal, noise)
        s, g, scale = (each.view(-1, *[1] * (x.dim() - 1)) for each in (signal / length, noise / length, length))
        x = x / scale
        with _contiguous_norms(self.unet):
            found = self.unet(x, t).sample
        if found.shape != x.shape:
            raise ValueError(
                f'unet must return the shape that it gets, {tuple(x.shape)}, got {tuple(found.shape)}; networks that '
                f'predict variances as well are not supported'
            )
        if self.prediction == 'sample':
            return found
        if self.prediction == 'v_prediction':
            return s * x - g * found
        # at pure noise the prediction of the noise tells nothing of the image
        return (x - g * found) / s.clamp_min(1e-6)


@contextlib.contextmanager
def _contiguous_norms(network: nn.Module) -> Iterator[None]:
    """Inputs of group norms as new tensors: their forward derivative fails on transposed ones, as attention returns."""
    norms = [each for each in network.modules() if isinstance(each, nn.GroupNorm)]
    handles = [norm.register_forward_pre_hook(_copied) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])


def _load(name: str) -> tuple[nn.Module, Any]:
    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'unet={name!r} needs diffusers: pip install diffusers') from error
    pipeline = DiffusionPipeline.from_pretrained(name)
    if not (hasattr(pipeline, 'unet') and hasattr(pipeline, 'scheduler')):
        raise ValueError(f'unet must name a pipeline with a unet and a scheduler, got a {type(pipeline).__name__}')
    return pipeline.unet, pipeline.scheduler
