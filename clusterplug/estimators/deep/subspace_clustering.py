# SPDX-License-Identifier: Apache-2.0
"""Deep subspace clustering: samples that express each other in the input and in every layer of an encoder."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.estimators._arrays import check_parameter
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.networks import make_autoencoder
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import projection_energy, self_expression, spectral_clustering, top_coefficients
from clusterplug.losses import SelfExpressionLoss

__all__ = ['DeepSubspaceClustering']

# Numbers of n x n matrices that a fit holds at once: coefficients, gradient, two of Adam, the affinity, a copy.
_SQUARES = 8


class DeepSubspaceClustering(DeepClusterer):
    r"""Clusters as linear subspaces, from coefficients that express each sample by the others in every layer.

    In order, without weights between the terms: an autoencoder is trained; one matrix C without diagonal is found that
    expresses the samples in the input and in all layers of the encoder,
    :math:`\min_C \sum_l \| C H_l - H_l \|^2` (:class:`~clusterplug.losses.SelfExpressionLoss`, each layer divided by
    its energy); the ``subspace_dim`` largest coefficients of each sample make the affinity that spectral clustering
    cuts. Each phase stops itself when its loss has come to rest, so no label decides anything.

    Args:
        n_clusters: K.
        subspace_dim: Coefficients kept for each sample, and the dimension of the subspaces of :meth:`predict`: 9 for
            faces under any light, 3 for the motion of a rigid body.
        solver: ``'closed_form'``: C from one factorization, encoder from the autoencoder alone. ``'gradient'``: C and
            the encoder are trained together by Adam, as the authors do.
        ridge: Of the closed form, as a share of the mean squared length of the samples; 0.01 to 0.1 suits most data.
        structured_epochs: Epochs of the structured norm after ``'gradient'`` (penalty on coefficients between the
            present clusters); 0 leaves it out.
        encoder: ``'mlp'``, ``'cnn'`` or a module; see :class:`DeepClusterer`.
        hidden: Widths of the MLP. channels: feature maps of the CNN.
        embed_dims: Width of the embedding.
        pretrain_epochs: Epochs of the autoencoder at most.
        epochs: Epochs of self-expression at most, for ``'gradient'``.
        stop_tol: A phase ends when its loss falls by a smaller share than this in an epoch, on average of the last
            ten; the autoencoder not before half of its epochs.
        batch_size: Samples of a step of the autoencoder; self-expression takes all at once.
        lr: Learning rate of Adam.
        device, random_state, verbose, checkpoint, checkpoint_every: see :class:`DeepClusterer`.

    Attributes:
        labels_, history_, network_, partial_: see :class:`DeepClusterer`. coef_: (N, N) C; row i expresses sample i.
        affinity_: (N, N). subspaces_: (K, D, subspace_dim) bases of the clusters in the
        input, centered and scaled as for the encoder, for :meth:`predict`. Memory: about eight N x N matrices in fp32.

    Source: Sindicic and Kopriva, "Label-independent hyperparameter-free self-supervised single-view deep subspace
    clustering", arXiv 2504.18179; code lovro-sinda/LIHFSS-SVDSC (no license). **Differs from the authors' code**:
    trained by reconstruction (their distance term has the minimum 0); no diagonal; closed form by default; stops
    itself (theirs has fixed counts); top-k is an argument; labels of the data are never read; new samples can be
    labeled.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(size=(30, 2)) @ rng.normal(size=(2, 20)) for _ in range(3)])
        >>> model = DeepSubspaceClustering(3, 2, hidden=(16,), embed_dims=8, pretrain_epochs=5, random_state=0).fit(X)
        >>> model.coef_.shape, len(set(model.labels_)), bool((model.predict(X) == model.labels_).mean() > 0.9)
        ((90, 90), 3, True)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        subspace_dim: int = 9,
        *,
        solver: str = 'closed_form',
        ridge: float = 0.03,
        structured_epochs: int = 0,
        encoder: Any = 'mlp',
        hidden: Sequence[int] = (128,),
        channels: Sequence[int] = (8, 16),
        embed_dims: int = 64,
        pretrain_epochs: int = 100,
        epochs: int = 300,
        stop_tol: float = 5e-3,
        batch_size: int = 256,
        lr: float = 1e-3,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.subspace_dim = subspace_dim
        self.solver = solver
        self.ridge = ridge
        self.structured_epochs = structured_epochs
        self.encoder = encoder
        self.hidden = hidden
        self.channels = channels
        self.embed_dims = embed_dims
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.stop_tol = stop_tol
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_parameter(check_choice, self.solver, 'solver', ('closed_form', 'gradient'))
        for name, least in (
            ('subspace_dim', 1), ('embed_dims', 1), ('pretrain_epochs', 0), ('epochs', 0), ('structured_epochs', 0),
        ):  # fmt: skip
            check_parameter(check_count, getattr(self, name), name, least)
        if self.structured_epochs and self.solver != 'gradient':
            raise ValueError(
                f"structured_epochs={self.structured_epochs} needs solver='gradient', got {self.solver!r}; set it to 0"
            )
        check_parameter(check_number, self.ridge, 'ridge', 1e-12)
        check_parameter(check_number, self.stop_tol, 'stop_tol', 0, 1)

    def _check_enough(self, num_samples: int) -> None:
        super()._check_enough(num_samples)
        if 1 < num_samples <= self.subspace_dim:
            raise ValueError(
                f'n_samples={num_samples} should be > subspace_dim={self.subspace_dim}: a sample is expressed by at '
                f'most {num_samples - 1} others; lower subspace_dim'
            )
        needed = _SQUARES * 4 * num_samples**2
        if needed > 32 << 30:
            raise ValueError(
                f'n_samples={num_samples} needs {needed:,} bytes of {_SQUARES} square matrices; fit a sample and label '
                f'the rest with predict'
            )

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        network = make_autoencoder(self.encoder, input_shape, self.hidden, self.channels, self.embed_dims, device)
        network.expression = SelfExpressionLoss(max(2, self._num_samples), normalize_layers=True).to(device)
        return network

    def _start(self, x: Tensor) -> None:
        self._num_samples = len(x)
        super()._start(x)

    def _restore(self, arrays: dict, header: dict, path: Any) -> None:
        self._num_samples = int(header['run']['fingerprint'][0])
        super()._restore(arrays, header, path)

    def _make_phases(self, x: Tensor) -> list[Phase]:
        def reconstruct(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            batch = self._rows(x, rows)
            output = self.network_.decode(self.network_.encoder(batch))
            return {'reconstruction': (output.flatten(1) - batch.flatten(1)).square().mean()}

        def express(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return {'self_expression': self.network_.expression(self._layers(self._rows(x, slice(None))))}

        def structure(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            labels = self._state.tensors['labels'].to(self.network_.expression.coefficients.device)
            return {'structured_norm': 10 * self.network_.expression.structured_norm(labels)}

        def cut() -> float | None:
            before = self._state.tensors.get('labels')
            labels = self._cut()
            self._state.tensors['labels'] = labels
            return None if before is None else float((before.to(labels.device) != labels).float().mean())

        def own() -> list[nn.Parameter]:
            return [self.network_.expression.coefficients]

        def others() -> list[nn.Parameter]:
            return [value for name, value in self.network_.named_parameters() if not name.startswith('expression')]

        def trained(losses: list[float]) -> bool:
            # a few steps an epoch leave the loss where it starts for a while, which is no rest
            return 2 * len(losses) >= self.pretrain_epochs and self._settled(losses)

        phases = [
            Phase('autoencoder', self.pretrain_epochs, reconstruct, lr=self.lr, batch_size=self.batch_size,
                  parameters=others, settled=trained),
        ]  # fmt: skip
        if self.solver == 'gradient' and len(x) > 1:
            phases.append(Phase('self-expression', self.epochs, express, lr=self.lr,
                                settled=self._settled))  # fmt: skip
            phases.append(Phase('structured norm', self.structured_epochs, structure, lr=self.lr, parameters=own,
                                refresh=cut, refresh_every=5))  # fmt: skip
        return phases

    def _settled(self, losses: list[float]) -> bool:
        return loss_settled(losses, float(self.stop_tol))

    def _layers(self, batch: Tensor) -> list[Tensor]:
        """The samples and the output of every layer of the encoder after its activation, flat."""
        layers = [batch.flatten(1)]
        steps = self.network_.encoder if isinstance(self.network_.encoder, nn.Sequential) else [self.network_.encoder]
        value = batch
        for number, step in enumerate(steps):
            value = step(value)
            followed = number + 1 < len(steps) and not list(steps[number + 1].parameters())
            if not followed:  # an activation comes next: that is the layer
                layers.append(value.flatten(1))
        return layers

    @torch.no_grad()
    def _solve(self, x: Tensor) -> None:
        """Coefficients in closed form, of layers of equal energy."""
        self.network_.eval()
        scaled = []
        for layer in self._layers(self._rows(x, slice(None))):
            energy = layer.double().square().sum() / len(layer)
            scaled.append(layer.double() / torch.where(energy > 0, energy, 1.0).sqrt())
        c = self_expression(scaled, ridge=float(self.ridge) * len(scaled))
        self.network_.expression.coefficients.copy_(c)

    @torch.no_grad()
    def _warn_of_dead_layers(self, x: Tensor) -> None:
        layers = self._layers(self._rows(x, slice(None)))[1:]
        dead = [number for number, layer in enumerate(layers, 1) if not bool(layer.any())]
        if dead and bool((x != x[:1]).any()):
            warnings.warn(
                f'layers {dead} of the encoder are 0 for every sample (dead ReLU) and say nothing about any; lower lr '
                f'or widen them',
                stacklevel=4,
            )

    def _cut(self) -> Tensor:
        coefficients = self.network_.expression.coef.detach()
        affinity = top_coefficients(coefficients, min(int(self.subspace_dim), len(coefficients)))
        return spectral_clustering(affinity, int(self.n_clusters), affinity='precomputed').labels

    def _finish(self, data: Any) -> None:
        x = data.tensor
        if len(x) < 2:
            labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
            coefficients = affinity = x.new_zeros(len(x), len(x), dtype=torch.float32)
        else:
            self._warn_of_dead_layers(x)
            if self.solver == 'closed_form':
                self._solve(x)
            coefficients = self.network_.expression.coef.detach().to(x.device)
            affinity = top_coefficients(coefficients, min(int(self.subspace_dim), len(x)))
            labels = self._cut().to(x.device)
        self.coef_, self.affinity_, self.labels_ = (data.like(each) for each in (coefficients, affinity, labels))
        self.subspaces_ = data.like(self._bases(self._rows(x, slice(None)).flatten(1).to(x.device), labels))

    def _bases(self, flat: Tensor, labels: Tensor) -> Tensor:
        dim = min(int(self.subspace_dim), flat.shape[1])
        member = nn.functional.one_hot(labels, int(self.n_clusters)).to(flat.dtype)
        bases = []
        for own in member.unbind(1):
            moment = (flat * own[:, None]).mT.double() @ flat.double()
            bases.append(torch.linalg.eigh(moment)[1][:, -dim:].flip(1).float())
        return torch.stack(bases)

    def _label(self, x: Tensor) -> Tensor:
        """The subspace that holds the largest share of a sample."""
        bases = torch.as_tensor(self.subspaces_)

        def nearest(batch: Tensor) -> Tensor:
            flat = batch.flatten(1)
            return projection_energy(flat, bases.to(flat.device)).argmax(1)

        return self._in_blocks(x, nearest)

    def _soft_labels(self, x: Tensor) -> Tensor:
        """Shares of the energy in each subspace, normalized over the subspaces."""
        bases = torch.as_tensor(self.subspaces_)

        def shares(batch: Tensor) -> Tensor:
            energy = projection_energy(batch.flatten(1), bases.to(batch.device)).clamp_min(1e-30)
            return energy / energy.sum(1, keepdim=True)

        return self._in_blocks(x, shares)


def loss_settled(losses: list[float], tol: float, patience: int = 10) -> bool:
    """Return whether the loss fell by less than a share ``tol`` in an epoch, on average of the last ``patience``."""
    if len(losses) <= patience:
        return False
    before, now = losses[-patience - 1], losses[-1]
    if before <= 0 or now <= 0:
        return True
    return 1 - (now / before) ** (1 / patience) < tol
