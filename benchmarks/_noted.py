# SPDX-License-Identifier: Apache-2.0
"""Results of a benchmark that are kept in one file, so that a run that was stopped goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusterplug.core.files import write_json
from clusterplug.core.outputs import read_marker


class Noted:
    """What was measured, by a name that says all that it depends on; measured once, written at once."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the value noted under ``name``; measure and note it where there is none."""
        found = read_marker(self.path) or {}
        if name not in found:
            value = measure()
            # another process may have noted something meanwhile
            found = {**(read_marker(self.path) or {}), name: value}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, found)
            print(name, value, flush=True)
        return found[name]
