# SPDX-License-Identifier: Apache-2.0
"""Assignment by optimal transport: balanced, partial, unbalanced, within classes."""

from clusterplug.functional.transport.align import align_by_transport
from clusterplug.functional.transport.codes import balanced_codes
from clusterplug.functional.transport.doubly_stochastic import doubly_stochastic
from clusterplug.functional.transport.partial import partial_transport, unbalanced_transport
from clusterplug.functional.transport.progressive import ProgressivePlan, progressive_transport
from clusterplug.functional.transport.sinkhorn import sinkhorn, sinkhorn_log_plan
from clusterplug.functional.transport.subclasses import assign_subclasses, split_subclasses as split_subclasses

__all__ = [
    'ProgressivePlan',
    'align_by_transport',
    'assign_subclasses',
    'balanced_codes',
    'doubly_stochastic',
    'partial_transport',
    'progressive_transport',
    'sinkhorn',
    'sinkhorn_log_plan',
    'unbalanced_transport',
]
