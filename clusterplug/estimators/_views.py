# SPDX-License-Identifier: Apache-2.0
"""Several views of the same samples: features of several extractors, as a list, a dict or a bank of arrays."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterplug.estimators._arrays import Points

NORMALIZATIONS = ('l2', 'standard', None)


def read_views(X: Any) -> tuple[list[str], list[Points]]:
    """Return names and checked tensors (N, D_v) of the views.

    Args:
        X: One array (N, D), a list or tuple of arrays, or a mapping of names to arrays. Arrays of a file that is
            mapped into memory stay there, in their own type.

    Raises:
        ValueError: No view, a view that is not (N, D), other numbers of samples, NaN or infinity.
    """
    if isinstance(X, Mapping):
        names, arrays = [str(name) for name in X], list(X.values())
    elif isinstance(X, list | tuple) and X and all(hasattr(each, 'shape') or _is_nested(each) for each in X):
        arrays = list(X)
        names = [str(number) for number in range(len(arrays))]
    else:
        names, arrays = ['0'], [X]
    if not arrays:
        raise ValueError('X must hold at least one view (n_samples, n_features), got none')
    views = [_read(name, array) for name, array in zip(names, arrays, strict=True)]
    counts = {name: len(view.tensor) for name, view in zip(names, views, strict=True)}
    if len(set(counts.values())) > 1:
        raise ValueError(f'X must hold views of the same samples, got other numbers of them: {counts}')
    return names, views


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], list | tuple)


def _read(name: str, values: Any) -> Points:
    is_torch = isinstance(values, Tensor)
    if not is_torch:
        if hasattr(values, 'toarray'):
            raise TypeError(f'view {name} is sparse data; A dense array is required, use X.toarray()')
        array = np.asarray(values)
        if array.dtype == object:
            array = array.astype(np.float64)
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
            raise ValueError(f'view {name} must hold real numbers, got {array.dtype}. Complex data not supported')
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        values = torch.from_numpy(array)
    tensor = values.detach()
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.float64)
    if tensor.dim() != 2:
        raise ValueError(f'view {name} must be a 2D array (n_samples, n_features), got shape {tuple(tensor.shape)}. '
                         f'Reshape your data')  # fmt: skip
    if 0 in tensor.shape:
        raise ValueError(f'view {name} must hold at least one sample and one feature, got 0 sample(s) or 0 feature(s) '
                         f'(shape={tuple(tensor.shape)}) while a minimum of 1 is required.')  # fmt: skip
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f'view {name} must be finite, got NaN or infinity (inf); drop or impute those samples')
    return Points(tensor, is_torch)


def varying(names: list[str], views: list[Points], stacklevel: int = 3) -> list[int]:
    """Return the numbers of the views that are not constant; warn of the others, keep one if all are."""
    kept = [n for n, view in enumerate(views) if bool((view.tensor != view.tensor[:1]).any())]
    if len(kept) < len(views) and len(views[0].tensor) > 1:
        gone = [name for n, name in enumerate(names) if n not in kept]
        warnings.warn(f'views {gone} are constant and say nothing; they are dropped', stacklevel=stacklevel)
    return kept or [0]


def normalized(view: Tensor, kind: str | None, device: Any = None) -> Tensor:
    """Return a view in fp32 with rows of length 1 (``'l2'``), or as it is. Rows of zeros stay."""
    values = view.to(device=device, dtype=torch.float64 if view.dtype == torch.float64 else torch.float32)
    if kind == 'l2':
        largest = values.abs().amax(-1, keepdim=True)  # so that no square leaves the range
        values = values / torch.where(largest > 0, largest, 1.0)
        values = torch.nn.functional.normalize(values, dim=-1, eps=1e-30)
    elif kind == 'standard':
        values = values.double()
        centered = values - values.mean(0)
        largest = centered.abs().amax(0)
        centered = centered / torch.where(largest > 0, largest, 1.0)
        deviation = centered.square().mean(0).sqrt()
        values = centered / torch.where(deviation > 0, deviation, 1.0)
    return values.float()


class ViewStack:
    """Views that stay where they are, and come side by side, normalized and in fp32, when rows are asked for.

    Args:
        views: Tensors (N, D_v), of any floating type; mapped files too.
        kind: A normalization of :data:`NORMALIZATIONS`.
        scaling: What :meth:`scaling_of` returned for the views of fit.
    """

    def __init__(self, views: list[Tensor], kind: str | None, scaling: list):
        self.views, self.kind, self.scaling = views, kind, scaling
        self.device = views[0].device

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, rows: Any) -> Tensor:
        return torch.cat([self._part(number, rows) for number in range(len(self.views))], 1)

    def view(self, number: int) -> Tensor:
        """Return a view, normalized, in whole."""
        return self._part(number, slice(None))

    def checksum(self) -> float:
        """What tells other views."""
        return float(sum(view.double().sum() for view in self.views))

    def _part(self, number: int, rows: Any) -> Tensor:
        values = self.views[number][rows]
        width = values.shape[1]
        if self.kind == 'l2':  # a mean square of 1, which is what a first layer is made for
            return normalized(values, 'l2') * width**0.5
        shift, scale = self.scaling[number]
        moved = (values.double() - torch.as_tensor(shift, device=values.device)) * torch.as_tensor(
            scale, device=values.device
        )
        return moved.float()

    @staticmethod
    def scaling_of(views: list[Tensor], kind: str | None) -> list:
        """Return shift and factor of each view, as arrays: of each feature, or of the whole view without a kind."""
        found = []
        for view in views:
            if kind == 'l2':
                found.append([np.zeros(1), np.ones(1)])
                continue
            values = view.double()
            centered = values - values.mean(0)
            unit = centered.abs().amax(0) if kind == 'standard' else centered.abs().amax()
            unit = torch.where(unit > 0, unit, 1.0)
            relative = (centered / unit).square()
            deviation = unit * (relative.mean(0) if kind == 'standard' else relative.mean()).sqrt()
            factor = 1 / torch.where(deviation > 0, deviation, 1.0)
            found.append([values.mean(0).cpu().numpy(), np.atleast_1d(factor.cpu().numpy())])
        return found
