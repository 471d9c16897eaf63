# SPDX-License-Identifier: Apache-2.0
"""Small encoders and their mirrored decoders, initialized from a generator of their own."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from clusterplug.core.checks import check_count

__all__ = ['ConvAutoencoder', 'MLPAutoencoder', 'OwnEncoder', 'convolutions', 'initialize', 'make_autoencoder', 'mlp']


def mlp(
    widths: Sequence[int], device: torch.device, *, last_activation: bool = False, normalized: bool = False
) -> nn.Sequential:
    """Return Linear layers with ReLU between, without initial values: see :func:`initialize`.

    ``normalized``: with batch normalization before each ReLU.
    """
    layers = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        between = [nn.BatchNorm1d(after, device=device)] if normalized else []
        layers += [skip_init(nn.Linear, before, after, device=device), *between, nn.ReLU()]
    last = 2 if normalized else 1
    return nn.Sequential(*(layers if last_activation else layers[:-last]))


def convolutions(
    image_shape: Sequence[int], channels: Sequence[int], embed_dims: int, device: torch.device
) -> nn.Sequential:
    """Return an encoder without a decoder: 3 x 3 convolutions with batch normalization and ReLU, then a linear layer.

    The first convolution keeps the size of the image, each further one halves it. Without initial values, as
    :func:`mlp`.
    """
    maps, layers = [image_shape[0], *channels], []
    strides = [1, *[2] * len(channels)][: len(channels)]
    sizes = _sizes(image_shape[1:], [3] * len(channels), strides, [1] * len(channels))
    for before, after, stride in zip(maps[:-1], maps[1:], strides, strict=True):
        conv = skip_init(nn.Conv2d, before, after, 3, stride, 1, device=device)
        layers += [conv, nn.BatchNorm2d(after, device=device), nn.ReLU()]
    flat = maps[-1] * math.prod(sizes[-1])
    return nn.Sequential(*layers, nn.Flatten(), skip_init(nn.Linear, flat, embed_dims, device=device))


@torch.no_grad()
def initialize(
    module: nn.Module, generator: torch.Generator, *, kind: str = 'kaiming', skip: nn.Module | None = None
) -> None:
    """Fill linear and convolution layers: torch's own default distribution, or Glorot's with biases of 0.

    The layers of ``skip`` keep their values.

    Drawn in fp32 on the CPU from ``generator``, so that the values are the same on every device.
    """
    kept = set() if skip is None else set(skip.modules())
    for layer in module.modules():
        if layer in kept or not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight = torch.empty(layer.weight.shape, device='cpu', dtype=torch.float32)
        if kind == 'glorot':
            nn.init.xavier_uniform_(weight, generator=generator)
        else:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            bias = torch.zeros(layer.bias.shape, device='cpu', dtype=torch.float32)
            if kind != 'glorot':
                fan_in = nn.init._calculate_fan_in_and_fan_out(weight)[0]
                bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
                bias.uniform_(-bound, bound, generator=generator)
            layer.bias.copy_(bias)


class MLPAutoencoder(nn.Module):
    """An encoder D - hidden - embed_dims with ReLU between, linear at the end, and its mirror image.

    Args:
        in_features: D.
        hidden: Widths between.
        embed_dims: Width of the embedding.
        device: Where the parameters lie. They hold no values before :func:`initialize`.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], embed_dims: int, device: torch.device):
        super().__init__()
        widths = [in_features, *hidden, embed_dims]
        self.encoder = mlp(widths, device)
        self.decoder = mlp(widths[::-1], device)

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction (N, D) of embeddings (N, embed_dims)."""
        return self.decoder(z)


class ConvAutoencoder(nn.Module):
    """Strided convolutions with LeakyReLU, a linear embedding, and the mirrored decoder.

    The decoder inverts every image size exactly: what a stride loses is given back as output padding.

    Args:
        image_shape: (C, H, W).
        channels: Feature maps of each convolution.
        embed_dims: Width of the embedding.
        kernel_sizes: One, or one for each convolution. strides, paddings: likewise.
        last_activation: ``'tanh'`` or None, of the embedding.
        device: Where the parameters lie. They hold no values before :func:`initialize`.

    Attributes:
        encoder: nn.Sequential of the stages: each convolution with its activation, then the embedding.
        decoder: nn.ModuleList: embedding -> last feature map -> ... -> image.

    Raises:
        ValueError: The image is smaller than a kernel, with the sizes layer by layer.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        embed_dims: int,
        device: torch.device,
        *,
        kernel_sizes: int | Sequence[int] = 3,
        strides: int | Sequence[int] = 2,
        paddings: int | Sequence[int] = 1,
        last_activation: str | None = None,
    ):
        super().__init__()
        count = len(channels)
        kernels, steps, pads = (
            _one_each(value, name, count, least)
            for value, name, least in (
                (kernel_sizes, 'kernel_sizes', 1),
                (strides, 'strides', 1),
                (paddings, 'paddings', 0),
            )
        )
        maps = [image_shape[0], *channels]
        sizes = _sizes(image_shape[1:], kernels, steps, pads)
        stages = []
        for number in range(count):
            conv = skip_init(
                nn.Conv2d, maps[number], maps[number + 1], kernels[number], steps[number], pads[number], device=device
            )
            stages.append(nn.Sequential(conv, nn.LeakyReLU(0.01)))
        flat = maps[-1] * math.prod(sizes[-1])
        embedding = [nn.Flatten(), skip_init(nn.Linear, flat, embed_dims, device=device)]
        stages.append(nn.Sequential(*embedding, *([nn.Tanh()] if last_activation == 'tanh' else [])))
        self.encoder = nn.Sequential(*stages)
        back: list[nn.Module] = [
            nn.Sequential(
                skip_init(nn.Linear, embed_dims, flat, device=device),
                nn.LeakyReLU(0.01),
                nn.Unflatten(1, (maps[-1], *sizes[-1])),
            )
        ]
        for number in reversed(range(count)):
            kernel, step, pad = kernels[number], steps[number], pads[number]
            lost = [(size + 2 * pad - kernel) % step for size in sizes[number]]
            deconv = skip_init(
                nn.ConvTranspose2d, maps[number + 1], maps[number], kernel, step, pad, tuple(lost), device=device
            )
            back.append(nn.Sequential(deconv, nn.LeakyReLU(0.01)) if number else deconv)
        self.decoder = nn.ModuleList(back)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of embeddings (N, embed_dims)."""
        return self.decode_stages(z)[-1]

    def decode_stages(self, z: Tensor) -> list[Tensor]:
        """Return every output of the decoder, the deepest feature map first and the image last."""
        outputs = []
        for stage in self.decoder:
            z = stage(z)
            outputs.append(z)
        return outputs


def _one_each(value: int | Sequence[int], name: str, count: int, least: int) -> list[int]:
    values = [value] * count if not isinstance(value, Sequence) else list(value)
    if len(values) != count:
        raise ValueError(f'{name} must be an int or hold one for each of the {count} convolutions, got {value!r}')
    return [check_count(each, name, least) for each in values]


def _sizes(image: Sequence[int], kernels: list[int], strides: list[int], pads: list[int]) -> list[list[int]]:
    """Heights and widths before the first and after every convolution."""
    sizes = [list(image)]
    for kernel, stride, pad in zip(kernels, strides, pads, strict=True):
        after = [(size + 2 * pad - kernel) // stride + 1 for size in sizes[-1]]
        if min(after) < 1 or any(size + 2 * pad < kernel for size in sizes[-1]):
            chain = ' -> '.join('x'.join(map(str, size)) for size in sizes)
            raise ValueError(
                f'images of {"x".join(map(str, image))} are too small for the encoder: sizes {chain}, then a kernel '
                f'of {kernel} with padding {pad} does not fit; use fewer convolutions, or a larger padding'
            )
        sizes.append(after)
    return sizes


def make_autoencoder(
    encoder: Any, input_shape: tuple[int, ...], hidden: Any, channels: Any, embed_dims: int, device: torch.device
) -> nn.Module:
    """Return an autoencoder with ``encoder`` and ``decode``; a module of the user gets a decoder of its own mirror."""
    if isinstance(encoder, nn.Module):
        return OwnEncoder(copy.deepcopy(encoder).to(device), embed_dims, hidden, int(np.prod(input_shape)), device)
    if encoder == 'cnn':
        return ConvAutoencoder(input_shape, channels, embed_dims, device)
    if encoder == 'mlp':
        return MLPAutoencoder(input_shape[0], hidden, embed_dims, device)
    raise ValueError(f"encoder must be 'mlp', 'cnn' or a torch.nn.Module, got {encoder!r}")


class OwnEncoder(nn.Module):
    """The user's encoder next to a decoder of linear layers that gives back the flattened input."""

    def __init__(self, encoder: nn.Module, embed_dims: int, hidden: Any, num_values: int, device: torch.device):
        super().__init__()
        self.encoder = encoder
        self.decoder = mlp([embed_dims, *reversed(hidden), num_values], device)

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction (N, values of a sample)."""
        return self.decoder(z)
