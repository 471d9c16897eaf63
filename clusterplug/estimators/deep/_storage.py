# SPDX-License-Identifier: Apache-2.0
"""Arguments, networks and states of training as arrays and plain values."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.estimators._base import _pack, _unpack
from clusterplug.estimators.deep.training import TrainingState

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
