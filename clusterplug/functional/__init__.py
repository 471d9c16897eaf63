# SPDX-License-Identifier: Apache-2.0
"""Clustering kernels: maths on tensors, in torch alone, one folder a topic.

Batched (..., N, D), masked, weighted, on any device; computed in fp32 at least, returned in the type of the input.
All public names of the topics are here: ``clusterplug.functional.kmeans``. A topic imports those above it in this
list, and those through their face alone.
"""

# isort: off
from clusterplug.core.distributed import gather_ranks
from clusterplug.functional.distance import *
from clusterplug.functional.kmeans import *
from clusterplug.functional.transport import *
from clusterplug.functional.contrast import *
from clusterplug.functional.tokens import *
from clusterplug.functional.features import *
from clusterplug.functional.subspace import *
from clusterplug.functional.metrics import *
from clusterplug.functional.kmedoids import *
from clusterplug.functional.graph import *
# isort: on

from clusterplug.core.faces import public_names

__all__ = public_names(globals())
