# SPDX-License-Identifier: Apache-2.0
"""Workarounds for mmdet3d."""
