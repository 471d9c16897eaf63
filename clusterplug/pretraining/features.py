# SPDX-License-Identifier: Apache-2.0
"""What a backbone gives, as one feature an image, scan, region or point."""

import torch
from torch import Tensor, nn


def image_features(backbone: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """Pooled features (B, C) of each view (B, 3, H, W): one call of the backbone for all views of one size.

    The backbone may give (N, C), maps (N, C, H, W), which are averaged, or a sequence of these, of which the last
    counts.
    """
    sizes = {}
    for number, view in enumerate(views):
        sizes.setdefault(tuple(view.shape[1:]), []).append(number)
    result: list[Tensor | None] = [None] * len(views)
    for numbers in sizes.values():
        pooled = _pooled(backbone(torch.cat([views[n] for n in numbers])))
        for n, part in zip(numbers, pooled.split([len(views[n]) for n in numbers]), strict=True):
            result[n] = part
    return result


def _pooled(output) -> Tensor:
    if isinstance(output, (tuple, list)):
        output = output[-1]
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f'the backbone must give features (N, C) or maps (N, C, H, W), or a sequence of them, got {got}; a vision '
            f"transformer of timm gives (N, C) as dict(type='clusterplug.TimmBackbone', name=...)"
        )
    return output if output.dim() == 2 else output.flatten(2).mean(2)


def scan_features(backbone: nn.Module, inputs: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the voxels or points of all scans of all views, in one call of the backbone.

    Returns:
        (R, C) features; (R,) int64 number of the scan of each; (P,) int64 row of the features for each point of all
        scans behind each other.
    """
    if 'voxels' in inputs:
        voxels = inputs['voxels']
        features = backbone(voxels['voxels'], voxels['coors'])
        if not isinstance(features, Tensor) or len(features) != len(voxels['coors']):
            raise ValueError(
                f'{type(backbone).__name__} must give one feature a voxel (MinkUNetBackbone, SPVCNNBackbone), got '
                f'{tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__} for '
                f'{len(voxels["coors"])} voxels'
            )
        return features, voxels['scan_of'], voxels['rows']
    scans = inputs['scans']
    if len({len(scan) for scan in scans}) > 1:
        raise ValueError(
            'a backbone of points needs the same number of points in every view; set num_points of PointViews'
        )
    points = torch.stack(scans)
    output = backbone(points)
    if not isinstance(output, dict):
        raise ValueError(f'{type(backbone).__name__} must give a dict as the point backbones of mmdet3d do')
    if 'fa_points' in output:  # DGCNN
        features, xyz = output['fa_points'], None
    elif output.get('fp_features'):
        features, xyz = output['fp_features'][-1].mT, output['fp_xyz'][-1]
    else:
        features, xyz = output['sa_features'][-1].mT, output['sa_xyz'][-1]
    number, per_scan = features.shape[:2]
    scan_of = torch.arange(number, device=points.device).repeat_interleave(per_scan, output_size=number * per_scan)
    if per_scan == points.shape[1]:
        rows = torch.arange(number * per_scan, device=points.device)
    else:  # of each point the nearest one that has a feature
        nearest = torch.cdist(points[..., :3].float(), xyz.float()).argmin(-1)
        rows = (nearest + per_scan * torch.arange(number, device=points.device)[:, None]).flatten()
    return features.flatten(0, 1), scan_of, rows


def segment_means(features: Tensor, ids: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Mean (number, C) of the rows of each id in fp32 or better, and how many there are; ids below 0 belong nowhere."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    ids = torch.where(ids < 0, number, ids)
    sums = torch.zeros(number + 1, features.shape[1], dtype=dtype, device=features.device)
    counts = torch.zeros(number + 1, dtype=dtype, device=features.device)
    counts.index_add_(0, ids, counts.new_ones(1).expand(len(ids)))
    sums = sums.index_add(0, ids, features.to(dtype))
    means = sums / counts.clamp(min=1)[:, None]
    return means[:-1].to(features.dtype), counts[:-1]
