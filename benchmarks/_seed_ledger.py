# SPDX-License-Identifier: Apache-2.0
"""Tables over seeds whose measurements are noted one by one: the loop, the cells, and where they come from."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from _gain_ledger import Ledger
from _timing import describe_machine


class SeedLedger:
    """Measures what the ledger does not have; with ``only_read`` it only looks.

    A key is all that decides a result: the setting, the seed, the content of the configs.
    """

    def __init__(self, path: Path, only_read: bool = False, packages: tuple[str, ...] = ()):
        self.ledger, self.only_read, self.packages = Ledger(path), only_read, packages

    def measured(self, key: dict, measure: Callable[[], dict]) -> dict | None:
        """The entry of this key, measured and noted where it is missing; None where it may not be."""
        from clusterplug.experiments.identity import versions

        entry = self.ledger.find(key)
        if entry is None and not self.only_read:
            found = measure()
            machine = '; '.join(describe_machine(self.packages))
            entry = self.ledger.note(key, found=found, machine=machine, code=versions()['clusterplug'])
            print(key, found, flush=True)
        return entry


def sources(entries: Iterable[dict]) -> list[str]:
    """Lines of a page: on which machines, by which code."""
    found = sorted({(entry['machine'], entry['code']) for entry in entries})
    return [f'- {machine}; clusterplug {code}' for machine, code in found]


def spread(values: Iterable[float | None], digits: int) -> str:
    """Mean and, of several, standard deviation; '-' where there is no value."""
    values = [value for value in values if value is not None]
    if not values:
        return '-'
    deviation = f' ({statistics.stdev(values):.{digits}f})' if len(values) > 1 else ''
    return f'{statistics.mean(values):.{digits}f}{deviation}'
