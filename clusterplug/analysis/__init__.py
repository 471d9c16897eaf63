# SPDX-License-Identifier: Apache-2.0
"""Looking into trained models: what their units, spaces and Jacobians hold; objects of scans."""

from clusterplug.analysis.class_relation import class_relation, save_class_relation
from clusterplug.analysis.scan_objects import ScanObject, scan_objects

__all__ = ['ScanObject', 'class_relation', 'save_class_relation', 'scan_objects']
