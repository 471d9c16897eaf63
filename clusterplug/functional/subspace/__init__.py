# SPDX-License-Identifier: Apache-2.0
"""Subspaces, their frames and angles, and how much of the data they hold."""

__all__: list[str] = []
