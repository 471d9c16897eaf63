# SPDX-License-Identifier: Apache-2.0
"""Merging fine-tuned models of one start."""

__all__: list[str] = []
