# SPDX-License-Identifier: Apache-2.0
"""Workarounds for mmcv: its CUDA-only kernels on the CPU."""
