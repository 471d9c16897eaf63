# SPDX-License-Identifier: Apache-2.0
"""The former address of :mod:`clusterplug.attach`."""

from clusterplug.attach import (
    ClusteringBranch,
    ScanSubclasses,
    WithClustering,
    check_predictable,
    nearest_subclass,
    predict_subclasses,
    true_classes,
)

__all__ = [
    'ClusteringBranch',
    'ScanSubclasses',
    'WithClustering',
    'check_predictable',
    'nearest_subclass',
    'predict_subclasses',
    'true_classes',
]
