"""clusterplug: clustering inside vision models.

``import clusterplug`` imports torch and nothing else. Everything below is loaded at first use:
``clusterplug.functional`` and ``clusterplug.estimators`` need torch only, the ``mm`` parts load their
host packages when a config names ``type='clusterplug.X'``.
"""

import importlib

import torch  # noqa: F401  (the one hard dependency: fail here, with torch's own message)

from clusterplug.version import __version__

_PACKAGES = (
    'compat', 'datasets', 'estimators', 'evaluation', 'functional', 'heads', 'hooks', 'layers', 'losses', 'memory',
    'registry', 'segmentors', 'testing', 'visualization',
)

__all__ = ['__version__', *_PACKAGES]


def __getattr__(name):
    if name in _PACKAGES:
        return importlib.import_module(f'clusterplug.{name}')
    raise AttributeError(f"module 'clusterplug' has no attribute {name!r}; packages are {', '.join(_PACKAGES)}")


def __dir__():
    return sorted(__all__)
