# SPDX-License-Identifier: Apache-2.0
"""Heads: what turns a backbone feature into an embedding or a prediction."""

from clusterplug.heads.projection_head import ProjectionHead
from clusterplug.heads.prototype_head import PrototypeHead

__all__ = [
    'ProjectionHead',
    'PrototypeHead',
    'SubspaceLearnerHead',
    'normalize_slices',
]
