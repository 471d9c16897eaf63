# SPDX-License-Identifier: Apache-2.0
"""Workarounds for mmpretrain."""
