# SPDX-License-Identifier: Apache-2.0
"""Merging fine-tuned models of one start."""

from clusterplug.fusion.adaptive_merging import AdaMerging, ConcreteMerging, FusionStep
from clusterplug.fusion.task_vectors import TaskVector, task_arithmetic, ties_merging

__all__ = [
    'AdaMerging',
    'ConcreteMerging',
    'FusionStep',
    'TaskVector',
    'task_arithmetic',
    'ties_merging',
]
