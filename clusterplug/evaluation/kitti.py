# SPDX-License-Identifier: Apache-2.0
"""Average precision as the KITTI detection benchmark defines it, on the CPU, all measures in one dict."""

from collections.abc import Sequence

import numpy as np

MEASURES = ('bbox', 'bev', '3d', 'aos')
# least overlap of a true positive: in the image, from above, in space
_STRICT = {'Car': 0.7, 'Pedestrian': 0.5, 'Cyclist': 0.5, 'Van': 0.7, 'Person_sitting': 0.5}


def kitti_average_precision(
    ground_truth: Sequence[dict], detections: Sequence[dict], classes: Sequence[str] = ('Pedestrian', 'Cyclist', 'Car')
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Average precision in percent, at 11 and at 40 recall positions.

    The counting is mmdet3d's, which follows the official program; the overlap of turned boxes is
    exact on the CPU (``clusterplug.compat.mmdet3d.kitti_rotated_iou``). Overlaps: 0.7 for Car and Van, 0.5 for the
    others.

    Args:
        ground_truth: one dict a frame, with arrays over its objects: ``name``, ``truncated``, ``occluded``, ``alpha``,
            ``bbox`` (n, 4) left, top, right, bottom in pixels, ``dimensions`` (n, 3) length, height, width in meters,
            ``location`` (n, 3) bottom center in camera coordinates, ``rotation_y``. Regions to be left out have the
            name ``DontCare``.
        detections: likewise, with ``score``; ``truncated`` and ``occluded`` may be missing.
        classes: which to evaluate.

    Returns:
        ``result[class][measure]['R11' or 'R40']``: (3,) easy, moderate, hard. Measures: ``bbox`` in the image, ``bev``
        from above, ``3d``, ``aos`` orientation similarity in the image (NaN where no detection has an ``alpha``; -10
        means none).

    Raises:
        ValueError: frames that do not match, an unknown class, a missing array.

    Switches on :mod:`clusterplug.compat` in the whole process, with a line in the log.

    Source: Geiger et al., "Are we ready for autonomous driving?", CVPR 2012, and the benchmark's 40 positions since
    2019 (Simonelli et al., ICCV 2019).

    Example:
        >>> car = dict(
        ...     name=['Car'], truncated=[0], occluded=[0], alpha=[0], bbox=[[0, 0, 60, 60]], dimensions=[[4, 1.5, 1.6]],
        ...     location=[[0, 1.6, 20]], rotation_y=[0], score=[0.9],
        ... )
        >>> kitti_average_precision([car], [car], ['Car'])['Car']['3d']['R11'].round(1).tolist()
        [9.1, 9.1, 9.1]
    """
    from mmdet3d.evaluation.functional.kitti_utils import eval as host

    from clusterplug import compat
    from clusterplug.compat.mmdet3d.kitti_empty_frames import fill_empty_frames

    known = ', '.join(_STRICT)
    if not classes or any(name not in _STRICT for name in classes):
        raise ValueError(f'classes must be some of {known}, got {list(classes)}')
    if len(ground_truth) != len(detections) or not len(detections):
        raise ValueError(
            f'ground_truth and detections must hold the same frames, at least one; got {len(ground_truth)} and '
            f'{len(detections)}; a frame without detections has empty arrays'
        )
    truth = fill_empty_frames([_arrays(frame, 'ground_truth', number) for number, frame in enumerate(ground_truth)])
    found = [_arrays(frame, 'detections', number) for number, frame in enumerate(detections)]
    numbers = [list(_STRICT).index(name) for name in classes]
    overlaps = np.array([[[_STRICT[name] for name in classes]] * 3])
    angles = any((frame['alpha'] != -10).any() for frame in found)
    measures = MEASURES if angles else MEASURES[:3]
    with compat.switched_on():
        values = host.do_eval(truth, found, numbers, overlaps, list(measures))
    result = {}
    for c, name in enumerate(classes):
        result[name] = {}
        for m, measure in enumerate(MEASURES):
            both = [values[m], values[m + len(MEASURES)]]
            result[name][measure] = {
                key: np.full(3, np.nan) if value is None else value[c, :, 0]
                for key, value in zip(('R11', 'R40'), both, strict=True)
            }
    return result


def _arrays(frame: dict, side: str, number: int) -> dict[str, np.ndarray]:
    """The frame with arrays of the right shapes, also when it is empty."""
    columns = dict(
        name=None, truncated=None, occluded=None, alpha=None, bbox=4, dimensions=3, location=3, rotation_y=None
    )
    if side == 'detections':
        columns |= dict(score=None)
        count = len(frame.get('name', ()))
        frame = {'truncated': np.zeros(count), 'occluded': np.zeros(count, int), **frame}
    missing = [key for key in columns if key not in frame]
    if missing:
        raise ValueError(f'frame {number} of {side} lacks {", ".join(missing)}; it needs {", ".join(columns)}')
    count = len(frame['name'])
    arrays = {}
    for key, width in columns.items():
        array = np.asarray(frame[key]) if key == 'name' else np.asarray(frame[key], np.float64)
        wanted = (count,) if width is None else (count, width)
        if array.size != np.prod(wanted):
            raise ValueError(f'{key} of frame {number} of {side} must have shape {wanted}, got {array.shape}')
        arrays[key] = array.reshape(wanted)
    return arrays
