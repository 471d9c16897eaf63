# SPDX-License-Identifier: Apache-2.0
"""Linear removal of position from patch features, in one pass over the data."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.estimators._arrays import check_parameter
from clusterplug.estimators._base import NotFittedError, SavedEstimator, TransformerMixin
from clusterplug.estimators._erasure_maps import as_tensor, leace, read_tokens, stepwise
from clusterplug.estimators._moments import Moments, probe_r2

MODES = ('leace', 'iterative', 'sigmoid')
_BLOCK, _HELD_OUT = 8192, 5  # rows at once; every fifth part of the rows is for the probe


class PositionEraser(TransformerMixin, SavedEstimator):
    r"""Find a D x D matrix after which no linear probe reads the position of a token from its feature.

    With :math:`\Sigma` the covariance of the features z, and C their cross-covariance with the positions y:

    - ``mode='leace'``: :math:`P = I - \Sigma^{-1/2} \Pi \Sigma^{1/2}`, :math:`\Pi` the projector on the span of
      :math:`\Sigma^{-1/2} C`: of all maps that make the cross-covariance 0, the one that moves the features least.
      One shot; a projector, not symmetric; acts on z minus its mean.
    - ``mode='iterative'``: ``n_iter`` times, the directions that predict y best (least squares) are made orthogonal to
      those before and removed: :math:`P = I - U U^\top`, symmetric, of rank D - p ``n_iter``.
    - ``mode='sigmoid'``: the same with the published objective, the squared error of sigmoid(W z) against positions
      scaled to 0 .. 1, without a bias.

    Everything but ``'sigmoid'`` needs the running sums of z z^T and z y^T only: one pass over the data, also in parts
    (:meth:`partial_fit`), then algebra in float64. On trained vision transformers 8 iterations leave much of the
    position (see docs/methods/franca.md); ``'leace'`` leaves nothing linear.

    Args:
        n_iter: Iterations of the two loops; each removes p directions. ``'leace'`` has none.
        mode: What is removed, see above.
        verbose: 1 prints the held-out R^2 after each iteration.

    Attributes:
        projection_: (D, D) P; ``transform`` is z @ P (for ``'leace'``: (z - mean) @ P + mean).
        bias_: (D,) what is added after the product, 0 for the loops.
        mean_: (D,) mean of the features.
        directions_: (p n_iter, D) orthonormal rows U^T of the loops, (p, D) rows that span what ``'leace'`` reads.
        r2_: array, R^2 of the position by a ridge probe on held-out rows (every fifth part of the data) before, and
            after each iteration. For these figures both the removal and the probe are fitted on the other rows; the
            matrix is that of all rows. Without enough rows to hold some out, all rows stand for both.
        energy_: fraction of the variance of the features (of all rows) that is left.
        n_iter_: iterations done; fewer where no linear trace of the positions is left.
        n_features_in_: D. Arrays are of the kind of the data (NumPy or tensor), in float64.

    Raises:
        ValueError: Positions that do not fit the features or do not vary, NaN or infinity, at most D rows, more
            directions than channels, an unknown mode.
        NotFittedError: A use before ``fit``.

    Warns:
        UserWarning: A loop ended with a held-out R^2 above 0.1.

    Source: RASA of Venkataramanan et al., "Franca", arXiv 2507.14137, section 3.4, official code valeoai/Franca
    (Apache-2.0); LEACE of Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023, arXiv
    2306.03819 (package concept-erasure, MIT). **Differs from the authors' code**: RASA trains each step by AdamW over
    five epochs of augmented images, and its directions are not orthogonal to earlier ones, so that position is damped
    and not removed; here each step is solved (closed form, or L-BFGS for ``'sigmoid'``) in the orthogonal complement.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> positions = rng.random((500, 2))
        >>> X = rng.standard_normal((500, 6)) + positions @ rng.standard_normal((2, 6))
        >>> eraser = PositionEraser().fit(X, positions)
        >>> erased = eraser.transform(X)
        >>> bool(np.abs((erased - erased.mean(0)).T @ (positions - positions.mean(0))).max() < 1e-9)
        True
    """

    n_features_in_: int
    r2_: np.ndarray

    def __init__(self, n_iter: int = 8, mode: str = 'leace', *, verbose: int = 0):
        self.n_iter = n_iter
        self.mode = mode
        self.verbose = verbose

    def fit(self, features: Any, positions: Any) -> 'PositionEraser':
        """Learn the matrix.

        Args:
            features: (N, D), or (..., L, D) such as images x tokens, array or tensor.
            positions: (N, p) or (N,), p = 1, 2, 3 or any number of coordinates in any unit; or (L, p), the same for all
                images.
        """
        self._check_parameters()
        self._forget()
        self._add(features, positions)
        self._solve()
        return self

    def partial_fit(self, features: Any, positions: Any) -> 'PositionEraser':
        """Take in one more part of the data, as in :meth:`fit`; the matrix is that of all parts so far.

        Parts add up in float64; while there are at most D rows there is no matrix yet. Not for ``mode='sigmoid'``.
        """
        self._check_parameters()
        if self.mode == 'sigmoid':
            raise ValueError("mode 'sigmoid' passes over the data many times; use fit, or another mode")
        if not hasattr(self, '_parts'):
            self._forget()
        self._add(features, positions)
        if self._parts[0].merged(self._parts[1]).count > self.n_features_in_:
            self._solve()
        return self

    def transform(self, features: Any) -> Any:
        """Return features (..., D) without position, in their kind and type."""
        self._check_fitted()
        is_torch = isinstance(features, Tensor)
        z = features if is_torch else as_tensor(features)
        if not z.is_floating_point():
            z = z.to(torch.get_default_dtype() if is_torch else torch.float64)
        if not z.dim() or z.shape[-1] != self.n_features_in_:
            raise ValueError(
                f'features has {z.shape[-1] if z.dim() else 0} features, but {type(self).__name__} is expecting '
                f'{self.n_features_in_} features as input'
            )
        with exact_products(z):
            projection, bias, mean = (self._tensor(name).to(z.device) for name in ('projection_', 'bias_', 'mean_'))
            dtype = working_dtype(z.dtype)
            if self.mode == 'leace':  # around the mean: the bias and the product cancel digits far from the origin
                result = (z.to(dtype) - mean.to(dtype)) @ projection.to(dtype) + mean.to(dtype)
            else:
                result = z.to(dtype) @ projection.to(dtype) + bias.to(dtype)
        result = result.to(z.dtype)
        return result if is_torch else result.numpy()

    def fold_into(self, module: nn.Module) -> nn.Module:
        """Return ``module`` such that it gives erased features itself, at no cost.

        - ``nn.Linear`` with D outputs: its weight and bias are changed in place (a bias is added where there is none).
        - ``nn.LayerNorm`` over D channels: returns a new ``nn.Sequential`` of the normalization without its affine part
          and one ``nn.Linear``; put it in the place of the old one.
        - a vision transformer whose last norm is such a LayerNorm, in its attribute ``norm`` (timm, DINOv2),
          ``layernorm`` (transformers) or ``encoder.ln`` (torchvision): that is replaced.

        Raises:
            TypeError: Any other module.
            ValueError: Another number of channels.
        """
        self._check_fitted()
        if isinstance(module, nn.Linear):
            self._check_width(module.out_features, module)
            self._fold(module, module.weight, module.bias)
            return module
        if isinstance(module, nn.LayerNorm):
            self._check_width(module.normalized_shape[-1] if len(module.normalized_shape) == 1 else 0, module)
            width, like = self.n_features_in_, module.weight
            options: dict[str, Any] = {} if like is None else {'device': like.device, 'dtype': like.dtype}
            linear = nn.Linear(width, width, **options)
            diagonal = torch.eye(width, device=linear.weight.device, dtype=torch.float64)
            if like is not None:
                diagonal = diagonal * like.detach().double()
            self._fold(linear, diagonal, module.bias)
            plain = nn.LayerNorm(width, eps=module.eps, elementwise_affine=False)
            return nn.Sequential(plain, linear).train(module.training)
        for owner, name in ((module, 'norm'), (module, 'layernorm'), (getattr(module, 'encoder', None), 'ln')):
            norm = getattr(owner, name, None)
            if isinstance(norm, nn.LayerNorm):
                setattr(owner, name, self.fold_into(norm))
                return module
        raise TypeError(
            f'fold_into takes an nn.Linear, an nn.LayerNorm, or a module whose norm, layernorm or encoder.ln is one, '
            f'got {type(module).__name__}; apply transform to the features instead'
        )

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def _check_parameters(self) -> None:
        check_parameter(check_count, self.n_iter, 'n_iter', 1)
        check_parameter(check_choice, self.mode, 'mode', MODES)

    def _check_fitted(self) -> None:
        if not hasattr(self, 'projection_'):
            try:
                from sklearn.exceptions import NotFittedError as error
            except ImportError:
                error = NotFittedError
            raise error(f"This {type(self).__name__} instance is not fitted yet; call 'fit' first")

    def _check_width(self, width: int, module: nn.Module) -> None:
        if width != self.n_features_in_:
            raise ValueError(f'{module} must give {self.n_features_in_} channels, those of the features; got {width}')

    def _tensor(self, name: str) -> Tensor:
        return torch.as_tensor(getattr(self, name))

    def _fold(self, linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
        """Set ``linear`` to the affine map of ``weight`` and ``bias``, then this one."""
        projection, added = (self._tensor(name).to(weight.device) for name in ('projection_', 'bias_'))
        old = torch.zeros_like(added) if bias is None else bias.detach().double()
        with torch.no_grad():
            new = old @ projection + added
            linear.weight.copy_(projection.T @ weight.detach().double())
            if 'bias' not in dict(linear.named_parameters()):
                linear.bias = nn.Parameter(new.to(linear.weight))
            linear.bias.copy_(new)

    def _forget(self) -> None:
        for name in [name for name in vars(self) if name.endswith('_')]:
            delattr(self, name)
        self._parts = Moments(), Moments()

    def _add(self, features: Any, positions: Any) -> None:
        z, y, self._is_torch = read_tokens(features, positions)
        if getattr(self, 'n_features_in_', z.shape[-1]) != z.shape[-1]:
            raise ValueError(f'features has {z.shape[-1]} features, but the parts before had {self.n_features_in_}')
        if not bool(torch.isfinite(z.sum(dtype=torch.float64) + y.sum())):
            raise ValueError('features and positions must be finite, got NaN or infinity; drop those rows')
        self.n_features_in_ = z.shape[-1]
        kept = len(z) - len(z) // _HELD_OUT
        for moments, first, last in ((self._parts[0], 0, kept), (self._parts[1], kept, len(z))):
            block = max(1, _BLOCK // z.shape[1])
            for start in range(first, last, block):
                part = slice(start, min(start + block, last))
                moments.add(z[part].flatten(0, -2), y[part].flatten(0, -2))
        self._num_kept = kept
        self._data = (z, y) if self.mode == 'sigmoid' else None

    def _solve(self) -> None:
        everything = self._parts[0].merged(self._parts[1])
        mean, covariance = everything.around()
        dim = self.n_features_in_
        self._check_problem(everything.count, mean[dim:], covariance[dim:, dim:])
        self._measure(everything)
        loops = self.mode != 'leace'
        projection = torch.eye(dim, dtype=torch.float64, device=mean.device)
        directions, self.n_iter_ = projection[:0], 0
        if loops:
            data = None if self._data is None else _rows(self._data, slice(None))
            steps = list(stepwise(everything, dim, self.n_iter, data))
            self.n_iter_ = len(steps)
            projection, directions = steps[-1] if steps else (projection, directions)
        else:
            projection, directions = leace(covariance[:dim, :dim], covariance[:dim, dim:])
        center = mean[:dim]
        bias = torch.zeros_like(center) if loops else center - center @ projection
        kept = (projection * (covariance[:dim, :dim] @ projection)).sum() / covariance[:dim, :dim].trace()
        self.energy_ = float(kept)
        for name, value in (('projection', projection), ('bias', bias), ('mean', center), ('directions', directions)):
            setattr(self, f'{name}_', value if self._is_torch else value.cpu().numpy())
        self._data = None
        if loops and self.r2_[-1] > 0.1:
            warnings.warn(
                f'{type(self).__name__}: after {self.n_iter_} iterations a linear probe still reads the position with '
                f"R^2 {self.r2_[-1]:.2f}; raise n_iter, or use mode='leace', which leaves 0",
                stacklevel=3,
            )

    def _check_problem(self, count: int, center: Tensor, spread: Tensor) -> None:
        dim, width = self.n_features_in_, len(spread)
        if count <= dim:
            raise ValueError(f'features must hold more rows than channels, got {count} rows of {dim}; use more images')
        variance = spread.diagonal()
        moving = bool((variance > 1e-20 * center.square()).all())
        if not moving or float(torch.linalg.eigvalsh(spread / torch.outer(variance, variance).sqrt())[0]) < 1e-10:
            raise ValueError(
                'positions must vary in every coordinate, and none may be a sum of the others; drop the constant or '
                'repeated column'
            )
        if self.mode != 'leace' and self.n_iter * width > dim:
            raise ValueError(
                f'n_iter times the {width} coordinates must not exceed the {dim} channels, got {self.n_iter}; lower it'
            )

    def _measure(self, everything: Moments) -> None:
        """Set ``r2_``: erase by the rows that are not held out, probe by them, and read on the held-out ones."""
        dim = self.n_features_in_
        train, test = self._parts
        data = None
        if self._data is not None:
            data = _rows(self._data, slice(self._num_kept))
        if train.count <= dim or test.count < 2:
            train = test = everything
            data = None if self._data is None else _rows(self._data, slice(None))
        found = [probe_r2(train, test, torch.eye(dim, dtype=torch.float64, device=train.sums.device))]
        if self.mode == 'leace':
            _, covariance = train.around()
            found.append(probe_r2(train, test, leace(covariance[:dim, :dim], covariance[:dim, dim:])[0]))
        else:
            for number, (projection, _) in enumerate(stepwise(train, dim, self.n_iter, data), 1):
                found.append(probe_r2(train, test, projection))
                self._report(f'iteration {number}: held-out R^2 of the position {found[-1]:.3f}')
        self.r2_ = np.array(found)


def _rows(data: tuple[Tensor, Tensor], part: slice) -> tuple[Tensor, Tensor]:
    """Rows (n, D) and (n, p) of some images."""
    return data[0][part].flatten(0, -2), data[1][part].flatten(0, -2)
