# SPDX-License-Identifier: Apache-2.0
"""Arrays in, tensors inside, the same kind of array out."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsFloat, cast

import numpy as np
import torch
from torch import Tensor

from clusterplug.core.numerics import working_dtype


class Points(NamedTuple):
    """Points as a tensor, and whether the caller's were one."""

    tensor: Tensor
    is_torch: bool

    def like(self, values: Tensor) -> Any:
        """Return ``values`` as the caller's kind of array."""
        return values if self.is_torch else values.cpu().numpy()


def read_points(estimator: Any, X: Any, *, reset: bool) -> Points:
    """Check ``X`` and return it as a tensor (N, D) on its device; set or compare ``n_features_in_``.

    Tensors are checked here. Anything else goes through scikit-learn's own validation where it is installed (names
    of data frame columns, sparse matrices, messages), and through a plain one elsewhere.
    """
    if isinstance(X, Tensor):
        _check_array(X, X.is_floating_point() or X.dtype == torch.bool or not X.is_complex())
        tensor = as_floating(X.detach())
        _check_finite(bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all()))
        _features(estimator, tensor.shape[1], reset)
        if reset and hasattr(estimator, 'feature_names_in_'):
            del estimator.feature_names_in_  # the names of an earlier data frame
        return Points(tensor, True)
    array = _validated(estimator, X, reset)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch shares memory only with arrays that may be written
    return Points(torch.from_numpy(array), False)


def as_floating(tensor: Tensor) -> Tensor:
    """Return a real tensor in a floating type that holds its numbers: float64 for integers that fp32 would round."""
    if tensor.is_floating_point():
        return tensor
    kind = torch.get_default_dtype()
    if tensor.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64) and tensor.numel():
        values = tensor.double()
        if float(values.abs().max()) > 2**24 and kind != torch.float64:
            return values
    return tensor.to(kind)


def partial_labels(y: Any, device: torch.device | None = None) -> Tensor:
    """Return labels of which some are known, as int64: classes >= 0, and -1 = unknown.

    Raises:
        ValueError: There is something else than integers, or an integer below -1.
    """
    values = y.detach() if isinstance(y, Tensor) else np.asarray(y)
    if isinstance(values, Tensor):
        whole = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    else:
        whole = values.dtype.kind in 'iu'
    if not whole:
        raise ValueError(
            f'y must hold one integer a sample, -1 = unlabeled, got {values.dtype} of shape {tuple(values.shape)}; '
            f'number the classes from 0 on'
        )
    labels = torch.as_tensor(values, device=device).long()
    if labels.numel() and bool((labels < -1).any()):
        raise ValueError(f'y must hold known classes >= 0, or -1 = unlabeled, got {int(labels.min())}')
    return labels


def _validated(estimator: Any, X: Any, reset: bool) -> np.ndarray:
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:
        array = np.asarray(X)
        _check_array(array, np.issubdtype(array.dtype, np.number) and not np.iscomplexobj(array))
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float64)
        _check_finite(bool(np.isfinite(array).all()))
        _features(estimator, array.shape[1], reset)
        return array
    return validate_data(estimator, X, reset=reset, dtype=[np.float64, np.float32])


def _check_array(X: Any, is_real: bool) -> None:
    if not is_real:
        raise ValueError(f'X must hold real numbers, got {X.dtype}; convert it first')
    if X.ndim != 2:
        raise ValueError(f'X must be a 2D array (n_samples, n_features), got shape {tuple(X.shape)}. Reshape your data')
    if 0 in X.shape:
        raise ValueError(f'X must hold at least one sample and one feature, got shape {tuple(X.shape)}')


def _check_finite(finite: bool) -> None:
    if not finite:
        raise ValueError('X must be finite, got NaN or infinity; drop or impute those samples')


def _features(estimator: Any, count: int, reset: bool) -> None:
    if reset:
        estimator.n_features_in_ = count
    elif count != estimator.n_features_in_:
        name = type(estimator).__name__
        raise ValueError(
            f'X has {count} features, but {name} is expecting {estimator.n_features_in_} features as input'
        )


def read_weights(sample_weight: Any, points: Points) -> Tensor | None:
    """Return the weights as a tensor (N,) next to the points, or None.

    In fp32 where the points are in half precision: weights of 70,000 or of 300.5 are none of theirs.
    """
    if sample_weight is None:
        return None
    tensor = points.tensor
    dtype = working_dtype(tensor.dtype)
    if isinstance(sample_weight, numbers.Number):
        sample_weight = torch.full(
            (len(tensor),), float(cast(SupportsFloat, sample_weight)), dtype=dtype, device=tensor.device
        )
    if not isinstance(sample_weight, Tensor):
        sample_weight = torch.from_numpy(np.array(sample_weight, dtype=np.float64))
    weights = sample_weight.detach().to(tensor.device, dtype)
    if weights.shape != (len(tensor),):
        raise ValueError(
            f'Sample weights must be 1D array or scalar: sample_weight must have shape ({len(tensor)},), '
            f'got {tuple(weights.shape)}'
        )
    if not bool(weights.double().sum() > 0) or not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        raise ValueError('sample_weight must not be negative, nor all zero, and must be finite; drop samples instead')
    return weights


def make_generator(random_state: Any, device: torch.device) -> torch.Generator:
    """Turn a seed, a NumPy generator or a torch generator into a torch generator on ``device``.

    None draws the seed from NumPy's global generator, as in scikit-learn, so that ``np.random.seed`` decides.
    """
    if random_state is None:
        random_state = np.random.mtrand._rand
    if isinstance(random_state, torch.Generator):
        if random_state.device.type != device.type:
            raise ValueError(
                f'random_state must be on the device of X, {device}, got a generator on {random_state.device}; '
                f'pass an int instead'
            )
        return random_state
    if isinstance(random_state, np.random.RandomState):
        seed = int(random_state.randint(2**31 - 1))
    elif isinstance(random_state, np.random.Generator):
        seed = int(random_state.integers(2**31 - 1))
    elif isinstance(random_state, numbers.Integral):
        seed = int(random_state)
    else:
        raise ValueError(f'random_state must be None, an int, a NumPy or a torch generator, got {random_state!r}')
    return torch.Generator(device).manual_seed(seed)


def as_tensor_beside(values: Any, points: Tensor, name: str) -> Tensor:
    """Return ``values`` (array or tensor) in the type and on the device of ``points``."""
    try:
        return torch.as_tensor(values, device=points.device).to(points.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'{name} must be a string or an array, got {type(values).__name__}') from error


class InvalidParameterError(ValueError, TypeError):
    """A constructor argument of a wrong type or value; both kinds of error, as in scikit-learn."""


def check_parameter(check: Callable, value: Any, name: str, *bounds: Any) -> Any:
    """Return ``check(value, name, *bounds)`` of :mod:`clusterplug.core.checks`, with scikit-learn's kind of error."""
    try:
        return check(value, name, *bounds)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(str(error)) from None
