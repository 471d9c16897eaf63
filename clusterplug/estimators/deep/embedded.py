# SPDX-License-Identifier: Apache-2.0
"""Deep embedded clustering: DEC and IDEC."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.estimators._arrays import check_parameter
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.networks import make_autoencoder
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import cluster_target, student_assignment

__all__ = ['DeepEmbeddedClustering']

OBJECTIVES = ('dec', 'idec')


class DeepEmbeddedClustering(DeepClusterer):
    r"""Clustering of a learned embedding (DEC), optionally held by its reconstruction (IDEC).

    An autoencoder is trained; k-means of its embedding gives centers; then, with q the Student-t assignment of
    samples to centers and p its sharpened target over all samples,

    .. math:: L = w \, \mathrm{KL}(p \,\|\, q) \;+\; \mathrm{mean}(\hat x - x)^2 \;\; (\text{idec only})

    trains encoder and centers. Targets are recomputed over all samples every ``refresh_every`` epochs, and the fit
    ends when fewer than ``tol`` of the labels change.

    Args:
        n_clusters: K.
        objective: ``'idec'`` or ``'dec'``.
        encoder: ``'mlp'``, ``'cnn'`` or a module; see :class:`DeepClusterer`.
        hidden: Widths of the MLP.
        channels: Feature maps of the CNN (kernel 3, stride 2).
        embed_dims: Width of the embedding.
        pretrain_epochs: Epochs of the autoencoder.
        epochs: At most as many epochs of clustering.
        batch_size: Samples of a step.
        lr: Learning rate of Adam in both phases.
        cluster_weight: w, for ``'idec'`` (``'dec'``: 1).
        noise: Share of input values set to 0 while the autoencoder is trained.
        refresh_every: Epochs between targets.
        tol: Share of labels that change from one refresh to the next below which the fit ends.
        device, random_state, verbose, checkpoint, checkpoint_every: see :class:`DeepClusterer`.

    Attributes:
        labels_, history_, network_, partial_: see :class:`DeepClusterer`. cluster_centers_: (K, embed_dims).

    Source: Xie et al., "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016; Guo et al., "Improved Deep
    Embedded Clustering with Local Structure Preservation", IJCAI 2017. **Differs from the authors' code**: no
    layer-wise pretraining but a denoising autoencoder, a smaller network (500-500-2000 there), Adam throughout, X
    centered and scaled as a whole.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(60, 4)) + 8 * (np.arange(60) % 2)[:, None]
        >>> model = DeepEmbeddedClustering(2, hidden=(16,), embed_dims=2, pretrain_epochs=5, random_state=0)
        >>> labels = model.fit_predict(X)
        >>> bool((labels == labels[np.arange(60) % 2]).all())
        True
    """

    hidden: Any  # widths; one for all of several branches

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        objective: str = 'idec',
        encoder: Any = 'mlp',
        hidden: Sequence[int] = (256, 256),
        channels: Sequence[int] = (32, 64),
        embed_dims: int = 10,
        pretrain_epochs: int = 50,
        epochs: int = 50,
        batch_size: int = 256,
        lr: float = 1e-3,
        cluster_weight: float = 0.1,
        noise: float = 0.2,
        refresh_every: int = 1,
        tol: float = 1e-3,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.objective = objective
        self.encoder = encoder
        self.hidden = hidden
        self.channels = channels
        self.embed_dims = embed_dims
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.cluster_weight = cluster_weight
        self.noise = noise
        self.refresh_every = refresh_every
        self.tol = tol
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_parameter(check_choice, self.objective, 'objective', OBJECTIVES)
        for name, least in (('embed_dims', 1), ('pretrain_epochs', 0), ('epochs', 0), ('refresh_every', 1)):
            check_parameter(check_count, getattr(self, name), name, least)
        for name, most in (('cluster_weight', 1e6), ('noise', 0.99), ('tol', 1)):
            check_parameter(check_number, getattr(self, name), name, 0, most)

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        network = make_autoencoder(self.encoder, input_shape, self.hidden, self.channels, self.embed_dims, device)
        network.centers = nn.Parameter(torch.zeros(self.n_clusters, self.embed_dims, device=device))
        return network

    def _make_phases(self, x: Tensor) -> list[Phase]:
        common: dict[str, Any] = {'lr': self.lr, 'batch_size': self.batch_size}

        def reconstruct(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            batch = self._rows(x, rows)
            seen = batch
            if self.noise:
                kept = torch.rand(batch.shape, generator=generator, device='cpu', dtype=torch.float32) >= self.noise
                seen = batch * kept.to(batch.device)
            return {'reconstruction': self._reconstruction(self.network_.encoder(seen), batch)}

        def cluster(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            batch = self._rows(x, rows)
            z = self.network_.encoder(batch)
            q = student_assignment(z, self.network_.centers)
            target = self._state.tensors['target'][rows.to(z.device)]
            divergence = nn.functional.kl_div(q.clamp_min(1e-20).log(), target, reduction='batchmean')
            if self.objective == 'dec':
                return {'clustering': divergence}
            return {
                'clustering': self.cluster_weight * divergence,
                'reconstruction': self._reconstruction(z, batch),
            }

        def refresh() -> float | None:
            q = self._soft_labels(x)
            self._state.tensors['target'] = cluster_target(q).to(self.network_.centers.device)
            return label_change(self._state.tensors, q.argmax(-1))

        return [
            Phase('autoencoder', self.pretrain_epochs, reconstruct, **common),
            Phase(
                'clustering', self.epochs, cluster, start=lambda: self._place_centers(x), refresh=refresh,
                refresh_every=self.refresh_every, tol=self.tol, **common,
            ),
        ]  # fmt: skip

    def _reconstruction(self, z: Tensor, batch: Tensor) -> Tensor:
        return (self.network_.decode(z).flatten(1) - batch.flatten(1)).square().mean()

    @torch.no_grad()
    def _place_centers(self, x: Tensor) -> None:
        self.network_.centers.copy_(self._cluster(self._embed(x), 1)[0])
        self._state.tensors['placed'] = torch.ones(1)

    @torch.no_grad()
    def _soft_labels(self, x: Tensor) -> Tensor:
        return self._in_blocks(x, lambda batch: student_assignment(self._encode(batch), self.network_.centers))

    def _finish(self, data: Any) -> None:
        if 'placed' not in self._state.tensors:  # stopped while the autoencoder was trained
            centers, labels = self._cluster(self._embed(data.tensor), 1)
            with torch.no_grad():
                self.network_.centers.copy_(centers)
            self.cluster_centers_, self.labels_ = data.like(centers), data.like(labels)
            return
        super()._finish(data)
        self.cluster_centers_ = data.like(self.network_.centers.detach().to(data.tensor.device))


def label_change(tensors: dict[str, Tensor], labels: Tensor) -> float | None:
    """Return the share of labels that differ from those kept in ``tensors``, and keep the new ones."""
    before = tensors.get('labels')
    tensors['labels'] = labels
    return None if before is None else float((before.to(labels.device) != labels).float().mean())
