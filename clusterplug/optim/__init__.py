# SPDX-License-Identifier: Apache-2.0
"""Optimizers on manifolds, and how they share a model with others."""

__all__: list[str] = []
