# SPDX-License-Identifier: Apache-2.0
"""k-medoids, alternating and by swaps."""

from clusterplug.functional.kmedoids._medoid_steps import (
    KMedoidsResult,
    farthest_first as farthest_first,
    problems_at_once as problems_at_once,
    rows as rows,
)
from clusterplug.functional.kmedoids.kmedoids import alternate as alternate, kmedoids
from clusterplug.functional.kmedoids.kmedoids_swap import kmedoids_swap

__all__ = [
    'KMedoidsResult',
    'kmedoids',
    'kmedoids_swap',
]
