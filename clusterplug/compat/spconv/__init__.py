# SPDX-License-Identifier: Apache-2.0
"""Workarounds for spconv on the CPU."""
