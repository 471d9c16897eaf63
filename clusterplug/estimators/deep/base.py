# SPDX-License-Identifier: Apache-2.0
"""What every deep estimator shares: input, network, training, resume, files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.files import load_arrays, save_arrays
from clusterplug.core.numerics import recordable, recording
from clusterplug.estimators._arrays import Points, check_parameter, make_generator, read_points
from clusterplug.estimators._base import Clusterer, TransformerMixin
from clusterplug.estimators.deep._storage import (
    begin_header,
    open_header,
    pack_run,
    pack_value,
    unpack_run,
    unpack_value,
)
from clusterplug.estimators.deep.networks import initialize
from clusterplug.estimators.deep.training import Phase, TrainingState, train
from clusterplug.functional import kmeans

__all__ = ['DeepClusterer']


# What a run needs of its data, before there are results.
_OF_INPUT = ('shift_', 'scale_', 'input_shape_', 'n_features_in_', 'view_names_', 'view_scaling_')


class DeepClusterer(TransformerMixin, Clusterer):
    """Base of the estimators that train a network: one loop, one look.

    A method says what network it trains (:meth:`_make_network`), in which phases (:meth:`_make_phases`) and how the
    trained network labels samples (:meth:`_soft_labels` or :meth:`_label`). Everything else is here: validation with
    scikit-learn's conventions, batches, progress bar, seeds without global state, Ctrl-C, exact resume, files.

    Common arguments:
        encoder: ``'mlp'`` for X (N, D); ``'cnn'`` for images X (N, C, H, W); or your own module, which maps a batch
            of X, (B, ...) fp32, to (B, embed_dims). It is copied, not changed. Random layers of your own module draw
            from torch's global generator.
        device: Where to train; None = the device of X (the CPU for NumPy).
        random_state: None, an int, a NumPy or a torch generator.
        verbose: 1 shows a progress bar with the loss and the share of labels that changed.
        checkpoint: File that a long fit is written to every ``checkpoint_every`` epochs; ``fit(X, resume=True)`` goes
            on from it, in another process too, with the numbers of a fit that was never stopped.

    Ctrl-C ends a fit with the labels reached so far, ``partial_ = True`` and a warning; ``fit(X, resume=True)`` goes
    on, also after :meth:`save` and :meth:`load`. Networks and embeddings are fp32.

    Attributes:
        labels_: (N,) int64. history_: one dict for each epoch (phase, epoch, loss and its terms, label_change).
        network_: the trained module. partial_: whether the fit was stopped. input_shape_: of one sample.
        n_features_in_: D, for X (N, D).
    """

    @recording()
    def fit(self, X: Any, y: Any = None, *, resume: bool = False) -> 'DeepClusterer':
        """Train on ``X`` and label it. ``y`` is ignored.

        Args:
            X: (N, D), or what the encoder takes.
            y: Ignored.
            resume: Go on with a fit that was stopped, from this object or from the file ``checkpoint``.

        Raises:
            ValueError: An argument is wrong, X is not finite, there are fewer samples than clusters, or there is
                nothing to resume.
        """
        self._check_parameters()
        data = self._read(X, reset=True)
        return self._fit(data, resume)

    def predict(self, X: Any) -> Any:
        """Return the cluster of each sample of ``X``: (N,) int64."""
        self._check_fitted()
        data = self._read(X, reset=False)
        return data.like(self._label(data.tensor))

    def transform(self, X: Any) -> Any:
        """Return the embedding of each sample of ``X``: (N, embed_dims) fp32."""
        self._check_fitted()
        data = self._read(X, reset=False)
        return data.like(self._embed(data.tensor))

    def predict_proba(self, X: Any) -> Any:
        """Return the soft assignment of each sample of ``X`` to the clusters: (N, K) fp32."""
        self._check_fitted()
        data = self._read(X, reset=False)
        return data.like(self._soft_labels(data.tensor))

    # --- what a method gives -----------------------------------------------------------------------------------------

    # set by the constructors
    batch_size: int
    lr: float
    embed_dims: Any
    checkpoint: str | Path | None
    checkpoint_every: int
    device: Any
    random_state: Any

    network_: Any  # what _make_network returned: a module with the parts that the methods of the class name

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        """Return the network; parameters made by skip_init are filled by :meth:`_initialize`."""
        raise NotImplementedError(f'{type(self).__name__} must define _make_network')

    def _make_phases(self, x: Tensor) -> list[Phase]:
        """Return the phases; they find the network in ``self.network_`` and keep tensors in ``self._state``."""
        raise NotImplementedError(f'{type(self).__name__} must define _make_phases')

    def _soft_labels(self, x: Tensor) -> Tensor:
        """Return the soft assignment (N, K) of samples on any device."""
        raise NotImplementedError(f'{type(self).__name__} must define _soft_labels')

    def _label(self, x: Tensor) -> Tensor:
        """Return the labels of samples."""
        return self._soft_labels(x).argmax(-1)

    def _initialize(self, network: nn.Module, generator: torch.Generator, own: nn.Module | None) -> None:
        """Give the layers their first values; those of the user's module ``own`` stay as they are."""
        initialize(network, generator, skip=own)

    def _finish(self, data: Points) -> None:
        """Set the results, after the last phase and after Ctrl-C alike."""
        self.labels_ = data.like(self._label(data.tensor))

    def _check_parameters(self) -> None:
        check_parameter(check_count, self.n_clusters, 'n_clusters', 1)
        check_parameter(check_count, self.batch_size, 'batch_size', 1)
        check_parameter(check_number, self.lr, 'lr', 0)
        check_parameter(check_count, self.checkpoint_every, 'checkpoint_every', 1)
        encoder = self._encoder_kind
        if not isinstance(encoder, nn.Module):
            check_parameter(check_choice, encoder, 'encoder', ('mlp', 'cnn'), ' or a torch.nn.Module')

    @property
    def _encoder_kind(self) -> Any:
        return getattr(self, 'encoder', 'mlp')

    # --- input -------------------------------------------------------------------------------------------------------

    def _read(self, X: Any, *, reset: bool) -> Points:
        """Return the checked samples; X may be anything with one row a sample where the encoder is not an MLP."""
        if isinstance(self._encoder_kind, str) and self._encoder_kind == 'mlp':
            points = read_points(self, X, reset=reset)
        else:
            points = _read_any(X, 4 if isinstance(self._encoder_kind, str) else None)
        points = points._replace(tensor=recordable(points.tensor))
        shape = tuple(points.tensor.shape[1:])
        if reset:
            self.input_shape_ = shape
        elif shape != tuple(self.input_shape_):
            raise ValueError(f'X must hold samples of shape {tuple(self.input_shape_)} as in fit, got {shape}')
        return points

    def _check_enough(self, num_samples: int) -> None:
        if num_samples < self.n_clusters:
            raise ValueError(
                f'n_samples={num_samples} should be >= n_clusters={self.n_clusters}; ask for fewer clusters'
            )

    def _rows(self, x: Tensor, rows: Tensor | slice) -> Tensor:
        """Return a batch in fp32 on the device of the network, moved and scaled as in fit."""
        batch = x[rows.to(x.device) if isinstance(rows, Tensor) else rows]
        device = next(self.network_.parameters()).device
        # Scaled in the type of X: far from the origin fp32 would already have lost the digits.
        shift, scale = self._scaling
        if shift is not None:
            batch = (batch.to(shift.dtype) - shift.to(batch.device)) * scale
        return batch.to(device, torch.float32)

    def _fit_scaling(self, x: Tensor) -> None:
        """Center every feature and bring the mean square to 1, in fp64; own modules get X as it is."""
        if not isinstance(self._encoder_kind, str):
            self.shift_, self.scale_ = None, 1.0
            return
        values = x.double()
        shift = values.mean(0)
        # twice, so that neither sum of squares nor its root leave the range of fp64
        centered = values - shift
        largest = float(centered.abs().max())
        rms = largest * float((centered / largest).square().mean().sqrt()) if largest > 0 else 0.0
        self.shift_, self.scale_ = shift.cpu().numpy(), 1 / rms if rms > 0 else 1.0

    @property
    def _scaling(self) -> tuple[Tensor | None, float]:
        return (None if self.shift_ is None else torch.from_numpy(self.shift_)), self.scale_

    # --- training ----------------------------------------------------------------------------------------------------

    def _fit(self, data: Points, resume: bool) -> 'DeepClusterer':
        self._check_enough(len(data.tensor))
        self._device = torch.device(self.device if self.device is not None else data.tensor.device)
        if resume:
            self._load_progress(data.tensor)
        else:
            self._start(data.tensor)
        phases = self._make_phases(data.tensor)
        complete = self._train(phases, data.tensor)
        self.partial_ = not complete
        self.history_ = self._state.history
        self._finish(data)
        if self.checkpoint is not None:
            self.save(self.checkpoint)
        if complete:
            self._state.optimizer = None
            self._warn_if_fewer(self.labels_)
        else:
            warnings.warn(
                f'{type(self).__name__} was stopped in phase {min(self._state.phase, len(phases) - 1) + 1} of '
                f'{len(phases)}: labels_ are those reached so far; fit(X, resume=True) goes on',
                stacklevel=3,
            )
        return self

    def _start(self, x: Tensor) -> None:
        generator = make_generator(self.random_state, torch.device('cpu'))
        self._seed = int(torch.randint(2**62, (), generator=generator, device='cpu'))
        self._fit_scaling(x)
        # fp32 whatever torch's default type is, as the batches are
        self.network_ = self._make_network(tuple(self.input_shape_), self._device).to(self._device, torch.float32)
        own = getattr(self.network_, 'encoder', None) if isinstance(self._encoder_kind, nn.Module) else None
        self._initialize(self.network_, self._make_generator(0), own)
        self._state = TrainingState()

    def _make_generator(self, number: int) -> torch.Generator:
        """Return a generator on the CPU that follows from the seed and a number; 0 .. 99 are for the method."""
        return torch.Generator('cpu').manual_seed((self._seed + 0x632BE59BD9B4E019 * (number + 1)) % 2**63)

    def _train(self, phases: list[Phase], x: Tensor) -> bool:
        self._fingerprint = _fingerprint(x)

        def epoch_done():
            if self.checkpoint is not None and self._state.epoch % self.checkpoint_every == 0:
                self._write(self.checkpoint, results=False)

        return train(
            self.network_, phases, self._state, len(x), seed=self._seed, verbose=self.verbose, epoch_done=epoch_done
        )

    def _load_progress(self, x: Tensor) -> None:
        if self.checkpoint is not None and Path(self.checkpoint).is_file():
            arrays, header = load_arrays(self.checkpoint)
            self._restore(arrays, header, self.checkpoint)
        if getattr(self, '_state', None) is None:
            raise ValueError(
                'resume=True needs a fit that was stopped: none in this object'
                + (f', and no file {self.checkpoint}' if self.checkpoint is not None else '')
                + '; call fit(X) first'
            )
        if self._fingerprint != _fingerprint(x):
            raise ValueError(
                f'resume=True needs the X of the fit that was stopped (number of samples, sum: {self._fingerprint}), '
                f'got {_fingerprint(x)}'
            )
        self.network_.to(self._device)

    # --- embedding ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _embed(self, x: Tensor) -> Tensor:
        """Return the embeddings of all samples, computed in blocks, on the device of ``x``."""
        return self._in_blocks(x, self._encode)

    def _encode(self, batch: Tensor) -> Tensor:
        return self.network_.encoder(batch)

    @torch.no_grad()
    def _in_blocks(self, x: Tensor, compute: Any, size: int = 1024) -> Tensor:
        training = self.network_.training
        self.network_.eval()
        parts = [compute(self._rows(x, slice(first, first + size))).to(x.device) for first in range(0, len(x), size)]
        self.network_.train(training)
        return torch.cat(parts)

    def _cluster(self, z: Tensor, number: int, starts: int = 20) -> tuple[Tensor, Tensor]:
        """Return centers (K, D) and labels of the best of several k-means of embeddings."""
        z = z.float()
        starts = max(1, min(starts, 20_000_000 // max(1, z.numel())))  # the starts run at once, on copies
        generator = self._make_generator(number)
        if z.device.type != 'cpu':
            seed = int(torch.randint(2**62, (), generator=generator, device='cpu'))
            generator = torch.Generator(z.device).manual_seed(seed)
        result = kmeans(z.expand(starts, *z.shape).contiguous(), self.n_clusters, tol=1e-6, generator=generator)
        best = int(result.inertia.argmin())
        return result.centers[best], result.labels[best]

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write arguments, results, the network and the state of training into one .npz file, without pickle.

        A module of your own is written as its weights: give it again as ``load(path, encoder=module)``.
        """
        self._write(path, results=True)

    def _write(self, path: str | Path, *, results: bool) -> None:
        arrays: dict[str, np.ndarray] = {}
        header = begin_header(self, arrays)
        for name, value in vars(self).items():
            is_result = name.endswith('_') and not name.startswith('_') and name != 'network_'
            if is_result and (results or name in _OF_INPUT):
                header['results'][name] = pack_value(f'results.{name}', value, arrays)
        if getattr(self, '_state', None) is not None:
            header['run'] = pack_run(self._state, self.network_, arrays)
            header['run'].update(seed=self._seed, fingerprint=self._fingerprint)
        save_arrays(path, arrays, header)

    @classmethod
    def load(cls, path: str | Path, **params: Any) -> 'DeepClusterer':
        """Read what :meth:`save` wrote, on the CPU.

        Args:
            path: The file.
            **params: Arguments to use instead of the written ones; modules and callables, which are not in the file,
                have to be given.

        Raises:
            FileNotFoundError, ValueError: The file is missing, cut off, of another class, or a module is needed.
        """
        estimator, arrays, header = open_header(cls, path, params)
        for name, value in header['results'].items():
            setattr(estimator, name, unpack_value(value, arrays))
        if 'run' in header:
            estimator._device = torch.device('cpu')
            estimator._restore(arrays, header, path)
        return estimator

    def _restore(self, arrays: dict[str, np.ndarray], header: dict, path: Any) -> None:
        if header.get('class') != type(self).__name__ or 'run' not in header:
            raise ValueError(f'{path} holds no training of a {type(self).__name__}; choose another file')
        for name in _OF_INPUT:
            if name in header['results']:
                setattr(self, name, unpack_value(header['results'][name], arrays))
        self._seed, self._fingerprint = header['run']['seed'], header['run']['fingerprint']
        self.network_ = self._make_network(tuple(self.input_shape_), self._device)
        self._state = unpack_run(header['run'], self.network_, arrays, self._device)
        self.network_.eval()

    # --- scikit-learn ------------------------------------------------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return int(self.embed_dims)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # embeddings are fp32
        return tags


def _fingerprint(x: Tensor) -> list:
    """What tells the X of another fit: number of samples, sum of the values (the digits that fp32 keeps)."""
    total = x.checksum() if hasattr(x, 'checksum') else float(x.double().sum())
    return [len(x), f'{total:.6g}']


def _read_any(X: Any, dims: int | None) -> Points:
    is_torch = isinstance(X, Tensor)
    if not is_torch:
        array = np.asarray(X)
        if array.dtype == object or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise ValueError(f'X must hold real numbers, got {array.dtype}; convert it first')
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        X = torch.from_numpy(array)
    if X.is_complex():
        raise ValueError(f'X must hold real numbers, got {X.dtype}; convert it first')
    tensor = X.detach() if X.is_floating_point() else X.detach().float()
    if (dims is not None and tensor.dim() != dims) or tensor.dim() < 2 or 0 in tensor.shape:
        wanted = '(N, C, H, W)' if dims == 4 else '(N, ...)'
        raise ValueError(f'X must have shape {wanted} with at least one sample, got {tuple(tensor.shape)}')
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError('X must be finite, got NaN or infinity; drop or impute those samples')
    return Points(tensor, is_torch)
