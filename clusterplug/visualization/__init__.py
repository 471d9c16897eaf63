"""Pictures without a display."""

from clusterplug.visualization.birds_eye import birds_eye
from clusterplug.visualization.colors import SEMANTICKITTI, class_colors, subclass_colors
from clusterplug.visualization.panels import save_panels

__all__ = ['SEMANTICKITTI', 'birds_eye', 'class_colors', 'save_panels', 'subclass_colors']
