# SPDX-License-Identifier: Apache-2.0
"""Pictures without a display."""

from clusterplug.visualization.birds_eye import birds_eye
from clusterplug.visualization.class_maps import save_class_map
from clusterplug.visualization.cluster_page import paint_clusters, save_cluster_page, save_cluster_panels
from clusterplug.visualization.cluster_views import ClusterView, cluster_views
from clusterplug.visualization.colors import SEMANTICKITTI, class_colors, class_name, subclass_colors
from clusterplug.visualization.confusability import save_class_overlap
from clusterplug.visualization.embedding_figures import save_embedding_map, save_training_curves
from clusterplug.visualization.image_grid import save_image_grid
from clusterplug.visualization.memory_figures import save_center_map, save_curves, save_sizes
from clusterplug.visualization.panels import save_panels
from clusterplug.visualization.ply import save_ply
from clusterplug.visualization.point_cloud_page import save_page
from clusterplug.visualization.rerun_file import save_rerun
from clusterplug.visualization.retrieval_figures import (
    save_contact_sheet,
    save_kept_tokens,
    save_segment_strip,
    save_similarity_map,
)
from clusterplug.visualization.spectrum import save_spectrum
from clusterplug.visualization.token_figures import paint_token_clusters, save_token_panels, token_colors
from clusterplug.visualization.transition import save_phase_transition
from clusterplug.visualization.unit_figures import save_activation_pairs, save_match_curves, save_unit_correlations

__all__ = [
    'SEMANTICKITTI',
    'ClusterView',
    'birds_eye',
    'class_colors',
    'class_name',
    'cluster_views',
    'paint_clusters',
    'paint_token_clusters',
    'save_activation_pairs',
    'save_center_map',
    'save_class_map',
    'save_class_overlap',
    'save_cluster_page',
    'save_cluster_panels',
    'save_contact_sheet',
    'save_curves',
    'save_embedding_map',
    'save_image_grid',
    'save_kept_tokens',
    'save_match_curves',
    'save_page',
    'save_panels',
    'save_phase_transition',
    'save_ply',
    'save_rerun',
    'save_segment_strip',
    'save_similarity_map',
    'save_sizes',
    'save_spectrum',
    'save_token_panels',
    'save_training_curves',
    'save_unit_correlations',
    'subclass_colors',
    'token_colors',
]  # fmt: skip
