# SPDX-License-Identifier: Apache-2.0
"""SemanticKITTI's multi-scan task: 25 classes, six of which are moving objects."""

from mmdet3d.datasets import SemanticKittiDataset

from clusterplug.datasets.previous_scans import AddPreviousScans
from clusterplug.registry import DATASETS

__all__ = ['AddPreviousScans', 'SemanticKittiMultiScanDataset']

_MOVING = ('moving-car', 'moving-bicyclist', 'moving-person', 'moving-motorcyclist', 'moving-other-vehicle',
           'moving-truck')  # fmt: skip
_MOVING_COLORS = [[150, 150, 245], [255, 140, 220], [255, 120, 120], [190, 60, 130], [160, 140, 250], [140, 80, 220]]


@DATASETS.register_module()
class SemanticKittiMultiScanDataset(SemanticKittiDataset):
    """mmdet3d's ``SemanticKittiDataset`` with the 25 classes of the multi-scan benchmark.

    The first 19 are those of the single-scan task, which then hold what does not move; the others are moving-car,
    moving-bicyclist, moving-person, moving-motorcyclist, moving-other-vehicle and moving-truck. Everything else, and
    every argument, is that of mmdet3d; the config names the mapping of the raw labels
    (``configs/_base_/datasets/semantickitti_multiscan.py``). The scans come together in the pipeline, by
    :class:`~clusterplug.datasets.previous_scans.AddPreviousScans`.
    """

    METAINFO = {
        **SemanticKittiDataset.METAINFO,
        'classes': (*SemanticKittiDataset.METAINFO['classes'], *_MOVING),
        'palette': [*SemanticKittiDataset.METAINFO['palette'], *_MOVING_COLORS],
        'seg_valid_class_ids': tuple(range(25)),
        'seg_all_class_ids': tuple(range(25)),
    }
