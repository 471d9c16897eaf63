# SPDX-License-Identifier: Apache-2.0
"""clusterplug: clustering inside vision models.

``import clusterplug`` loads nothing, so that ``python -m clusterplug doctor`` also runs where torch does not.
Everything below is loaded at first use:
``clusterplug.functional`` and ``clusterplug.estimators`` need torch only, the ``mm`` parts load their
host packages when a config names ``type='clusterplug.X'``.
"""

import importlib
import pkgutil

from clusterplug.version import __version__

# Read from the folder, so that a new package needs no entry anywhere.
_PACKAGES = tuple(
    sorted(name for _, name, _ in pkgutil.iter_modules(__path__) if not name.startswith('_') and name != 'version')
)

__all__ = ['__version__', *_PACKAGES]


def __getattr__(name):
    if name in _PACKAGES:
        return importlib.import_module(f'clusterplug.{name}')
    raise AttributeError(f"module 'clusterplug' has no attribute {name!r}; packages are {', '.join(_PACKAGES)}")


def __dir__():
    return sorted(__all__)
