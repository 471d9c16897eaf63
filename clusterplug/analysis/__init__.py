# SPDX-License-Identifier: Apache-2.0
"""Looking into trained models: what their units, spaces and Jacobians hold."""

__all__: list[str] = []
