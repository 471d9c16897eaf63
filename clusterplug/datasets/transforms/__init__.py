# SPDX-License-Identifier: Apache-2.0
"""Views, masks and values that join a sample on its way to the model."""

__all__: list[str] = []
