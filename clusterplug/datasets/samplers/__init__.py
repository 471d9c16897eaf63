# SPDX-License-Identifier: Apache-2.0
"""Which samples meet in a batch."""

__all__: list[str] = []
