# SPDX-License-Identifier: Apache-2.0
"""Heads: what turns a backbone feature into an embedding or a prediction."""

from clusterplug.heads.projection_head import ProjectionHead

__all__ = ['ProjectionHead']
