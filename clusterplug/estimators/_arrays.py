"""Arrays in, tensors inside, the same kind of array out."""

import numbers
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


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
        tensor = X.detach()
        tensor = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
        _check_finite(bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all()))
        _features(estimator, tensor.shape[1], reset)
        if reset and hasattr(estimator, 'feature_names_in_'):
            del estimator.feature_names_in_  # the names of an earlier data frame
        return Points(tensor, True)
    array = _validated(estimator, X, reset)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch shares memory only with arrays that may be written
    return Points(torch.from_numpy(array), False)


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
    """Return the weights as a tensor (N,) beside the points, or None."""
    if sample_weight is None:
        return None
    tensor = points.tensor
    if isinstance(sample_weight, numbers.Number):
        sample_weight = torch.full((len(tensor),), float(sample_weight), dtype=tensor.dtype)
    if not isinstance(sample_weight, Tensor):
        sample_weight = torch.from_numpy(np.array(sample_weight, dtype=np.float64))
    weights = sample_weight.to(tensor)
    if weights.shape != (len(tensor),):
        raise ValueError(
            f'Sample weights must be 1D array or scalar: sample_weight must have shape ({len(tensor)},), '
            f'got {tuple(weights.shape)}'
        )
    if not bool(weights.sum() > 0) or bool((weights < 0).any()):
        raise ValueError('sample_weight must not be negative, nor all zero, and must be finite; drop samples instead')
    return weights


def make_generator(random_state: Any, device: torch.device) -> torch.Generator | None:
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
        return torch.as_tensor(values).to(points)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'{name} must be a string or an array, got {type(values).__name__}') from error


def check_interval(name: str, value: Any, kind: type, low: float, high: float = float('inf')) -> None:
    """Raise unless ``value`` is a number of ``kind`` with ``low <= value <= high``."""
    allowed = f'{name} must be {"an int" if kind is numbers.Integral else "a number"} from {low} to {high}'
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, kind):
        raise ValueError(f'{allowed}, got {value!r}')
    if not low <= value <= high:
        raise ValueError(f'{allowed}, got {value}')
