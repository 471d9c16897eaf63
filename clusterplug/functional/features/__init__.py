# SPDX-License-Identifier: Apache-2.0
"""Features that gather around centers of their own kind (FEC), on grids and on points."""

from clusterplug.functional.features._feature_checks import check_weighting as check_weighting
from clusterplug.functional.features._feature_members import MOST_DENSE_CENTERS as MOST_DENSE_CENTERS, assign as assign
from clusterplug.functional.features._grid_cells import average_cells as average_cells, valid_cells as valid_cells
from clusterplug.functional.features.feature_clustering import (
    FeatureClusters,
    cluster_encode,
    cluster_pool,
    soft_cluster_encode,
)
from clusterplug.functional.features.point_cells import PointCells, cell_means, point_cells
from clusterplug.functional.features.point_clustering import cluster_points, spread_clusters
from clusterplug.functional.features.sample_sequence import sample_sequence

__all__ = [
    'FeatureClusters',
    'PointCells',
    'cell_means',
    'cluster_encode',
    'cluster_points',
    'cluster_pool',
    'point_cells',
    'sample_sequence',
    'soft_cluster_encode',
    'spread_clusters',
]
