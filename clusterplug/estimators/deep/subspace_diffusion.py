# SPDX-License-Identifier: Apache-2.0
"""Subspace clustering by training a denoiser."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count
from clusterplug.estimators._arrays import Points, check_parameter
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import k_subspaces, low_rank_responsibilities, projection_energy
from clusterplug.layers import LowRankDenoiser
from clusterplug.losses import DenoisingLoss

__all__ = ['SubspaceDiffusion']

# Share of the epochs, of the learning rate and of the largest noise. Adam would keep turning the subspaces by about the
# learning rate, and every noise has the same minimum, the small one with less variance.
_STAGES = ((0.5, 1.0, 1.0), (0.3, 0.3, 0.3), (0.2, 0.1, 0.1))


class SubspaceDiffusion(DeepClusterer):
    r"""Cluster points by the subspaces of a low-rank denoiser that is trained as diffusion models are.

    The denoiser of :class:`~clusterplug.layers.LowRankDenoiser` has no parameters but K subspaces, and the denoising
    loss over them is that of k-subspaces (theorem 3 of the paper). So k-subspaces gives the start, and some epochs of
    denoising refine it: the soft form weighs points near several subspaces, where k-subspaces decides.

    Args:
        n_clusters: K.
        dim: Dimension of each subspace.
        soft: The soft weights of the components in the denoiser, or the hard assignment.
        orthogonal: Whether the subspaces are orthogonal to each other, as in the paper; needs K dim <= D.
        init: ``'k_subspaces'`` or ``'random'`` (compare :attr:`loss_` of several fits).
        n_init: Starts of k-subspaces.
        epochs: Of denoising; 0 = k-subspaces alone. Learning rate and largest noise fall to 0.3 of themselves after
            half of them and to 0.1 after 80 %.
        num_noises: Noise levels a sample and epoch, each with both signs of its noise.
        schedule: Of :class:`~clusterplug.losses.DenoisingLoss`.
        batch_size, lr, device, random_state, verbose, checkpoint, checkpoint_every: as in all deep estimators
            (:class:`DeepClusterer`).

    The model has means of 0: X that is not centered warns. X is scaled so that the mean squared norm is ``dim``.

    Attributes:
        labels_: (N,) the subspace that holds most of each sample. subspaces_: (K, D, dim) orthonormal bases.
        loss_: denoising loss at the end, over the same noise in every fit of this X. loss_curve_: of each epoch.
        noise_: deviation of the samples from their subspaces, in each number. n_features_in_: D.

    ``transform`` gives the distances to the subspaces (N, K), ``predict_proba`` the probabilities of the components at
    noise ``noise_``.

    Warns:
        UserWarning: a cluster has fewer samples than ``dim`` (its subspace is not determined, theorem 4), or X is not
            centered.

    Source: Wang et al. 2024 (arXiv 2409.02426), theorems 1 to 4. **Differs**: the official code trains a U-Net and has
    no parametric model; the start by k-subspaces; subspaces need not be orthogonal to each other.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(size=(40, 2)) @ rng.normal(size=(2, 10)) for _ in range(2)])
        >>> model = SubspaceDiffusion(2, 2, epochs=5, random_state=0).fit(X)
        >>> len(set(model.labels_[:40])), len(set(model.labels_[40:])), model.subspaces_.shape
        (1, 1, (2, 10, 2))
    """

    def __init__(
        self,
        n_clusters: int = 8,
        dim: int = 4,
        *,
        soft: bool = True,
        orthogonal: bool = False,
        init: str = 'k_subspaces',
        n_init: int = 10,
        epochs: int = 50,
        num_noises: int = 4,
        schedule: str = 'vp',
        batch_size: int = 512,
        lr: float = 0.01,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.dim = dim
        self.soft = soft
        self.orthogonal = orthogonal
        self.init = init
        self.n_init = n_init
        self.epochs = epochs
        self.num_noises = num_noises
        self.schedule = schedule
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, least in (('dim', 1), ('n_init', 1), ('epochs', 0), ('num_noises', 1)):
            check_parameter(check_count, getattr(self, name), name, least)
        check_parameter(check_choice, self.init, 'init', ('k_subspaces', 'random'))
        check_parameter(check_choice, self.schedule, 'schedule', ('vp', 've', 'edm'))

    def _fit_scaling(self, x: Tensor) -> None:
        values = x.double()
        largest = float(values.abs().max())
        energy = float((values / largest).square().sum(1).mean()) if largest > 0 else 0.0
        self.shift_ = np.zeros(x.shape[1])
        self.scale_ = (self.dim / energy) ** 0.5 / largest if energy > 0 else 1.0
        if energy > 0:
            mean = float((values / largest).mean(0).square().sum())
            if mean > (0.25 + 3 / len(x)) * energy:
                warnings.warn(
                    f'X is not centered: its mean holds {100 * mean / energy:.0f} % of the energy, and the subspaces '
                    f'pass through the origin; subtract X.mean(0), unless that is meant',
                    stacklevel=5,
                )

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        if self.dim > input_shape[0]:
            raise ValueError(f'dim must be at most the {input_shape[0]} features of X, got {self.dim}')
        if self.orthogonal and self.n_clusters * self.dim > input_shape[0]:
            raise ValueError(
                f'orthogonal=True needs n_clusters * dim <= {input_shape[0]} features, got {self.n_clusters} * '
                f'{self.dim}; lower them or set orthogonal=False'
            )
        dims = [int(self.dim)] * int(self.n_clusters)
        with torch.random.fork_rng(devices=[]):  # what it draws is drawn again from the seed of the fit
            network = LowRankDenoiser(input_shape[0], dims, soft=self.soft, orthogonal=self.orthogonal)
        return network.to(device)

    def _initialize(self, network: Any, generator: torch.Generator, own: nn.Module | None) -> None:
        network.reset_parameters(generator)

    def _make_phases(self, x: Tensor) -> list[Phase]:
        def start() -> None:
            if self.init == 'k_subspaces':
                found = k_subspaces(
                    self._rows(x, slice(None)).cpu().double(), int(self.n_clusters), int(self.dim),
                    num_restarts=int(self.n_init), generator=self._make_generator(1),
                )  # fmt: skip
                self.network_.set_bases(found.bases)

        def phase(number: int, first: int, last: int) -> Phase:
            _, lr, noise = _STAGES[number]
            full = DenoisingLoss(self.schedule)
            noising = DenoisingLoss(
                self.schedule, max_noise=max(noise * full.max_noise, 2 * full.min_noise), antithetic=True
            )

            def denoise(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
                clean = self._rows(x, rows).repeat(int(self.num_noises), 1)
                both = clean.repeat(2, 1)
                return {'denoising': noising(lambda *noisy: self.network_(*noisy, clean=both), clean, generator)}

            return Phase(
                f'denoising {number + 1}', last - first, denoise, lr=lr * self.lr, batch_size=self.batch_size,
                start=start if number == 0 else None,
            )  # fmt: skip

        ends = [0]
        for share, *_ in _STAGES:
            ends.append(ends[-1] + round(share * self.epochs))
        ends[-1] = int(self.epochs)
        return [phase(number, *pair) for number, pair in enumerate(zip(ends[:-1], ends[1:]))]

    @torch.no_grad()
    def _finish(self, data: Points) -> None:
        x = data.tensor
        bases = torch.stack(self.network_.bases())
        self.subspaces_ = data.like(bases.to(x.device))
        self.labels_ = data.like(self._label(x))
        self.loss_curve_ = [entry['loss'] for entry in self._state.history]
        left = float(self._in_blocks(x, self._encode).amin(1).double().square().mean())
        spare = x.shape[1] - int(self.dim)
        self.noise_ = (left / spare) ** 0.5 if spare else 0.0
        noising = DenoisingLoss(self.schedule)
        clean, generator = self._rows(x, slice(None)), torch.Generator('cpu').manual_seed(0)
        self.loss_ = float(noising(lambda *noisy: self.network_(*noisy, clean=clean), clean, generator))
        counts = torch.bincount(torch.as_tensor(self.labels_).cpu(), minlength=int(self.n_clusters))
        if bool(((counts > 0) & (counts < self.dim)).any()):
            warnings.warn(
                f'clusters have {counts.tolist()} samples, some fewer than dim={self.dim}: that many samples do not '
                f'determine a subspace; lower dim or take more samples',
                stacklevel=4,
            )

    def _projected(self, batch: Tensor) -> Tensor:
        return projection_energy(batch, torch.as_tensor(self.subspaces_).to(batch))

    def _label(self, x: Tensor) -> Tensor:
        return self._in_blocks(x, lambda batch: self._projected(batch).argmax(1))

    def _encode(self, batch: Tensor) -> Tensor:
        """Distances (N, K) to the subspaces, in units of X."""
        left = batch.square().sum(1, keepdim=True) - self._projected(batch)
        return left.clamp_min(0).sqrt() / self.scale_

    def _soft_labels(self, x: Tensor) -> Tensor:
        noise = max(float(self.noise_) * self.scale_, 1e-3)

        def share(batch: Tensor) -> Tensor:
            bases = torch.as_tensor(self.subspaces_).to(batch)
            return low_rank_responsibilities(batch, bases, signal=1.0, noise=noise)

        return self._in_blocks(x, share)

    @property
    def _n_features_out(self) -> int:
        return int(self.n_clusters)
