# SPDX-License-Identifier: Apache-2.0
"""MinkUNet voxels on the device of the points: mmdet3d moves them to CUDA whatever the device is.

Follows mmdet3d's function statement by statement, so that the voxels are the same (Apache-2.0, see NOTICE).
"""

import numpy as np
import torch
import torch.nn.functional as F

from clusterplug.compat.workaround import Workaround


def _quantise(preprocessor, points, data_sample, batch_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels (M, C) and coordinates (M, 4) of one scan (N, C); fills in the voxel labels and the point map."""
    voxel_size = points.new_tensor(preprocessor.voxel_layer.voxel_size)
    coordinates = torch.round(points[:, :3] / voxel_size).int()
    coordinates -= coordinates.min(0)[0]
    chosen, point_to_voxel = preprocessor.sparse_quantize(
        coordinates.cpu().numpy(), return_index=True, return_inverse=True
    )
    limit = preprocessor.max_voxels
    if preprocessor.training and limit is not None and len(chosen) > limit:
        chosen = np.random.choice(chosen, limit, replace=False)  # the host's generator: same voxels as on CUDA
    chosen = torch.from_numpy(chosen).to(points.device)
    if hasattr(data_sample.gt_pts_seg, 'pts_semantic_mask'):
        data_sample.gt_pts_seg.voxel_semantic_mask = data_sample.gt_pts_seg.pts_semantic_mask[chosen]
    if hasattr(data_sample.gt_pts_seg, 'pts_instance_mask'):  # not in mmdet3d
        data_sample.gt_pts_seg.voxel_instance_mask = data_sample.gt_pts_seg.pts_instance_mask[chosen]
    batch_column, padding = (0, (1, 0)) if preprocessor.batch_first else (-1, (0, 1))
    coordinates = F.pad(coordinates[chosen], padding, mode='constant', value=batch_index)
    data_sample.batch_idx = coordinates[:, batch_column]
    data_sample.point2voxel_map = torch.from_numpy(point_to_voxel).long().to(points.device)
    return points[chosen], coordinates


def patch(module):
    """Replace ``Det3DDataPreprocessor.voxelize`` for MinkUNet voxels of points on the CPU, or with instance ids."""
    host_voxelize = module.Det3DDataPreprocessor.voxelize

    @torch.no_grad()
    def voxelize(self, points, data_samples):
        of_objects = any(hasattr(getattr(each, 'gt_pts_seg', None), 'pts_instance_mask') for each in data_samples)
        if self.voxel_type != 'minkunet' or (points[0].device.type != 'cpu' and not of_objects):
            return host_voxelize(self, points, data_samples)
        scans = [_quantise(self, scan, sample, i) for i, (scan, sample) in enumerate(zip(points, data_samples))]
        voxels, coordinates = (torch.cat(parts) for parts in zip(*scans))
        return dict(voxels=voxels, coors=coordinates)

    return [(module.Det3DDataPreprocessor, 'voxelize', voxelize)]


WORKAROUND = Workaround(
    name='minkunet_voxelize',
    host='mmdet3d.models.data_preprocessors.data_preprocessor',
    patch=patch,
    thread='open-mmlab/mmdetection3d#3140',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d moves the voxel map with .to(points.device)',
)
