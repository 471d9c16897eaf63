# SPDX-License-Identifier: Apache-2.0
"""Data made on purpose: trees that divide a space of scenes, and what fills their leaves."""

__all__: list[str] = []
