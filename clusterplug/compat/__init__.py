# SPDX-License-Identifier: Apache-2.0
"""Every workaround for a fault of a host package: small, dated, with the upstream thread, tested, removable.

One folder a host, one file a workaround; what lies there is found by walking.

``apply_all`` changes nothing for tensors on CUDA and imports no host. ``python -m clusterplug doctor`` lists them.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator

from clusterplug.compat.workaround import Workaround

__all__ = ['applied', 'apply_all', 'remove_all', 'switched_on', 'workarounds']


def workarounds() -> list[Workaround]:
    """All workarounds, in the order in which they are applied.

    Example:
        >>> from clusterplug import compat
        >>> [w.thread for w in compat.workarounds() if w.name == 'minkunet_voxelize']
        ['open-mmlab/mmdetection3d#3140']
    """
    found = {}
    for host in pkgutil.iter_modules(__path__):
        if host.ispkg:
            package = importlib.import_module(f'{__name__}.{host.name}')
            for module in pkgutil.iter_modules(package.__path__):
                if not module.name.startswith('_'):
                    found[module.name] = importlib.import_module(f'{package.__name__}.{module.name}').WORKAROUND
    return [found[name] for name in sorted(found)]


def applied() -> bool:
    """Whether workarounds are active, or wait for a host that is not imported yet.

    Example:
        >>> from clusterplug import compat
        >>> compat.apply_all()
        >>> compat.applied()
        True
    """
    return any(workaround.active or workaround.waiting for workaround in workarounds())


def apply_all() -> None:
    """Apply every workaround to the hosts that are loaded, and to the others as soon as they are imported.

    A second call changes nothing.

    Example:
        >>> from clusterplug import compat
        >>> compat.apply_all()
    """
    for workaround in workarounds():
        workaround.apply()


def remove_all() -> None:
    """Put every host back into the state in which it was found.

    Example:
        >>> from clusterplug import compat
        >>> compat.remove_all()
        >>> any(workaround.active for workaround in compat.workarounds())
        False
    """
    for workaround in workarounds():
        workaround.remove()


@contextlib.contextmanager
def switched_on() -> Iterator[None]:
    """Apply all workarounds for what follows, and leave them on in this process, with a line in the log.

    For builders: where the block fails, the workarounds that it switched on are taken back; where they were on
    before, nothing is changed or said.

    Example:
        >>> from clusterplug import compat
        >>> compat.remove_all()
        >>> with compat.switched_on():
        ...     compat.applied()
        True
    """
    before = applied()
    apply_all()
    try:
        yield
    except BaseException:
        if not before:
            remove_all()
        raise
    if not before:
        from mmengine.logging import print_log

        print_log(
            'clusterplug.compat: workarounds for faults of mmengine, mmcv, mmdet3d and spconv are on in this process; '
            '`clusterplug doctor` lists them, clusterplug.compat.remove_all() takes them back',
            logger='current',
        )
