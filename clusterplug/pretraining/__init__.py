# SPDX-License-Identifier: Apache-2.0
"""Models that train a backbone without labels, over views of the same thing."""

__all__: list[str] = []
