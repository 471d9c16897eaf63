# SPDX-License-Identifier: Apache-2.0
"""Arguments, networks and states of training as arrays and plain values."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.core.files import load_arrays
from clusterplug.estimators._base import SavedEstimator, _pack, _unpack
from clusterplug.estimators.deep.training import TrainingState
from clusterplug.version import __version__

_PLAIN = ('phase', 'epoch', 'batch', 'refreshed', 'started', 'waited', 'changed', 'history')
_PLAIN_TYPES = (bool, int, float, list, tuple)


def pack_value(name: str, value: Any, arrays: dict[str, np.ndarray]) -> dict:
    """Describe an argument or a result: numbers, strings, arrays, containers of them; of modules only the name."""
    if isinstance(value, torch.device):
        return {'value': str(value)}
    if isinstance(value, nn.Module) or callable(value):
        return {'object': type(value).__name__}
    return _pack(name, value, arrays)


unpack_value = _unpack
_Estimator = TypeVar('_Estimator', bound=SavedEstimator)


def begin_header(estimator: SavedEstimator, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the header of a file with the arguments of an estimator, and no results yet."""
    header: dict[str, Any] = {'class': type(estimator).__name__, 'version': __version__, 'params': {}, 'results': {}}
    for name, value in estimator.get_params(deep=False).items():
        header['params'][name] = pack_value(f'params.{name}', value, arrays)
    return header


def open_header(
    cls: type[_Estimator], path: str | Path, params: dict[str, Any]
) -> tuple[_Estimator, dict[str, np.ndarray], dict[str, Any]]:
    """Return an estimator with the arguments of a file, or those of ``params``, and the arrays and header there.

    Raises:
        FileNotFoundError, ValueError: The file is missing, cut off, of another class, or a module is needed.
    """
    arrays, header = load_arrays(path)
    if header.get('class') != cls.__name__:
        raise ValueError(f'{path} holds a {header.get("class")}, not a {cls.__name__}; load it with that class')
    written = {name: value for name, value in header['params'].items() if name not in params}
    missing = {name: value['object'] for name, value in written.items() if 'object' in value}
    if missing:
        were = ', '.join(f'{name}={kind}' for name, kind in missing.items())
        raise ValueError(
            f'{path} was written with {were}, which no file holds; give it: {cls.__name__}.load(path, '
            f'{", ".join(f"{name}=..." for name in missing)})'
        )
    return cls(**{name: unpack_value(value, arrays) for name, value in written.items()}, **params), arrays, header


def pack_run(state: TrainingState, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict:
    """Describe the network and the state of its training."""
    header = {name: getattr(state, name) for name in _PLAIN}
    header['best'] = repr(state.best)
    header['sums'] = {name: float(value) for name, value in state.sums.items()}
    header['network'] = {
        name: _pack(f'network.{name}', tensor, arrays) for name, tensor in network.state_dict().items()
    }
    header['tensors'] = {name: _pack(f'tensors.{name}', tensor, arrays) for name, tensor in state.tensors.items()}
    if state.optimizer is not None:
        header['groups'] = [
            {name: value for name, value in group.items() if value is None or isinstance(value, _PLAIN_TYPES)}
            for group in state.optimizer['param_groups']
        ]
        header['optimizer'] = {
            str(number): {name: _pack(f'optimizer.{number}.{name}', value, arrays) for name, value in slots.items()}
            for number, slots in state.optimizer['state'].items()
        }
    return header


def unpack_run(header: dict, network: nn.Module, arrays: dict[str, np.ndarray], device: torch.device) -> TrainingState:
    """Fill the network and return the state."""
    network.load_state_dict({name: _unpack(each, arrays) for name, each in header['network'].items()})
    values: dict[str, Any] = {name: header[name] for name in _PLAIN}
    values['tensors'] = {name: _moved(_unpack(each, arrays), device) for name, each in header['tensors'].items()}
    optimizer = None
    if 'optimizer' in header:
        groups = [
            {**group, 'betas': tuple(group['betas'])} if 'betas' in group else group for group in header['groups']
        ]
        slots = {
            int(number): {name: _unpack(value, arrays) for name, value in each.items()}
            for number, each in header['optimizer'].items()
        }
        optimizer = {'state': slots, 'param_groups': groups}
    fields = {field.name for field in dataclasses.fields(TrainingState)}
    assert fields == {*_PLAIN, 'best', 'sums', 'tensors', 'optimizer'}
    return TrainingState(**values, best=float(header['best']), sums=dict(header['sums']), optimizer=optimizer)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
