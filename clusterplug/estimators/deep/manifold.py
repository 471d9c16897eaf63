# SPDX-License-Identifier: Apache-2.0
"""Manifold linearizing and clustering: features of orthogonal subspaces and a soft membership, trained together."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.estimators._arrays import check_parameter
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.networks import convolutions, make_autoencoder, mlp
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import (
    coding_rate,
    conditional_coding_rate,
    doubly_stochastic,
    projection_energy,
    spectral_clustering,
)

__all__ = ['ManifoldClustering']


class ManifoldClustering(DeepClusterer):
    r"""Train features in which every cluster is a linear subspace of its own, and cut the membership (MLC).

    Two heads on one encoder give unit features z and c. (1) Warm-up: the rate of z is maximized while two views of a
    sample are aligned, :math:`-R(\bar Z) - w \, \overline{\cos}(z, z')`. (2) The feature head is copied to the cluster
    head, which is all the initialization that the membership needs. (3) With the doubly stochastic
    :math:`\Gamma = P_\epsilon(|C^\top C|)` of every batch, :math:`R(Z) - \gamma R_c(Z, \Gamma)` is maximized
    (:class:`~clusterplug.losses.RateReductionLoss`). Labels are spectral clustering of the membership of all samples,
    or of ``num_landmarks`` of them, whose subspaces label the rest.

    Args:
        n_clusters: K, or ``'auto'``: the number of 2 .. ``max_clusters`` of the shortest code (minimum coding length).
        max_clusters: Largest K tried by ``'auto'``.
        encoder: ``'mlp'``, ``'cnn'`` or a module that maps a batch to (B, embed_dims); see :class:`DeepClusterer`.
        hidden: Widths of the MLP. channels: feature maps of the CNN's convolutions, each with batch
            normalization; all but the first halve the image. embed_dims: width of the encoder's output.
        feature_dims: Width of z and c.
        augment: ``(batch, generator) -> batch``, a random view of scaled samples; None: noise, for images also turns
            (0.25 rad), scales (0.1) and shifts (a sixteenth).
        noise: Standard deviation of the noise of the default views; the mean square of scaled samples is 1.
        warmup_epochs: Epochs of the warm-up.
        epochs: Epochs of rate reduction.
        warmup_eps2: Squared distortion in the warm-up.
        align_weight: w; twice that of a code with half the rate.
        eps2: Squared distortion of the rate reduction.
        gamma: Weight of the rate of the parts.
        epsilon: Entropy of the membership; larger spreads it over more samples.
        sinkhorn_iters: Iterations of the membership.
        shared_head: Use z for c: one head, no copy.
        num_landmarks: Samples whose membership is cut; all where there are fewer.
        batch_size: Samples of a step. Memory of a step: see :func:`~clusterplug.functional.conditional_coding_rate`.
        lr: Learning rate of Adam in the warm-up; 0.3 of it in the rate reduction.
        device, random_state, verbose, checkpoint, checkpoint_every: see :class:`DeepClusterer`.

    Attributes:
        labels_, history_, network_, partial_: see :class:`DeepClusterer`.
        n_clusters_: K.
        subspaces_: (K, feature_dims, rank) bases of the clusters, of the rank that holds 95 % of each (the rest of the
            columns are zero).
        coding_lengths_: {K: nats} where K was chosen.

    Source: Ding, Tong, Chan, Dai, Ma and Haeffele, "Unsupervised manifold linearizing and clustering", ICCV 2023, arXiv
    2301.01805 (its repository is empty); warm-up zengyi-li/NMCE-release (MIT); read next to it LeslieTrue/CPP (no
    license). **Differs from the authors' code**: converged symmetric membership with the gradient of its fixed point
    (theirs: 5 half iterations, gradient cut); a tenth of the memory; Adam; labels of all samples at once instead of
    accuracies averaged over batches; no penalty on the membership.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(size=(40, 2)) @ rng.normal(size=(2, 16)) for _ in range(2)])
        >>> model = ManifoldClustering(2, warmup_epochs=2, epochs=2, random_state=0).fit(X)
        >>> model.labels_.shape, model.transform(X).shape
        ((80,), (80, 32))
    """

    def __init__(
        self,
        n_clusters: int | str = 8,
        *,
        max_clusters: int = 20,
        encoder: Any = 'mlp',
        hidden: Sequence[int] = (256,),
        channels: Sequence[int] = (32, 64),
        embed_dims: int = 128,
        feature_dims: int = 32,
        augment: Callable | None = None,
        noise: float = 0.3,
        warmup_epochs: int = 40,
        epochs: int = 30,
        warmup_eps2: float = 0.2,
        align_weight: float = 60.0,
        eps2: float = 0.1,
        gamma: float = 1.0,
        epsilon: float = 0.175,
        sinkhorn_iters: int = 15,
        shared_head: bool = False,
        num_landmarks: int = 2000,
        batch_size: int = 256,
        lr: float = 1e-3,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.max_clusters = max_clusters
        self.encoder = encoder
        self.hidden = hidden
        self.channels = channels
        self.embed_dims = embed_dims
        self.feature_dims = feature_dims
        self.augment = augment
        self.noise = noise
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.warmup_eps2 = warmup_eps2
        self.align_weight = align_weight
        self.eps2 = eps2
        self.gamma = gamma
        self.epsilon = epsilon
        self.sinkhorn_iters = sinkhorn_iters
        self.shared_head = shared_head
        self.num_landmarks = num_landmarks
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def _check_parameters(self) -> None:
        chosen, self.n_clusters = self.n_clusters, 1 if self.n_clusters == 'auto' else self.n_clusters
        try:
            super()._check_parameters()
        finally:
            self.n_clusters = chosen
        for name, least in (
            ('max_clusters', 2), ('embed_dims', 1), ('feature_dims', 1), ('warmup_epochs', 0), ('epochs', 0),
            ('sinkhorn_iters', 1), ('num_landmarks', 2),
        ):  # fmt: skip
            check_parameter(check_count, getattr(self, name), name, least)
        for name in ('noise', 'align_weight', 'gamma'):
            check_parameter(check_number, getattr(self, name), name, 0)
        for name in ('warmup_eps2', 'eps2', 'epsilon'):
            check_parameter(check_number, getattr(self, name), name, 1e-6)

    def _check_enough(self, num_samples: int) -> None:
        if num_samples < 2:
            raise ValueError(f'n_samples={num_samples} should be >= 2: a rate is one of several samples')
        if self.n_clusters != 'auto':
            super()._check_enough(num_samples)

    def _warn_if_fewer(self, labels: Any) -> None:
        if self.n_clusters != 'auto':
            super()._warn_if_fewer(labels)

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        if isinstance(self.encoder, str) and self.encoder == 'cnn':
            network = nn.Module()
            network.encoder = convolutions(input_shape, self.channels, self.embed_dims, device)
        else:
            network = make_autoencoder(self.encoder, input_shape, self.hidden, self.channels, self.embed_dims, device)
            del network.decoder
        widths = [self.embed_dims, self.embed_dims, self.feature_dims]
        network.feature_head, network.cluster_head = (mlp(widths, device, normalized=True) for _ in range(2))
        return network

    def _make_phases(self, x: Tensor) -> list[Phase]:
        def features(head: nn.Module, hidden: Tensor) -> Tensor:
            return F.normalize(head(hidden).float(), dim=1)

        def views(rows: Tensor, generator: torch.Generator) -> list[Tensor]:
            batch = self._rows(x, rows)
            return [self.network_.encoder(self._view(batch, generator)) for _ in range(2)]

        def warm_up(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            one, two = (features(self.network_.feature_head, h) for h in views(rows, generator))
            joined = F.normalize(one + two, dim=1)
            return {
                'rate': -coding_rate(joined, eps2=self.warmup_eps2),
                'alignment': self.align_weight * (1 - (one * two).sum(1).mean()),
            }

        def reduce(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            hidden = views(rows, generator)
            one, two = (features(self.network_.feature_head, h) for h in hidden)
            z = F.normalize(one + two, dim=1)
            gammas = [self._membership(features(self._cluster_head, h)) for h in hidden]
            gamma = (gammas[0] + gammas[1]) / 2
            return {
                'rate': -coding_rate(z, eps2=self.eps2),
                'rate_of_parts': self.gamma * conditional_coding_rate(z, gamma, eps2=self.eps2),
            }

        common: dict[str, Any] = {'batch_size': self.batch_size, 'even': True}
        return [
            Phase('warm-up', self.warmup_epochs, warm_up, lr=self.lr, **common),
            Phase('rate reduction', self.epochs, reduce, lr=0.3 * self.lr, start=self._copy_head, **common),
        ]

    @property
    def _cluster_head(self) -> nn.Module:
        return self.network_.feature_head if self.shared_head else self.network_.cluster_head

    @torch.no_grad()
    def _copy_head(self) -> None:
        """The one-shot initialization of the membership."""
        self.network_.cluster_head.load_state_dict(copy.deepcopy(self.network_.feature_head.state_dict()))
        self._state.tensors['copied'] = torch.ones(1)

    def _membership(self, c: Tensor) -> Tensor:
        kernel = (c @ c.mT).abs()  # opposite features lie in one subspace
        return doubly_stochastic(kernel, epsilon=self.epsilon, num_iters=int(self.sinkhorn_iters), symmetric=True)

    def _view(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        if self.augment is not None:
            return self.augment(batch, generator)
        if batch.dim() == 4:
            batch = _moved(batch, generator)
        noise = torch.randn(batch.shape, generator=generator, device='cpu', dtype=torch.float32).to(batch.device)
        return batch + self.noise * noise

    def _encode(self, batch: Tensor) -> Tensor:
        return F.normalize(self.network_.feature_head(self.network_.encoder(batch)), dim=1)

    def _encode_for_clusters(self, batch: Tensor) -> Tensor:
        head = self._cluster_head if 'copied' in self._state.tensors else self.network_.feature_head
        return F.normalize(head(self.network_.encoder(batch)), dim=1)

    @torch.no_grad()
    def _finish(self, data: Any) -> None:
        x = data.tensor
        z, c = self._embed(x), self._in_blocks(x, self._encode_for_clusters)
        rows = torch.arange(len(x))
        if len(x) > self.num_landmarks:
            rows = torch.randperm(len(x), generator=self._make_generator(7), device='cpu')[: self.num_landmarks]
        rows = rows.to(x.device)
        gamma = self._membership(c[rows])
        if self.n_clusters == 'auto':
            most = min(int(self.max_clusters), len(rows))
            cuts = {k: self._cut(gamma, k) for k in range(1, most + 1)}
            self.coding_lengths_ = {str(k): coding_length(z[rows], cut, float(self.eps2)) for k, cut in cuts.items()}
            self.n_clusters_ = int(min(self.coding_lengths_, key=lambda k: self.coding_lengths_[k]))
            labels = cuts[self.n_clusters_]
        else:
            self.n_clusters_ = int(self.n_clusters)
            labels = self._cut(gamma, self.n_clusters_)
        self.subspaces_ = data.like(_bases(z[rows], labels, self.n_clusters_))
        if len(rows) < len(x):
            everywhere = projection_energy(z, torch.as_tensor(self.subspaces_, device=z.device)).argmax(1)
            labels = everywhere.index_copy(0, rows, labels)
        self.labels_ = data.like(labels)

    def _cut(self, gamma: Tensor, num_clusters: int) -> Tensor:
        if num_clusters == 1:
            return torch.zeros(len(gamma), dtype=torch.long, device=gamma.device)
        return spectral_clustering(gamma, num_clusters, affinity='precomputed').labels

    def _soft_labels(self, x: Tensor) -> Tensor:
        """Shares of the energy of z in the subspaces of the clusters."""
        bases = torch.as_tensor(self.subspaces_)
        energy = projection_energy(self._embed(x), bases.to(x.device)).clamp_min(1e-30)
        return energy / energy.sum(1, keepdim=True)


def coding_length(z: Tensor, labels: Tensor, eps2: float) -> float:
    r"""Nats that code points (n, d) part by part: :math:`\sum_k \frac{m_k + d}{2} R_k - m_k \log \frac{m_k}{n}`."""
    n, d = z.shape
    total = 0.0
    for k in labels.unique().tolist():
        own = z[labels == k]
        total += (len(own) + d) / 2 * float(coding_rate(own, eps2=eps2)) - len(own) * float(
            torch.log(torch.tensor(len(own) / n))
        )
    return total


def _bases(z: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """(K, d, d) directions of each cluster that hold 95 % of its energy, the others zero."""
    member = F.one_hot(labels, num_clusters).to(z.dtype)
    moments = torch.stack([(z * own[:, None]).mT @ z for own in member.unbind(1)]).double()
    values, vectors = torch.linalg.eigh(moments)
    values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
    share = values / values.sum(-1, keepdim=True).clamp_min(1e-30)
    wanted = share.cumsum(-1) - share < 0.95
    return (vectors * wanted.unsqueeze(-2)).float()


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned, scaled and shifted a little, each in its own way."""
    draws = torch.rand(len(images), 4, generator=generator, device='cpu', dtype=torch.float32).to(images.device) * 2 - 1
    angle, scale = 0.25 * draws[:, 0], 1 + 0.1 * draws[:, 1]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = 0.125 * draws[:, 2:]
    maps = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode='border', align_corners=False)
