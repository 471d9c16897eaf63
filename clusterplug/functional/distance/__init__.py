# SPDX-License-Identifier: Apache-2.0
"""Distances between the rows of two sets, or of one set."""

from clusterplug.functional.distance._self_distances import (
    check_metric as check_metric,
    check_square as check_square,
    self_distances as self_distances,
)
from clusterplug.functional.distance.distances import pairwise_distances

__all__ = [
    'pairwise_distances',
]
