# SPDX-License-Identifier: Apache-2.0
"""Data sets: loaded at first use, because each brings its own optional packages."""

import importlib

_NAMES = {
    'MoLRG': 'low_rank_gaussians',
    'SUBTYPES': 'lidar_city',
    'generate_lidar_city': 'lidar_city',
    'load_subtypes': 'lidar_city',
}

__all__ = ['SUBTYPES', 'MoLRG', 'generate_lidar_city', 'load_subtypes']


def __getattr__(name):
    if name in _NAMES:
        return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {", ".join(__all__)}')


def __dir__():
    return sorted(__all__)
