# SPDX-License-Identifier: Apache-2.0
"""Colors of classes and subclasses, as (K, 3) uint8 RGB."""

import colorsys

import numpy as np

# SemanticKITTI's own colors (its API lists them blue first), in the order of mmdet3d's 19 classes.
SEMANTICKITTI = np.array([
    [100, 150, 245], [100, 230, 245], [30, 60, 150], [80, 30, 180], [100, 80, 250], [255, 30, 30], [255, 40, 200],
    [150, 30, 90], [255, 0, 255], [255, 150, 255], [75, 0, 75], [175, 0, 75], [255, 200, 0], [255, 120, 50],
    [0, 175, 0], [135, 60, 0], [150, 240, 80], [255, 240, 150], [255, 0, 0],
], dtype=np.uint8)  # fmt: skip
IGNORED = np.array([90, 90, 90], dtype=np.uint8)
# mmdet3d has these misspellings in its metrics and configs, where they have to stay.
_DRAWN_AS = {'trunck': 'trunk', 'terrian': 'terrain'}


def class_name(name: str) -> str:
    """Return a class name as pictures and tables show it, two misspelt names of mmdet3d corrected.

    Example:
        >>> class_name('terrian'), class_name('car')
        ('terrain', 'car')
    """
    return _DRAWN_AS.get(str(name), str(name))


def class_colors(labels: np.ndarray, palette: np.ndarray = SEMANTICKITTI) -> np.ndarray:
    """(N, 3) uint8 color of each label (N,); gray for labels outside the palette."""
    known = (labels >= 0) & (labels < len(palette))
    return np.where(known[:, None], palette[np.where(known, labels, 0)], IGNORED)


def subclass_colors(classes: np.ndarray, subclasses: np.ndarray, num_clusters: int) -> np.ndarray:
    """(N, 3) uint8 color of each subclass: hues apart within a class, and another first hue for each class.

    Args:
        classes: (N,) class, below 0 = gray.
        subclasses: (N,) subclass within the class, below 0 = gray.
        num_clusters: K.
    """
    # the golden angle apart from class to class; every other subclass paler
    table = np.array([
        colorsys.hsv_to_rgb((0.381966 * c + k / num_clusters) % 1, 0.85 - 0.35 * (k % 2), 1)
        for c in range(int(classes.max(initial=0)) + 1)
        for k in range(num_clusters)
    ])  # fmt: skip
    table = (255 * table).astype(np.uint8)
    known = (classes >= 0) & (subclasses >= 0)
    return np.where(known[:, None], table[np.where(known, classes * num_clusters + subclasses, 0)], IGNORED)
