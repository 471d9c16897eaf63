# SPDX-License-Identifier: Apache-2.0
"""Views of samples on their way to the model: stacked and scaled images, voxels or padded points of scans."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from clusterplug.registry import MODELS


@MODELS.register_module()
class MultiViewPreprocessor(BaseDataPreprocessor):
    """Move views to the device, stack images of a view, make voxels of the scans of all views.

    ``inputs['views']`` is what :class:`~clusterplug.datasets.transforms.PackViews` gives after collation: V lists of B
    images (3, H, W) or V tensors (B, 3, H, W); V lists of B sequences of slices (S, 3, H, W); or V lists of B scans
    (N, C).

    Args:
        mean: pixel means, taken off the images; in their channel order.
        std: pixel standard deviations that they are divided by.
        points: config of the data preprocessor of the segmentor that is pre-trained (``Det3DDataPreprocessor``), which
            makes the voxels of scans, so that they are the ones that it will see. None: scans go to the backbone as
            points (B, N, C) and need equal numbers of points.
        non_blocking: as in mmengine.

    Returns of ``forward``:
        ``inputs`` with ``views`` (images: V tensors (B, 3, H, W) in fp32; slices: V tensors (B, S, 3, H, W), padded
        to the longest, and ``mask`` (B, S) bool, True = a slice), or ``scans``: the V B scans, those of view
        0 first, and ``voxels`` with ``voxels``, ``coors`` and ``rows``, the row of its voxel for every point, of all
        scans behind each other.

    Raises:
        ValueError: ``max_voxels`` in ``points``: a random part of the voxels would leave points without one; drop
            points in :class:`~clusterplug.datasets.transforms.PointViews` instead. Images of one view of different
            sizes, scans without a point, NaN coordinates.

    Example:
        In a config: ``data_preprocessor=dict(type='clusterplug.MultiViewPreprocessor', mean=[124, 116, 104],
        std=[58, 57, 57])``
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        points: dict | None = None,
        non_blocking: bool = False,
    ):
        super().__init__(non_blocking)
        if (mean is None) != (std is None) or (mean is not None and len(mean) != len(std)):
            raise ValueError(f'mean and std must be given together, one number a channel, got {mean} and {std}')
        self.scaled = mean is not None
        if self.scaled:
            self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
            self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.points = None
        if points is not None:
            if points.get('max_voxels') is not None:
                raise ValueError(
                    f'max_voxels of the data preprocessor must be None in pre-training, got {points["max_voxels"]}; '
                    f'use max_points of PointViews'
                )
            # as the config of a segmentor of mmdet3d names it, whatever the default scope is
            kind = points.get('type', 'Det3DDataPreprocessor')
            kind = f'mmdet3d.{kind}' if isinstance(kind, str) and '.' not in kind else kind
            self.points = MODELS.build({**points, 'type': kind})

    def forward(self, data: dict, training: bool = False) -> dict:
        """Inputs of the model from a collated batch."""
        data = self.cast_data(data)
        inputs = dict(data['inputs'])
        views = inputs['views']
        if not views:
            raise ValueError(
                'inputs must hold at least one view, got none; use MultiCrop or PointViews in the pipeline'
            )
        if views[0][0].dim() == 4:
            inputs.update(self._volumes(views))
        elif views[0][0].dim() == 3:
            inputs['views'] = [self._images(view, number) for number, view in enumerate(views)]
        else:
            inputs.update(self._scans(views))
        return {'inputs': inputs, 'data_samples': data.get('data_samples')}

    def _images(self, view, number: int) -> Tensor:
        if not isinstance(view, Tensor):
            sizes = {tuple(image.shape) for image in view}
            if len(sizes) > 1:
                raise ValueError(f'images of view {number} must have one size, got {sorted(sizes)}; crop them to one')
            view = torch.stack(list(view))
        view = view.float()
        return (view - self.mean) / self.std if self.scaled else view

    def _volumes(self, views) -> dict:
        """Padded sequences of slices, and where there are some."""
        lengths = [len(volume) for volume in views[0]]
        sizes = {tuple(volume.shape[1:]) for view in views for volume in view}
        if len(sizes) > 1 or not min(lengths):
            raise ValueError(f'slices must have one size and be at least one, got sizes {sorted(sizes)}, {lengths}')
        if any([len(volume) for volume in view] != lengths for view in views):
            raise ValueError('views of a volume must have the same slices; make them with SliceViews')
        padded = [torch.nn.utils.rnn.pad_sequence(list(view), batch_first=True).float() for view in views]
        if self.scaled:
            padded = [(view - self.mean) / self.std for view in padded]
        length = torch.tensor(lengths, device=padded[0].device)
        return {'views': padded, 'mask': torch.arange(max(lengths), device=length.device) < length[:, None]}

    def _scans(self, views) -> dict:
        scans = [scan for view in views for scan in view]
        if any(len(scan) == 0 for scan in scans):
            raise ValueError('every view of a scan needs points, got a view without any; drop or crop less')
        result = {'scans': scans, 'num_views': len(views)}
        if self.points is None:
            return result
        from mmdet3d.structures import Det3DDataSample, PointData

        samples = [Det3DDataSample(gt_pts_seg=PointData()) for _ in scans]
        voxels = dict(self.points.voxelize(scans, samples))
        rows, first = [], 0
        for sample in samples:
            point_rows = getattr(sample, 'point2voxel_map', None)
            if point_rows is None:
                raise ValueError(
                    f"points must make voxels of voxel_type 'minkunet', which know the voxel of each point, got "
                    f'{self.points.voxel_type!r}'
                )
            rows.append(point_rows.long().view(-1) + first)
            first += len(sample.batch_idx)
        voxels['rows'] = torch.cat(rows)
        voxels['scan_of'] = voxels['coors'][:, 0 if self.points.batch_first else -1].long()
        return {**result, 'voxels': voxels}
