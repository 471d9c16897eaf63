# SPDX-License-Identifier: Apache-2.0
"""Denoising autoencoder whose pooled latent is clustered: pseudo-labels without labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from clusterplug.core.checks import check_count, check_number
from clusterplug.estimators._arrays import check_parameter
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.networks import make_autoencoder
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import nearest_center, student_assignment

__all__ = ['DenoisingAutoencoder']


class DenoisingAutoencoder(DeepClusterer):
    r"""Learn to remove noise from samples, then cluster what the bottleneck knows of each: pseudo-labels.

    .. math:: \min \mathrm{mean}\,(\mathrm{decode}(\mathrm{encode}(x + \sigma \epsilon)) - x)^2

    and k-means of the latent, averaged over positions for images. The labels serve a batch sampler
    (:class:`~clusterplug.datasets.samplers.ClusterDisjointBatchSampler`) or any other method that wants classes.

    Args:
        n_clusters: K.
        encoder: ``'auto'``: by the shape of X; ``'cnn'`` for images X (N, C, H, W): blocks of 3x3 convolution, batch
            norm, ReLU and pooling by 2, the mirror image with a sigmoid at the end; ``'mlp'`` for X (N, D), linear at
            both ends, so that no hidden width and no noise is PCA; or your own module, see :class:`DeepClusterer`.
        channels: Feature maps of the blocks of the CNN; the latent has the last of them.
        hidden: Widths of the MLP.
        embed_dims: Width of the latent of the MLP or of your own module.
        noise: Standard deviation sigma of the noise, in training only: of values scaled to 0 .. 1 for the CNN, to mean
            square 1 for the MLP; as they are for your own module.
        epochs: At most as many epochs.
        patience: The fit ends after so many epochs without a new lowest loss; None: never.
        batch_size: Samples of a step.
        lr: Learning rate of Adam.
        n_init: Starts of k-means.
        device, random_state, verbose, checkpoint, checkpoint_every: see :class:`DeepClusterer`.

    Attributes:
        labels_, history_, network_, partial_: see :class:`DeepClusterer`. cluster_centers_: (K, width of the latent).
        reconstruction_error_: Mean squared error without noise, of the scaled values.

    Source: Chakraborty, Gosthipaty, Paul, "G-SimCLR", ICDM Workshops 2020, arXiv 2009.12007, section III; official code
    ariG23498/G-SimCLR (Apache-2.0), TensorFlow notebooks. **Differs from the authors' code**: batches are shuffled;
    early stopping on the training loss instead of on test images; any image size.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(40, 6)) + 9 * (np.arange(40) % 2)[:, None]
        >>> model = DenoisingAutoencoder(2, encoder='mlp', hidden=(), embed_dims=2, epochs=5, random_state=0).fit(X)
        >>> model.transform(X).shape, bool((model.labels_ == model.labels_[np.arange(40) % 2]).all())
        ((40, 2), True)
    """

    def __init__(
        self,
        n_clusters: int = 64,
        *,
        encoder: Any = 'auto',
        channels: Sequence[int] = (32, 64, 128),
        hidden: Sequence[int] = (256,),
        embed_dims: int = 32,
        noise: float = 0.01,
        epochs: int = 100,
        patience: int | None = 5,
        batch_size: int = 64,
        lr: float = 1e-3,
        n_init: int = 10,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.encoder = encoder
        self.channels = channels
        self.hidden = hidden
        self.embed_dims = embed_dims
        self.noise = noise
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.lr = lr
        self.n_init = n_init
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def encode(self, X: Any) -> Any:
        """Return the latent of each sample of ``X``, (N, width) fp32: the same as ``transform``."""
        return self.transform(X)

    def reconstruct(self, X: Any) -> Any:
        """Return what the network makes of each sample without noise, in the shape and units of ``X``, fp32."""
        self._check_fitted()
        data = self._read(X, reset=False)
        found = self._in_blocks(data.tensor, self._decoded).view(len(data.tensor), *self.input_shape_)
        shift, scale = self._scaling
        if shift is not None:
            found = (found.to(shift.dtype) / scale + shift.to(found.device)).float()
        return data.like(found)

    @property
    def _encoder_kind(self) -> Any:
        if not isinstance(self.encoder, str) or self.encoder != 'auto':
            return self.encoder
        return 'cnn' if len(getattr(self, 'input_shape_', ())) == 3 else 'mlp'

    def _read(self, X: Any, *, reset: bool) -> Any:
        if reset:
            self.input_shape_ = tuple(np.shape(X)[1:])  # what 'auto' goes by
        return super()._read(X, reset=reset)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, least in (('embed_dims', 1), ('epochs', 0), ('n_init', 1)):
            check_parameter(check_count, getattr(self, name), name, least)
        if self.patience is not None:
            check_parameter(check_count, self.patience, 'patience', 1)
        check_parameter(check_number, self.noise, 'noise', 0)

    def _fit_scaling(self, x: Tensor) -> None:
        if not isinstance(self._encoder_kind, str) or self._encoder_kind == 'mlp':
            super()._fit_scaling(x)
            return
        # to 0 .. 1, what the sigmoid at the end can give
        low, high = float(x.min()), float(x.max())
        self.shift_ = torch.tensor(low, dtype=torch.float64).numpy()
        self.scale_ = 1 / (high - low) if high > low else 1.0

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        network: nn.Module
        if isinstance(self._encoder_kind, str) and self._encoder_kind == 'cnn':
            network = DenoisingConvNet(input_shape, self.channels, device)
        else:
            network = make_autoencoder(self._encoder_kind, input_shape, self.hidden, (), self.embed_dims, device)
        network.register_buffer('centers', torch.zeros(self.n_clusters, self._n_features_out, device=device))
        return network

    def _make_phases(self, x: Tensor) -> list[Phase]:
        def reconstruct(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            batch = self._rows(x, rows)
            seen = batch
            if self.noise:
                drawn = torch.randn(batch.shape, generator=generator, device='cpu', dtype=torch.float32)
                seen = batch + self.noise * drawn.to(batch.device)
            return {'reconstruction': (self._decoded(seen).flatten(1) - batch.flatten(1)).square().mean()}

        options: dict[str, Any] = dict(lr=self.lr, batch_size=self.batch_size, patience=self.patience)
        return [Phase('autoencoder', self.epochs, reconstruct, **options)]

    def _decoded(self, batch: Tensor) -> Tensor:
        if isinstance(self.network_, DenoisingConvNet):
            return self.network_.reconstruct(batch)
        return self.network_.decode(self.network_.encoder(batch))

    @torch.no_grad()
    def _finish(self, data: Any) -> None:
        z = self._embed(data.tensor)
        centers, _ = self._cluster(z, 1, self.n_init)
        self.network_.centers.copy_(centers)
        self.cluster_centers_ = data.like(centers.to(data.tensor.device))
        self.labels_ = data.like(self._label(data.tensor))
        errors = self._in_blocks(
            data.tensor, lambda batch: (self._decoded(batch).flatten(1) - batch.flatten(1)).square().mean(1)
        )
        self.reconstruction_error_ = float(errors.double().mean())

    def _label(self, x: Tensor) -> Tensor:
        z = self._embed(x)
        return nearest_center(z, self.network_.centers.to(z.device))[0]

    def _soft_labels(self, x: Tensor) -> Tensor:
        z = self._embed(x)
        return student_assignment(z, self.network_.centers.to(z.device))

    @property
    def _n_features_out(self) -> int:
        is_cnn = isinstance(self._encoder_kind, str) and self._encoder_kind == 'cnn'
        return int(self.channels[-1] if is_cnn else self.embed_dims)


class DenoisingConvNet(nn.Module):
    """Convolution blocks with pooling, and their mirror image; the latent is the mean of the last map.

    Args:
        image_shape: (C, H, W).
        channels: Feature maps of the blocks.
        device: Where the parameters lie. Convolutions hold no values before they are initialized.

    Raises:
        ValueError: An image that the pooling leaves nothing of.
    """

    def __init__(self, image_shape: Sequence[int], channels: Sequence[int], device: torch.device):
        super().__init__()
        smallest = 2 ** len(channels)
        if not channels or min(image_shape[1:]) < smallest:
            raise ValueError(
                f'channels must be at least one block and leave one position of an image, {len(channels)} blocks need '
                f'{smallest} pixels a side, got images of {image_shape[1]}x{image_shape[2]}; use fewer blocks'
            )
        maps = [image_shape[0], *channels]
        self.down = nn.ModuleList(_block(a, b, device) for a, b in zip(maps[:-1], maps[1:], strict=True))
        back = [maps[-1], *maps[:0:-1]]
        self.up = nn.ModuleList(_block(a, b, device) for a, b in zip(back[:-1], back[1:], strict=True))
        self.last = skip_init(nn.Conv2d, maps[1], maps[0], 3, padding=1, device=device)

    def encoder(self, batch: Tensor) -> Tensor:
        """Return the latent (N, channels[-1]) of images (N, C, H, W)."""
        return self._encode(batch)[0].mean((2, 3))

    def reconstruct(self, batch: Tensor) -> Tensor:
        """Return the images (N, C, H, W) that the decoder makes of the last map."""
        x, sizes = self._encode(batch)
        for block, size in zip(self.up, reversed(sizes), strict=True):
            x = block(F.interpolate(x, size))
        return self.last(x).sigmoid()

    def _encode(self, x: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        sizes = []
        for block in self.down:
            sizes.append((x.shape[2], x.shape[3]))
            x = F.max_pool2d(block(x), 2)
        return x, sizes


def _block(before: int, after: int, device: torch.device) -> nn.Sequential:
    conv = skip_init(nn.Conv2d, before, after, 3, padding=1, device=device)
    return nn.Sequential(conv, nn.BatchNorm2d(after, device=device), nn.ReLU())
