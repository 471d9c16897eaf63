# SPDX-License-Identifier: Apache-2.0
"""k-means, its starts, and its mini-batch form."""

from clusterplug.functional.kmeans.kmeans import KMeansResult, kmeans, nearest_center
from clusterplug.functional.kmeans.kmeans_init import kkz, kmeans_plus_plus
from clusterplug.functional.kmeans.membership import membership_labels
from clusterplug.functional.kmeans.minibatch_kmeans import (
    MiniBatchKMeansState,
    MiniBatchKMeansStep,
    minibatch_kmeans_start,
    minibatch_kmeans_update,
)
from clusterplug.functional.kmeans.sdp import SDPResult, kmeans_sdp, likelihood_sdp

__all__ = [
    'KMeansResult',
    'MiniBatchKMeansState',
    'MiniBatchKMeansStep',
    'SDPResult',
    'kkz',
    'kmeans',
    'kmeans_plus_plus',
    'kmeans_sdp',
    'likelihood_sdp',
    'membership_labels',
    'minibatch_kmeans_start',
    'minibatch_kmeans_update',
    'nearest_center',
]
