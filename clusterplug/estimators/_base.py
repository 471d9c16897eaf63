# SPDX-License-Identifier: Apache-2.0
"""What the estimators share: scikit-learn's conventions, with or without scikit-learn, and files."""

import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clusterplug.core.files import load_arrays, save_arrays
from clusterplug.version import __version__


class _PlainEstimator:
    """The part of scikit-learn's BaseEstimator that is needed where scikit-learn is not installed."""

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return sorted(name for name in inspect.signature(cls.__init__).parameters if name != 'self')

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> '_PlainEstimator':
        """Set constructor arguments by name."""
        for name, value in params.items():
            if name not in self._parameter_names():
                raise ValueError(
                    f'Invalid parameter {name!r} for estimator {self}; valid are {self._parameter_names()}'
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: value.default for name, value in inspect.signature(type(self).__init__).parameters.items()}
        changed = [f'{name}={value!r}' for name, value in self.get_params().items() if value is not defaults[name]]
        return f'{type(self).__name__}({", ".join(changed)})'


class _PlainCluster:
    _estimator_type = 'clusterer'

    def fit_predict(self: Any, X: Any, y: Any = None, **kwargs: Any) -> Any:
        """Fit and return the labels."""
        self.fit(X, **kwargs)
        return self.labels_


class _PlainTransformer:
    def fit_transform(self: Any, X: Any, y: Any = None, **kwargs: Any) -> Any:
        """Fit and return the distances to the centers."""
        return self.fit(X, **kwargs).transform(X)


def _bases() -> tuple[type, type, type]:
    try:
        from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
    except ImportError:
        return _PlainEstimator, _PlainCluster, _PlainTransformer

    class NamedTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
        pass

    return BaseEstimator, ClusterMixin, NamedTransformer


if TYPE_CHECKING:  # what is there with and without scikit-learn, and __sklearn_tags__, which it alone calls

    class BaseEstimator(_PlainEstimator):
        __sklearn_tags__: Callable[[], Any]

    class ClusterMixin:
        fit_predict: Callable[..., Any]

    class TransformerMixin:
        fit_transform: Callable[..., Any]

else:
    BaseEstimator, ClusterMixin, TransformerMixin = _bases()


class NotFittedError(ValueError, AttributeError):
    """Raised by predict and transform before fit, where scikit-learn's own class is not there."""


class ConvergenceWarning(UserWarning):
    """Warned of fewer clusters than asked for, where scikit-learn's own class is not there."""


_Estimator = TypeVar('_Estimator', bound='SavedEstimator')


class SavedEstimator(BaseEstimator):
    """Base of all estimators: files and reports."""

    verbose: int  # set by the constructors

    def _report(self, message: str) -> None:
        if self.verbose:
            print(f'{type(self).__name__}: {message}', flush=True)

    def save(self, path: str | Path) -> None:
        """Write arguments and results into one .npz file, atomically and without pickle.

        Raises:
            ValueError: If an argument, such as a generator, cannot be written; use an int as ``random_state``.
        """
        arrays: dict[str, np.ndarray] = {}
        header: dict[str, Any] = {'class': type(self).__name__, 'version': __version__, 'params': {}, 'results': {}}
        for name, value in self.get_params(deep=False).items():
            header['params'][name] = _pack(f'params.{name}', value, arrays)
        for name, value in vars(self).items():
            if name.endswith('_') and not name.startswith('_'):
                header['results'][name] = _pack(f'results.{name}', value, arrays)
        save_arrays(path, arrays, header)

    @classmethod
    def load(cls: type[_Estimator], path: str | Path) -> _Estimator:
        """Read what :meth:`save` wrote; tensors come back on the CPU.

        Raises:
            FileNotFoundError, ValueError: If the file is missing, cut off, or of another class.
        """
        arrays, header = load_arrays(path)
        if header.get('class') != cls.__name__:
            raise ValueError(f'{path} holds a {header.get("class")}, not a {cls.__name__}; load it with that class')
        estimator = cls(**{name: _unpack(value, arrays) for name, value in header['params'].items()})
        for name, value in header['results'].items():
            setattr(estimator, name, _unpack(value, arrays))
        return estimator


class Clusterer(ClusterMixin, SavedEstimator):
    """Base of the estimators of clusters: the checks that fit has been called, and that it found all of them."""

    n_clusters: Any  # set by the constructors
    labels_: Any

    def _check_fitted(self) -> None:
        if hasattr(self, 'labels_') or hasattr(self, 'cluster_centers_'):
            return
        try:
            from sklearn.exceptions import NotFittedError as error
        except ImportError:
            error = NotFittedError
        raise error(f"This {type(self).__name__} instance is not fitted yet; call 'fit' first")

    def _warn_if_fewer(self, labels: Any) -> None:
        """Warn, as scikit-learn, when the labels of the fitted data are of fewer clusters than asked for."""
        found = int((torch.bincount(torch.as_tensor(labels, device=getattr(labels, 'device', 'cpu'))) > 0).sum())
        if found >= self.n_clusters:
            return
        try:
            from sklearn.exceptions import ConvergenceWarning as category
        except ImportError:
            category = ConvergenceWarning
        warnings.warn(
            f'{type(self).__name__} found {found} distinct clusters, fewer than n_clusters={self.n_clusters}; X may '
            f'hold too few different samples, then ask for at most {found} clusters',
            category,
            stacklevel=3,
        )


def _pack(name: str, value: Any, arrays: dict[str, np.ndarray]) -> dict:
    """Describe ``value`` in plain words; arrays go into ``arrays``."""
    if isinstance(value, Tensor):
        # NumPy has no bfloat16; fp32 holds each of its values.
        plain = value.detach().cpu()
        arrays[name] = (plain.float() if value.dtype == torch.bfloat16 else plain).numpy()
        return {'tensor': name, 'dtype': str(value.dtype).removeprefix('torch.')}
    if isinstance(value, np.ndarray) and value.dtype != object:
        arrays[name] = value
        return {'array': name}
    if isinstance(value, np.ndarray):  # names of data frame columns
        return {'names': [str(each) for each in value]}
    if isinstance(value, list | tuple):
        kind = 'tuple' if isinstance(value, tuple) else 'list'
        return {kind: [_pack(f'{name}.{number}', each, arrays) for number, each in enumerate(value)]}
    if isinstance(value, dict):
        return {'dict': {str(key): _pack(f'{name}.{key}', each, arrays) for key, each in value.items()}}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):  # comes back as a string
        value = os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return {'value': value}
    raise ValueError(f'{name} cannot be saved: {type(value).__name__}; use numbers, strings, arrays or an int seed')


def _unpack(packed: dict, arrays: dict[str, np.ndarray]) -> Any:
    if 'tensor' in packed:
        return torch.from_numpy(arrays[packed['tensor']]).to(getattr(torch, packed['dtype']))
    if 'array' in packed:
        return arrays[packed['array']]
    if 'names' in packed:
        return np.array(packed['names'], dtype=object)
    for kind, build in (('list', list), ('tuple', tuple)):
        if kind in packed:
            return build(_unpack(each, arrays) for each in packed[kind])
    if 'dict' in packed:
        return {key: _unpack(each, arrays) for key, each in packed['dict'].items()}
    return packed['value']
