# SPDX-License-Identifier: Apache-2.0
"""Everything there is to see of the subclasses of a trained model: files for a scan, files for the memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clusterplug.visualization.colors import SEMANTICKITTI, class_colors, subclass_colors
from clusterplug.visualization.memory_figures import save_center_map, save_sizes
from clusterplug.visualization.panels import save_panels
from clusterplug.visualization.ply import save_ply
from clusterplug.visualization.point_cloud_page import save_page


def scan_colorings(scan, num_clusters: int, truth: np.ndarray | None = None) -> list[tuple[str, np.ndarray]]:
    """Colors of a scan's points by truth (if given), prediction and subclass.

    Args:
        scan: a :class:`~clusterplug.attach.ScanSubclasses`.
        num_clusters: K of the memory.
        truth: (N,) true class of each point.

    Returns:
        (name, (N, 3) uint8 RGB) for each.
    """
    subclasses = subclass_colors(scan.classes.cpu().numpy(), scan.subclasses.cpu().numpy(), num_clusters)
    colorings = [] if truth is None else [('truth', class_colors(np.asarray(truth)))]
    return [*colorings, ('prediction', class_colors(scan.predictions.cpu().numpy())), ('subclasses', subclasses)]


def save_scan_views(
    folder: Path, name: str, points: np.ndarray, colorings: Sequence[tuple[str, np.ndarray]],
    class_names: Sequence[str] = (),
) -> list[Path]:  # fmt: skip
    """Write a scan as ``<name>.png`` from above, ``<name>.html`` that turns, and ``<name>_subclasses.ply``.

    Args:
        folder: where to.
        name: of the scan.
        points: (N, 3 or more) meters.
        colorings: of :func:`scan_colorings`.
        class_names: for the legend.
    """
    folder = Path(folder)
    legend = list(zip(class_names, SEMANTICKITTI))
    files = [folder / f'{name}.png', folder / f'{name}.html', folder / f'{name}_subclasses.ply']
    save_panels(files[0], points, colorings, legend=legend, columns=len(colorings))
    save_page(files[1], points, colorings, title=name, legend=legend)
    save_ply(files[2], points, dict(colorings)['subclasses'])
    return files


def save_memory_views(folder: Path, memory, class_names: Sequence[str] | None = None, prefix: str = '') -> list[Path]:
    """Write ``subclass_sizes.png`` and ``centers.png`` of a :class:`~clusterplug.memory.SubclassMemory`.

    Args:
        folder: where to.
        memory: the memory.
        class_names: C names.
        prefix: before the names of the files.
    """
    folder = Path(folder)
    shown = (memory.centers, *map(memory.layout.without_dummy, (memory.sizes, memory.unused)))
    centers, sizes, unused = (x.detach().cpu().numpy() for x in shown)
    files = [folder / f'{prefix}subclass_sizes.png', folder / f'{prefix}centers.png']
    save_sizes(files[0], sizes, ~unused, class_names)
    save_center_map(files[1], centers, sizes, ~unused, class_names)
    return files
