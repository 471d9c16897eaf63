# SPDX-License-Identifier: Apache-2.0
"""Warnings that are given once in a process, however many items they concern."""

import warnings

_SAID = set()


def warn_once(key, message: str) -> None:
    """Warn unless ``key`` was warned about before; data loaders have one process for each worker."""
    if key not in _SAID:
        _SAID.add(key)
        warnings.warn(message, stacklevel=3)
