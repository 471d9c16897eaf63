# SPDX-License-Identifier: Apache-2.0
"""The one mechanism behind every workaround: replace attributes of a host module, and put them back.

A workaround waits for its host: when the host module is loaded already it is patched at once, otherwise right
after its first import. So ``apply_all`` imports nothing, costs nothing for hosts that are never used, and the
order of imports does not matter.
"""

import importlib.abc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

_ABSENT = object()  # the owner inherited the attribute, or took it from builtins


@dataclass(eq=False)
class Workaround:
    """One fault of one host package, and what to put in its place.

    Args:
        name: The name of the file that holds it.
        host: The dotted name of the module to be patched.
        patch: ``patch(module)`` returns the replacements as a list of (owner, attribute, new value).
            An empty list means that this version of the host does not need the workaround.
        thread: Where upstream knows about it, ``owner/name#number``, or ``''`` when no thread was found.
        noted: Month in which the fault was last seen, with the version of the host.
        until: What makes the workaround superfluous.
    """

    name: str
    host: str
    patch: Callable[[ModuleType], list[tuple[Any, str, Any]]]
    thread: str
    noted: str
    until: str
    _originals: list[tuple[Any, str, Any]] = field(default_factory=list, repr=False)

    @property
    def active(self) -> bool:
        """Whether the host is patched at this moment."""
        return bool(self._originals)

    @property
    def waiting(self) -> bool:
        """Whether the host will be patched right after it is imported."""
        return self in _WAITING.get(self.host, [])

    def apply(self) -> None:
        """Patch the host now, or as soon as it is imported; a second call changes nothing."""
        if self.active:
            return
        module = sys.modules.get(self.host)
        # A module that is still being executed has no classes yet: its loader will call us when it is done.
        if module is not None and not getattr(module.__spec__, '_initializing', False):
            self._replace(module)
        else:
            _WAITING.setdefault(self.host, [])
            if self not in _WAITING[self.host]:
                _WAITING[self.host].append(self)
            if _FINDER not in sys.meta_path:
                sys.meta_path.insert(0, _FINDER)

    def remove(self) -> None:
        """Put back what was there before; does nothing when the workaround is not applied."""
        waiting = _WAITING.get(self.host, [])
        if self in waiting:
            waiting.remove(self)
        while self._originals:
            owner, name, original = self._originals.pop()
            if original is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, original)

    def _replace(self, module: ModuleType) -> None:
        for owner, name, new in self.patch(module):
            # vars() instead of getattr() keeps classmethod and staticmethod objects as they are.
            self._originals.append((owner, name, vars(owner).get(name, _ABSENT)))
            setattr(owner, name, new)


_WAITING: dict[str, list[Workaround]] = {}


class _PatchAfterImport(importlib.abc.MetaPathFinder):
    """Finds a waiting host with the other finders, and patches it once it has been executed."""

    def find_spec(self, name, path=None, target=None):
        if not _WAITING.get(name):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is None:
                continue
            execute = spec.loader.exec_module

            def execute_and_patch(module, execute=execute):
                execute(module)
                for workaround in _WAITING.pop(name, []):
                    workaround._replace(module)

            spec.loader.exec_module = execute_and_patch
            return spec
        return None


_FINDER = _PatchAfterImport()
