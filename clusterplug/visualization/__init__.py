"""Pictures without a display."""

from clusterplug.visualization.birds_eye import birds_eye
from clusterplug.visualization.colors import SEMANTICKITTI, class_colors, subclass_colors
from clusterplug.visualization.memory_figures import save_center_map, save_curves, save_sizes
from clusterplug.visualization.panels import save_panels
from clusterplug.visualization.ply import save_ply
from clusterplug.visualization.point_cloud_page import save_page
from clusterplug.visualization.retrieval_figures import (
    save_contact_sheet,
    save_kept_tokens,
    save_segment_strip,
    save_similarity_map,
)
from clusterplug.visualization.rerun_file import save_rerun

__all__ = [
    'SEMANTICKITTI', 'birds_eye', 'class_colors', 'save_center_map', 'save_contact_sheet', 'save_curves',
    'save_kept_tokens', 'save_page', 'save_panels', 'save_ply', 'save_rerun', 'save_segment_strip',
    'save_similarity_map', 'save_sizes', 'subclass_colors',
]  # fmt: skip
