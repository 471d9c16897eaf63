# SPDX-License-Identifier: Apache-2.0
"""Instance ids of the points of a scan in SemanticKITTI's layout."""

from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform

from clusterplug.core.checks import whole_number
from clusterplug.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadInstances(BaseTransform):
    """Read the instance ids from the upper half of the label file, as ``pts_instance_mask``.

    Belongs right behind ``LoadAnnotations3D``, before anything that moves or drops points; ``Pack3DDetInputs`` needs
    the key ``'pts_instance_mask'`` too. Pipelines that mix scans (LaserMix, PolarMix) do not carry instance ids along:
    leave it out there, then cells take the place of objects.

    With it, :class:`~clusterplug.losses.PointClusterLoss` with ``regions='instance'`` assigns each object as one.

    Args:
        seg_offset: the semantic label is the file's number modulo this, the instance id the rest.

    Raises:
        ValueError: no label file in the info file, a label file of another length than the scan.

    Example:
        In a config, behind ``LoadAnnotations3D``: ``dict(type='clusterplug.LoadInstances')``
    """

    def __init__(self, seg_offset: int = 2**16):
        self.seg_offset = whole_number('seg_offset', seg_offset)

    def transform(self, results: dict) -> dict:
        """Add ``pts_instance_mask`` (N,) int64, 0 for what is no object."""
        path = results.get('pts_semantic_mask_path')
        if path is None:
            raise ValueError('LoadInstances needs pts_semantic_mask_path: put it behind LoadAnnotations3D')
        instances = (np.fromfile(Path(path), '<u4') // self.seg_offset).astype(np.int64)
        finite = results.get('finite_points')
        count = len(results['points']) if finite is None else len(finite)
        if len(instances) != count:
            raise ValueError(f'{path} has {len(instances)} labels, but the scan has {count} points: fetch both again')
        results['pts_instance_mask'] = instances if finite is None else instances[finite]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(seg_offset={self.seg_offset})'
