# SPDX-License-Identifier: Apache-2.0
"""Looking into trained models: what their units, spaces and Jacobians hold."""

from clusterplug.analysis.class_relation import class_relation, save_class_relation

__all__ = ['class_relation', 'save_class_relation']
