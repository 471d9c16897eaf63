# SPDX-License-Identifier: Apache-2.0
"""Clustering with scikit-learn's conventions: NumPy arrays or tensors in, the same kind out, on any device.

torch and numpy are enough. Where scikit-learn is installed the estimators inherit from its base classes, so that
pipelines, ``clone`` and its own checks work.
"""

from clusterplug.estimators import deep
from clusterplug.estimators.agglomerative import AgglomerativeClustering
from clusterplug.estimators.deep import *  # noqa: F403 - its own

__all__ = [
    'AgglomerativeClustering',
    'KMeans',
    'KMedoids',
    'MiniBatchKMeans',
    'OnlineSubclassClusterer',
    'PositionEraser',
    'SpectralClustering',
]
