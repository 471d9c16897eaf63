# SPDX-License-Identifier: Apache-2.0
"""A progress bar that turns into plain lines when nobody watches a terminal."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts steps: a tqdm bar on a terminal, else a line every few seconds, on standard error.

    Args:
        name: what is counted.
        total: number of steps.
        done: steps that were done before.
        enabled: False shows nothing.
        seconds: time between two plain lines.
    """

    def __init__(self, name: str, total: int, done: int = 0, enabled: bool = True, seconds: float = 5.0):
        self._name, self._total, self._done, self._enabled, self._seconds = name, total, done, enabled, seconds
        self._first, self._start = done, time.monotonic()
        self._last, self._bar = self._start, None

    def __enter__(self) -> Progress:
        if self._enabled and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self._bar = tqdm(total=self._total, initial=self._done, desc=self._name, unit='scan')
        elif self._enabled and self._done < self._total:
            kept = f' ({self._done} are there already)' if self._done else ''
            self._line(f'{self._name}: {self._total} scans{kept}')
        return self

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._enabled and (time.monotonic() - self._last > self._seconds or self._done == self._total):
            self._last = time.monotonic()
            rate = (self._done - self._first) / max(self._last - self._start, 1e-9)
            left = (self._total - self._done) / rate
            self._line(f'{self._name}: {self._done}/{self._total} scans, {rate:.1f} a second, {left:.0f} s left')

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    @staticmethod
    def _line(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
