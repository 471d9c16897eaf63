# SPDX-License-Identifier: Apache-2.0
"""An auto-encoder whose latent moves by a linear map: roll-outs, spectrum and modes of sequences."""

import copy
import numbers
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.files import save_arrays
from clusterplug.core.numerics import recording
from clusterplug.estimators._arrays import make_generator
from clusterplug.estimators._base import NotFittedError, SavedEstimator
from clusterplug.estimators.deep._storage import begin_header, open_header, pack_value, unpack_value
from clusterplug.functional import spectral_entropy
from clusterplug.losses import KoopmanLoss

__all__ = ['KoopmanAutoencoder']


class KoopmanAutoencoder(SavedEstimator):
    r"""Encode the states of sequences so that the next latent is a linear map of the last one.

    .. math:: z_t = f(x_t), \quad z_{t+1} \approx z_t K, \quad x_t \approx g(z_t)

    trained by the errors of reconstruction and of one-step prediction, and by
    :class:`~clusterplug.losses.KoopmanLoss`. All steps of a window are encoded once.

    Args:
        latent_dim: Width of z.
        hidden: Widths of the MLP, in reverse order for the decoder. () = linear.
        encoder: A module from (N, D) to (N, latent_dim) instead of the MLP; then ``decoder`` must be given too. Copies
            are trained, ``encoder_`` and ``decoder_``.
        decoder: Back.
        operator: K, 'learned', 'ridge' or 'orthogonal' (no mode grows or dies).
        window: Steps of a training window.
        reconstruction_weight: Of the reconstruction, next to the prediction's 1.
        contrast_weight: Of the temporal contrast.
        consistency_weight: Of the latent one-step error.
        entropy_weight: Of the entropy of latents, which is maximized.
        num_neighbors: Of the temporal contrast.
        temperature: Of it.
        ridge: Of operator='ridge'.
        epochs: Passes over all windows.
        batch_size: Windows of a step.
        lr: Of Adam; gradients are clipped to norm 1.
        random_state: Seed of weights and of the order of windows: None, an int, a NumPy or a torch generator.
        verbose: 1 prints the losses of each epoch.

    Attributes:
        operator_: (latent_dim, latent_dim) K, acting on rows.
        scale_: (D,) what features were divided by, their root mean square.
        history_: A dict of mean losses for each epoch.
        effective_dim_: exp of the entropy of the latents of the training data.

    Raises:
        ValueError: In ``fit``: sequences shorter than a window, a window of 2 k + 1 steps or fewer, values that are not
            finite, arguments out of range.

    Source: Cheng et al., "Information Shapes Koopman Representation", ICLR 2026 (arXiv 2510.13025); official code
    Wenxuan52/InformationKoopman (no license). **Differs from the authors' code**: the entropy is maximized, as the
    paper says; one pass over all steps, without dropout; a learned K by default.

    Example:
        >>> time = np.arange(40) / 5
        >>> X = np.stack([np.sin(time), np.cos(time)], 1)[None]
        >>> model = KoopmanAutoencoder(4, hidden=(), epochs=2, window=10, random_state=0).fit(X)
        >>> model.rollout(X[0, 0], 5).shape, model.spectrum().shape
        ((6, 2), (4,))
    """

    def __init__(
        self,
        latent_dim: int = 16,
        *,
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        operator: str = 'learned',
        window: int = 16,
        reconstruction_weight: float = 1.0,
        contrast_weight: float = 0.0,
        consistency_weight: float = 1.0,
        entropy_weight: float = 0.05,
        num_neighbors: int = 3,
        temperature: float = 0.1,
        ridge: float = 0.1,
        epochs: int = 25,
        batch_size: int = 32,
        lr: float = 1e-3,
        random_state: Any = 0,
        verbose: int = 0,
    ):
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.encoder = encoder
        self.decoder = decoder
        self.operator = operator
        self.window = window
        self.reconstruction_weight = reconstruction_weight
        self.contrast_weight = contrast_weight
        self.consistency_weight = consistency_weight
        self.entropy_weight = entropy_weight
        self.num_neighbors = num_neighbors
        self.temperature = temperature
        self.ridge = ridge
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.random_state = random_state
        self.verbose = verbose
        self._check_parameters()

    def _check_parameters(self) -> None:
        check_count(self.latent_dim, 'latent_dim', 1)
        for width in self.hidden:
            check_count(width, 'hidden', 1)
        if (self.encoder is None) != (self.decoder is None):
            raise ValueError('encoder and decoder must be given together, or neither')
        check_choice(self.operator, 'operator', ('ridge', 'learned', 'orthogonal'))
        check_count(self.window, 'window', 2)
        check_number(self.reconstruction_weight, 'reconstruction_weight', 0)
        check_count(self.epochs, 'epochs', 0)
        check_count(self.batch_size, 'batch_size', 1)
        check_number(self.lr, 'lr', above=0)
        reach = 2 * check_count(self.num_neighbors, 'num_neighbors', 1)
        if check_number(self.contrast_weight, 'contrast_weight', 0) and self.window <= reach:
            raise ValueError(f'window must be above 2 * num_neighbors = {reach}, got {self.window}')
        self._make_loss()  # refuses what it would refuse in fit

    def _make_loss(self) -> KoopmanLoss:
        return KoopmanLoss(
            self.latent_dim,
            self.operator,
            ridge=self.ridge,
            num_neighbors=self.num_neighbors,
            temperature=self.temperature,
            contrast_weight=self.contrast_weight,
            consistency_weight=self.consistency_weight,
            entropy_weight=self.entropy_weight,
            gather=False,  # fit is a matter of one process
        )

    @recording()
    def fit(self, X: Any, y: Any = None) -> 'KoopmanAutoencoder':
        """Train on sequences X (B, T, D), or one (T, D)."""
        self._check_parameters()
        self.__dict__.pop('operator_', None)
        x = self._read(X)
        if x.shape[1] < self.window:
            raise ValueError(f'X must hold sequences of at least window = {self.window} steps, got {x.shape[1]}')
        # not centered: an affine map of the states would be no linear one any more
        scale = x.square().mean((0, 1)).sqrt()
        self.scale_ = torch.where(scale > 0, scale, 1.0)
        seed = self.random_state
        if not isinstance(seed, numbers.Integral):
            seed = int(torch.randint(2**62, (), generator=make_generator(seed, torch.device('cpu'))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            self._build(x.shape[-1])
        windows = (x / self.scale_).unfold(1, self.window, 1).movedim(-1, 2).flatten(0, 1)
        generator = torch.Generator().manual_seed(int(seed))
        modules = nn.ModuleList([self.encoder_, self.decoder_, self.loss_]).to(torch.float32)  # as X is
        modules.train().requires_grad_(True)
        trained = list(modules.parameters())  # none where the user's modules have none and K is fitted
        optimizer = torch.optim.Adam(trained, lr=self.lr) if trained else None
        self.history_ = []
        for _ in range(self.epochs if optimizer is not None else 0):
            assert optimizer is not None  # or there is no epoch
            totals: dict[str, float] = {}
            count = 0
            for rows in torch.randperm(len(windows), generator=generator, device='cpu').split(self.batch_size):
                losses = self._losses(windows[rows])
                optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                count += len(rows)
                for name, value in losses.items():
                    totals[name] = totals.get(name, 0.0) + float(value.detach()) * len(rows)
            self.history_.append({name: value / count for name, value in totals.items()})
            self._report(f'epoch {len(self.history_)}: {self.history_[-1]}')
        modules.eval().requires_grad_(False)
        latents = self._encode(x)
        self.operator_ = self.loss_.dynamics(latents).detach().numpy()
        self.effective_dim_ = float(spectral_entropy(latents.flatten(0, 1)).exp())
        radius = float(np.abs(self.spectrum()).max())
        if radius > 1 + 1e-3:
            warnings.warn(
                f"the spectral radius is {radius:.3f}, so that long roll-outs grow; operator='orthogonal' has 1",
                stacklevel=2,
            )
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the latents (B, T, latent_dim) of sequences X (B, T, D), or (T, latent_dim) of one."""
        self._check_fitted()
        return self._encode(self._read(X)).reshape(*np.shape(X)[:-1], self.latent_dim).numpy()

    def rollout(self, x0: Any, steps: int, *, modes: Sequence[int] | None = None) -> np.ndarray:
        """Return the start and ``steps`` predictions: (steps + 1, D) of a state (D,), (B, steps + 1, D) of (B, D).

        The latent is mapped on by K, without decoding in between. With ``modes``, numbers of eigenvalues in the order
        of :meth:`spectrum`, only these take part (a complex one with its conjugate), in the first state as well: what
        a mode is in the states.

        Raises:
            ValueError: A shape that does not fit, or modes that K does not have.
        """
        self._check_fitted()
        start = _states(x0)
        if start.dim() not in (1, 2) or start.shape[-1] != len(self.scale_):
            raise ValueError(f'x0 must be a state ({len(self.scale_)},) or several, got {tuple(start.shape)}')
        z = self._encode(start.view(-1, 1, start.shape[-1]))[:, 0]
        if modes is not None:
            z = z @ self._projector(modes)
        latents, operator = [z], torch.as_tensor(self.operator_)
        for _ in range(check_count(steps, 'steps')):
            latents.append(latents[-1] @ operator)
        found = self._decode(torch.stack(latents, 1))
        if modes is None:
            found[:, 0] = start.view(-1, start.shape[-1])
        return (found if start.dim() == 2 else found[0]).numpy()

    def spectrum(self) -> np.ndarray:
        """Return the complex eigenvalues of K, largest first: inside the unit circle a mode dies, outside it grows.

        ``clusterplug.visualization.save_spectrum`` draws them.
        """
        return self._eigen()[0]

    def modes(self, X: Any) -> np.ndarray:
        r"""Return the complex coordinates of sequences X (B, T, D) in the eigenvectors of K, (B, T, latent_dim).

        .. math:: \phi_j(x_{t+1}) \approx \lambda_j \, \phi_j(x_t)

        in the order of :meth:`spectrum`: modulus and angle of a coordinate are amplitude and phase of its mode. One
        sequence (T, D) gives (T, latent_dim).
        """
        return self.transform(X) @ self._eigen()[1]

    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of K, largest first, and its right eigenvectors in columns."""
        self._check_fitted()
        values, vectors = np.linalg.eig(self.operator_.astype(np.float64))
        # by angle as well, so that two of a conjugate pair are neighbors whatever the last bits of their moduli say
        order = np.lexsort((-values.imag, np.abs(np.angle(values)), -np.abs(values).round(9)))
        return values[order], vectors[:, order]

    def _projector(self, modes: Sequence[int]) -> Tensor:
        """(latent_dim, latent_dim) that keeps the given modes of a row."""
        values, vectors = self._eigen()
        kept = {check_count(each, 'modes', 0, self.latent_dim - 1) for each in modes}
        if not kept:
            raise ValueError('modes must hold at least one number of an eigenvalue')
        wanted = np.array([any(np.isclose(value, values[k].conj()) for k in kept) for value in values])
        wanted[list(kept)] = True
        return torch.as_tensor(np.real((vectors * wanted) @ np.linalg.pinv(vectors)), dtype=torch.float32)

    def _build(self, width: int) -> None:
        sizes = [width, *self.hidden, self.latent_dim]
        self.encoder_ = _mlp(sizes) if self.encoder is None else copy.deepcopy(self.encoder)
        self.decoder_ = _mlp(sizes[::-1]) if self.decoder is None else copy.deepcopy(self.decoder)
        self.loss_ = self._make_loss()

    def _losses(self, batch: Tensor) -> dict[str, Tensor]:
        z = self.encoder_(batch.flatten(0, 1)).view(*batch.shape[:2], -1)
        predicted = z[:, :-1] @ self.loss_.dynamics(z)
        decoded = self.decoder_(torch.cat([z, predicted], 1).flatten(0, 1)).view(len(batch), -1, batch.shape[-1])
        steps = batch.shape[1]
        losses = self.loss_(z)
        losses['loss_reconstruction'] = self.reconstruction_weight * (decoded[:, :steps] - batch).square().mean()
        losses['loss_prediction'] = (decoded[:, steps:] - batch[:, 1:]).square().mean()
        return losses

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Tensor:
        return self.encoder_((x / self.scale_).flatten(0, 1)).view(*x.shape[:2], -1)

    @torch.no_grad()
    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder_(z.flatten(0, 1)).view(*z.shape[:2], -1) * self.scale_

    def _read(self, X: Any) -> Tensor:
        x = _states(X)
        x = x[None] if x.dim() == 2 else x
        if x.dim() != 3 or 0 in x.shape:
            raise ValueError(f'X must have shape (B, T, D) or (T, D), got {np.shape(X)}')
        if not bool(torch.isfinite(x).all()):
            raise ValueError('X must be finite, got NaN or inf; drop those sequences')
        if hasattr(self, 'operator_') and x.shape[-1] != len(self.scale_):
            raise ValueError(f'X must have {len(self.scale_)} features, as in fit, got {x.shape[-1]}')
        return x

    def _check_fitted(self) -> None:
        if not hasattr(self, 'operator_'):
            try:
                from sklearn.exceptions import NotFittedError as error
            except ImportError:
                error = NotFittedError
            raise error("This KoopmanAutoencoder instance is not fitted yet; call 'fit' first")

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write arguments, results and weights into one .npz file, without pickle.

        Modules of your own are written as their weights: ``load(path, encoder=module, decoder=module)``.
        """
        arrays: dict[str, np.ndarray] = {}
        header = begin_header(self, arrays)
        for name, value in vars(self).items():
            if name.endswith('_') and not name.startswith('_'):
                value = dict(value.state_dict()) if isinstance(value, nn.Module) else value
                header['results'][name] = pack_value(f'results.{name}', value, arrays)
        save_arrays(path, arrays, header)

    @classmethod
    def load(cls, path: str | Path, **params: Any) -> 'KoopmanAutoencoder':
        """Read what :meth:`save` wrote; ``params`` replace arguments, and give modules of your own.

        Raises:
            FileNotFoundError, ValueError: The file is missing, cut off, of another class, or a module is needed.
        """
        estimator, arrays, header = open_header(cls, path, params)
        results = {name: unpack_value(value, arrays) for name, value in header['results'].items()}
        if 'scale_' in results:
            with torch.random.fork_rng(devices=[]):  # the start is overwritten
                estimator._build(len(results['scale_']))
            for name in ('encoder_', 'decoder_', 'loss_'):
                module = getattr(estimator, name)
                module.load_state_dict(results.pop(name))
                module.eval().requires_grad_(False)
        for name, value in results.items():
            setattr(estimator, name, value)
        return estimator


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _states(values: Any) -> Tensor:
    """Values as fp32 on the CPU, free of any graph."""
    values = values.detach().cpu() if isinstance(values, Tensor) else np.asarray(values)
    return torch.as_tensor(values, dtype=torch.float32)
