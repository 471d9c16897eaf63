# SPDX-License-Identifier: Apache-2.0
"""Looking into trained models: what their units, spaces and Jacobians hold; objects and pseudo-labels of scans."""

from clusterplug.analysis.class_relation import class_relation, save_class_relation
from clusterplug.analysis.diffusion_editing import edit_sample, run_sampler, vp_levels
from clusterplug.analysis.latent_directions import LatentDirections, latent_directions, null_space_projection, traverse
from clusterplug.analysis.pseudo_labels import ConfidentLabels, PointLabels, TransportLabels
from clusterplug.analysis.scan_objects import ScanObject, scan_objects
from clusterplug.analysis.unit_matching import UnitMatching, UnitSummary
from clusterplug.analysis.unit_moments import UnitMoments

__all__ = [
    'ConfidentLabels',
    'LatentDirections',
    'PointLabels',
    'ScanObject',
    'TransportLabels',
    'UnitMatching',
    'UnitMoments',
    'UnitSummary',
    'class_relation',
    'edit_sample',
    'latent_directions',
    'null_space_projection',
    'run_sampler',
    'save_class_relation',
    'scan_objects',
    'traverse',
    'vp_levels',
]
