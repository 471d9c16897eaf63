# SPDX-License-Identifier: Apache-2.0
"""The address that :mod:`clusterplug.core.files` had in 0.1; import from there."""

from clusterplug.core.files import whole_file

__all__ = ['whole_file']
