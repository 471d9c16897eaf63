# SPDX-License-Identifier: Apache-2.0
"""DEPICT: a denoising convolutional autoencoder and a softmax over clusters, trained together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.estimators._arrays import check_parameter
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.embedded import label_change
from clusterplug.estimators.deep.networks import ConvAutoencoder, initialize, mlp
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import cluster_target
from clusterplug.heads import ClusterSoftmaxHead
from clusterplug.layers import NoisyCleanEncoder
from clusterplug.losses import LayerwiseReconstructionLoss

__all__ = ['DEPICT']

TARGETS = ('dec', 'sqrt', 'none')


class DEPICT(DeepClusterer):
    r"""Clusters of images (or vectors) by relative entropy with a prior on the sizes of the clusters.

    .. math:: L = -\lambda_c \frac{1}{N} \sum_{nk} q_{nk} \log \tilde p_{nk} + \lambda_r L_r, \qquad
              q = \mathrm{target}(p)

    with p the softmax of the clean pass, p-tilde that of the pass with dropout, and L_r the reconstruction of the
    input and of every hidden layer from the noisy embedding. Four phases: autoencoder, k-means of the embedding, warm
    start of the softmax on its labels, joint training. Dividing by the mass of a cluster (``target``) keeps clusters
    from dying out.

    Args:
        n_clusters: K.
        encoder: ``'cnn'`` for images (N, C, H, W), ``'mlp'`` for vectors (N, D).
        channels: Feature maps of the convolutions; widths of the hidden layers of the MLP.
        kernel_sizes, strides, paddings: One, or one for each convolution. Every image size can be inverted.
        embed_dims: Width of the embedding; None = K.
        dropout: Share that is dropped before each layer: one number for all but the embedding's, before which
            nothing is, or one for each of ``len(channels) + 1``.
        lambda_rec: lambda_r. lambda_clu: lambda_c. hidden_weight: Weight of each hidden layer in L_r.
        detach_targets: Stop the gradient into the clean features of L_r.
        target: ``'dec'`` (the official code), ``'sqrt'`` (the formula of the paper) or ``'none'`` (q = p, for
            comparison: clusters may die out).
        target_momentum: None: p of all samples is kept and turned into q before every epoch. A number in [0, 1):
            streaming: only the masses of the clusters are kept, as a moving average over batches with this share of
            the old value, and q follows from the clean pass of the batch.
        pretrain_epochs, head_epochs: At most as many of the first phases. epochs: of the joint phase.
        patience: Epochs without a lower loss that end the autoencoder's phase; None = never.
        batch_size, lr: Of Adam in all phases.
        tol: Share of labels that change between epochs below which the fit ends.
        device, random_state, verbose, checkpoint, checkpoint_every: see :class:`DeepClusterer`.

    Attributes:
        labels_, history_, network_, partial_: see :class:`DeepClusterer`. cluster_sizes_: (K,) samples in each.

    Source: Ghasedi Dizaji et al., "Deep Clustering via Joint Convolutional Autoencoder Embedding and Relative Entropy
    Minimization", ICCV 2017, arXiv 1704.06327; herandy/DEPICT (no license file). **Differs from the authors' code**:
    no split by the true labels; no sample is dropped at the end of an epoch; the first labels are k-means', numbered
    like the columns of the softmax; two forward passes a step, p being that of the clean pass before the step; X is
    centered and scaled as a whole, so the decoder ends linearly and not in tanh; a smaller and faster default.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 8, 8)) + 4 * (np.arange(40) % 2)[:, None, None, None]
        >>> DEPICT(2, channels=(4,), pretrain_epochs=2, head_epochs=1, epochs=2, random_state=0).fit(X).labels_.shape
        (40,)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        encoder: str = 'cnn',
        channels: Sequence[int] = (32, 32),
        kernel_sizes: int | Sequence[int] = 3,
        strides: int | Sequence[int] = 2,
        paddings: int | Sequence[int] = 1,
        embed_dims: int | None = None,
        dropout: float | Sequence[float] = 0.1,
        lambda_rec: float = 1.0,
        lambda_clu: float = 1.0,
        hidden_weight: float = 0.1,
        detach_targets: bool = False,
        target: str = 'dec',
        target_momentum: float | None = None,
        pretrain_epochs: int = 80,
        head_epochs: int = 15,
        epochs: int = 50,
        patience: int | None = 20,
        batch_size: int = 100,
        lr: float = 1e-3,
        tol: float = 1e-3,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.encoder = encoder
        self.channels = channels
        self.kernel_sizes = kernel_sizes
        self.strides = strides
        self.paddings = paddings
        self.embed_dims = embed_dims
        self.dropout = dropout
        self.lambda_rec = lambda_rec
        self.lambda_clu = lambda_clu
        self.hidden_weight = hidden_weight
        self.detach_targets = detach_targets
        self.target = target
        self.target_momentum = target_momentum
        self.pretrain_epochs = pretrain_epochs
        self.head_epochs = head_epochs
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.lr = lr
        self.tol = tol
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_parameter(check_choice, self.encoder, 'encoder', ('cnn', 'mlp'))
        check_parameter(check_choice, self.target, 'target', TARGETS)
        for name, least in (('pretrain_epochs', 0), ('head_epochs', 0), ('epochs', 0)):
            check_parameter(check_count, getattr(self, name), name, least)
        for name in ('embed_dims', 'patience'):
            if getattr(self, name) is not None:
                check_parameter(check_count, getattr(self, name), name, 1)
        for name in ('lambda_rec', 'lambda_clu', 'hidden_weight', 'tol'):
            check_parameter(check_number, getattr(self, name), name, 0)
        if self.target_momentum is not None:
            check_parameter(check_number, self.target_momentum, 'target_momentum', 0, 0.9999)
        if len(self.channels) < 1:
            raise ValueError('channels must hold at least one layer, got none')

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        embed = int(self.n_clusters if self.embed_dims is None else self.embed_dims)
        if self.encoder == 'cnn':
            parts = ConvAutoencoder(
                input_shape, self.channels, embed, device, kernel_sizes=self.kernel_sizes, strides=self.strides,
                paddings=self.paddings, last_activation='tanh',
            )  # fmt: skip
            encoder, decoder = parts.encoder, parts.decoder
        else:
            encoder, decoder = _mlp_stages(input_shape[0], self.channels, embed, device)
        network = nn.Module()
        shares = self.dropout if isinstance(self.dropout, Sequence) else [*[self.dropout] * len(self.channels), 0.0]
        network.encoder = NoisyCleanEncoder(encoder, dropout=shares)
        network.decoder = decoder
        with torch.device('meta'):  # elsewhere Linear draws its first values from the global generator
            network.head = ClusterSoftmaxHead(embed, int(self.n_clusters))
        network.head.to_empty(device=device)
        return network

    def _initialize(self, network: nn.Module, generator: torch.Generator, own: nn.Module | None) -> None:
        initialize(network, generator, kind='glorot')

    def _make_phases(self, x: Tensor) -> list[Phase]:
        reconstruction = LayerwiseReconstructionLoss(self.hidden_weight, self.detach_targets)
        common: dict[str, Any] = {'lr': self.lr, 'batch_size': self.batch_size}

        def passes(rows: Tensor, generator: torch.Generator, weight: float) -> tuple[dict, Tensor, Tensor]:
            batch = self._rows(x, rows)
            noisy, clean = self.network_.encoder(batch, generator)
            outputs = _decode(self.network_.decoder, noisy[-1])[::-1]
            terms = {'reconstruction': weight * reconstruction(outputs, [batch, *clean[:-1]])}
            return terms, self.network_.head(noisy[-1]), clean[-1]

        def autoencoder(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return passes(rows, generator, 1.0)[0]

        def warm_start(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            terms, logits, _ = passes(rows, generator, self.lambda_rec)
            first = self._state.tensors['first'][rows.to(logits.device)]
            return {**terms, 'clustering': self.lambda_clu * nn.functional.cross_entropy(logits, first)}

        def joint(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            terms, logits, embedding = passes(rows, generator, self.lambda_rec)
            with torch.no_grad():
                p = self.network_.head(embedding.detach()).softmax(-1)
            target = self._batch_target(p, rows.to(p.device))
            return {**terms, 'clustering': self.lambda_clu * self.network_.head.loss(logits, target)}

        return [
            Phase('autoencoder', self.pretrain_epochs, autoencoder, patience=self.patience, **common),
            Phase('warm start', self.head_epochs, warm_start, start=lambda: self._start_head(x), **common),
            Phase(
                'joint', self.epochs, joint, start=lambda: self._start_joint(x), refresh=lambda: self._refresh(),
                tol=self.tol, **common,
            ),
        ]  # fmt: skip

    @torch.no_grad()
    def _start_head(self, x: Tensor) -> None:
        centers, labels = self._cluster(self._embed(x), 1)
        self.network_.head.init_centers(centers)
        self._state.tensors['first'] = labels.to(self._device)

    @torch.no_grad()
    def _start_joint(self, x: Tensor) -> None:
        p = self._soft_labels(x).to(self._device)
        if self.target_momentum is None:
            self._state.tensors['p'] = p
        else:
            self._state.tensors['mass'] = p.mean(0)
            self._state.tensors['now'] = p.argmax(-1)

    def _refresh(self) -> float | None:
        """Turn what the last epoch saw of p into targets; return the share of labels that changed."""
        tensors = self._state.tensors
        if self.target_momentum is not None:
            return label_change(tensors, tensors['now'].clone())
        p = tensors['p']
        tensors['q'] = p.clone() if self.target == 'none' else cluster_target(p, self.target)
        return label_change(tensors, p.argmax(-1))

    @torch.no_grad()
    def _batch_target(self, p: Tensor, rows: Tensor) -> Tensor:
        """Return the targets of a batch, and keep its clean p for those of the next epoch."""
        tensors = self._state.tensors
        if self.target_momentum is None:
            tensors['p'][rows] = p
            return tensors['q'][rows]
        tensors['now'][rows] = p.argmax(-1)
        momentum = self.target_momentum
        tensors['mass'] = momentum * tensors['mass'] + (1 - momentum) * p.mean(0)
        return p if self.target == 'none' else cluster_target(p, self.target, mass=tensors['mass'])

    def _encode(self, batch: Tensor) -> Tensor:
        return self.network_.encoder.encode(batch)[-1]

    @torch.no_grad()
    def _soft_labels(self, x: Tensor) -> Tensor:
        return self._in_blocks(x, lambda batch: self.network_.head(self._encode(batch)).softmax(-1))

    def _finish(self, data: Any) -> None:
        if 'first' not in self._state.tensors:  # stopped while the autoencoder was trained
            centers, labels = self._cluster(self._embed(data.tensor), 1)
            self.network_.head.init_centers(centers)
            self.labels_ = data.like(labels)
        else:
            super()._finish(data)
        labels = torch.as_tensor(self.labels_)
        self.cluster_sizes_ = data.like(torch.bincount(labels, minlength=int(self.n_clusters)))

    @property
    def _n_features_out(self) -> int:
        return int(self.n_clusters if self.embed_dims is None else self.embed_dims)


def _decode(decoder: nn.ModuleList, z: Tensor) -> list[Tensor]:
    outputs = []
    for stage in decoder:
        z = stage(z)
        outputs.append(z)
    return outputs


def _mlp_stages(in_features: int, hidden: Sequence[int], embed: int, device: torch.device):
    """Stages of an encoder and a decoder of linear layers."""
    widths = [in_features, *hidden, embed]
    encoder = [nn.Sequential(*mlp(pair, device), nn.LeakyReLU(0.01)) for pair in zip(widths[:-2], widths[1:-1])]
    encoder.append(nn.Sequential(*mlp(widths[-2:], device), nn.Tanh()))
    back = widths[::-1]
    decoder = [nn.Sequential(*mlp(pair, device), nn.LeakyReLU(0.01)) for pair in zip(back[:-2], back[1:-1])]
    decoder.append(mlp(back[-2:], device))
    return nn.Sequential(*encoder), nn.ModuleList(decoder)
