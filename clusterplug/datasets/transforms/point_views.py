# SPDX-License-Identifier: Apache-2.0
"""Several augmented copies of a scan that know which of their points are the same."""

import math
from collections.abc import Sequence

import torch
from mmcv.transforms import BaseTransform
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.datasets.transforms.scan_regions import cell_regions, segment_regions
from clusterplug.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PointViews(BaseTransform):
    """Crop, drop, turn, scale, flip and jitter a scan several times, keeping the correspondence of points.

    Adds ``views`` (V tensors (n, C)), ``origins`` (V tensors (n,) int64, the point of the scan that each is),
    ``matches`` ((M, V) int64, positions in the views of M points that all views hold), and with ``regions`` also
    ``regions`` (V tensors (n,) int64, -1 = none) and ``num_regions``. Where the scan has ``pts_semantic_mask``,
    ``point_labels`` (M,) are the labels of the matched points. Points with NaN or inf are dropped first.

    Args:
        num_views: V.
        num_matches: at most so many matched points, drawn at random; fewer where the views share fewer.
        regions: ``'cells'`` (cubes of ``region_size``) or ``'segments'`` (connected, without the ground); a region
            counts where every view holds ``region_points`` of its points. None: no regions.
        region_size: edge of the cells, in the units of the points (m).
        num_regions: at most so many regions, drawn at random.
        region_points: least number of points of a region in each view.
        crop: share of the points that are kept, those nearest (from above) to a random one; (least, most).
        drop: share of points that are dropped at random, (least, most).
        rot_range: angles about the z axis, radians.
        scale_range: factors.
        flip: probability of a flip of x, and of y.
        jitter: standard deviation of noise on each coordinate, cut at five times that.
        max_points: at most so many points a view, drawn at random. None: all.
        num_points: exactly so many points a view (drawn with repetition where there are fewer), for backbones of
            points. None: any number.

    A scan whose views would share no point is not cropped or dropped from. Random numbers come from torch's global
    generator.

    Raises:
        ValueError: options out of range, points without x, y, z, a scan without a finite point.

    Source: views of DepthContrast and SegContrast for scans; SwAV for the pairing. **Own choice**: what is cropped is
    nearest from above, as a LiDAR scan is a disk.

    Example:
        >>> views = PointViews(num_matches=5)(dict(points=torch.rand(100, 4)))
        >>> len(views['views']), views['matches'].shape
        (2, torch.Size([5, 2]))
    """

    def __init__(
        self,
        num_views: int = 2,
        num_matches: int = 1024,
        regions: str | None = None,
        region_size: float = 2.0,
        num_regions: int = 128,
        region_points: int = 5,
        crop: Sequence[float] = (0.6, 1.0),
        drop: Sequence[float] = (0.0, 0.2),
        rot_range: Sequence[float] = (-math.pi, math.pi),
        scale_range: Sequence[float] = (0.95, 1.05),
        flip: float = 0.5,
        jitter: float = 0.01,
        max_points: int | None = None,
        num_points: int | None = None,
    ):
        self.num_views, self.num_matches = (
            check_count(num_views, 'num_views', 1),
            check_count(num_matches, 'num_matches', 1),
        )
        self.regions = regions if regions is None else check_choice(regions, 'regions', ('cells', 'segments'))
        self.region_size = check_number(region_size, 'region_size', above=0)
        self.num_regions = check_count(num_regions, 'num_regions', 1)
        self.region_points = check_count(region_points, 'region_points', 1)
        self.crop, self.drop = _pair(crop, 'crop', 0, 1), _pair(drop, 'drop', 0, 1)
        if self.crop[0] == 0 or self.drop[1] == 1:
            raise ValueError(f'crop must keep and drop must leave points, got crop={crop} and drop={drop}')
        self.rot_range, self.scale_range = _pair(rot_range, 'rot_range'), _pair(scale_range, 'scale_range', 1e-6)
        self.flip, self.jitter = check_number(flip, 'flip', 0, 1), check_number(jitter, 'jitter', 0)
        self.max_points = None if max_points is None else check_count(max_points, 'max_points', 1)
        self.num_points = None if num_points is None else check_count(num_points, 'num_points', 1)

    def transform(self, results: dict) -> dict:
        """Add the views; ``points`` stays."""
        points = results['points']
        points = torch.as_tensor(getattr(points, 'tensor', points)).float()
        if points.dim() != 2 or points.shape[1] < 3:
            raise ValueError(f'points must be (N, C) with x, y, z first, got shape {tuple(points.shape)}')
        finite = torch.isfinite(points).all(1).nonzero()[:, 0]
        if len(finite) == 0:
            raise ValueError(f'a scan needs at least one finite point, got {len(points)} points')
        kept = [self._choose(points[finite]) for _ in range(self.num_views)]
        shared = _shared(kept, len(finite))
        if len(shared) == 0:
            kept = [self._limit(torch.arange(len(finite))) for _ in range(self.num_views)]
            shared = _shared(kept, len(finite))
            if len(shared) == 0:  # two draws of max_points out of many
                kept = kept[:1] * self.num_views
                shared = kept[0].unique()
        origins = [finite[each] for each in kept]
        results['views'] = [self._move(points[each]) for each in origins]
        results['origins'] = origins
        shared = shared[torch.randperm(len(shared))[: self.num_matches]]
        results['matches'] = torch.stack([_positions(each, shared, len(finite)) for each in kept], 1)
        if results.get('pts_semantic_mask') is not None:
            results['point_labels'] = torch.as_tensor(results['pts_semantic_mask']).long()[finite[shared]]
        if self.regions is not None:
            results['regions'], results['num_regions'] = self._find_regions(points[finite], kept)
        return results

    def _choose(self, points: Tensor) -> Tensor:
        """Positions of the points of a view, in random order where some are left out."""
        number = len(points)
        keep = max(1, round(number * _uniform(*self.crop)))
        kept = torch.arange(number)
        if keep < number:
            center = points[torch.randint(number, (1,)), :2]
            kept = (points[:, :2] - center).square().sum(1).topk(keep, largest=False).indices
        share = _uniform(*self.drop)
        if share > 0:
            kept = kept[torch.randperm(len(kept))[: max(1, round(len(kept) * (1 - share)))]]
        return self._limit(kept)

    def _limit(self, kept: Tensor) -> Tensor:
        if self.max_points is not None and len(kept) > self.max_points:
            kept = kept[torch.randperm(len(kept))[: self.max_points]]
        if self.num_points is not None:
            repeats = -(-self.num_points // len(kept))
            kept = torch.cat([kept[torch.randperm(len(kept))] for _ in range(repeats)])[: self.num_points]
        return kept

    def _move(self, points: Tensor) -> Tensor:
        """The points turned, scaled, flipped and jittered; further columns stay."""
        angle = _uniform(*self.rot_range)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        x, y = cos * x - sin * y, sin * x + cos * y
        if torch.rand(()) < self.flip:
            x = -x
        if torch.rand(()) < self.flip:
            y = -y
        xyz = torch.stack([x, y, z], 1) * _uniform(*self.scale_range)
        if self.jitter > 0:
            xyz = xyz + (torch.randn_like(xyz) * self.jitter).clamp(-5 * self.jitter, 5 * self.jitter)
        return torch.cat([xyz, points[:, 3:]], 1)

    def _find_regions(self, points: Tensor, kept: list[Tensor]) -> tuple[list[Tensor], int]:
        """Region of each point of each view, and how many there are."""
        xyz = points[:, :3]
        ids = cell_regions(xyz, self.region_size) if self.regions == 'cells' else segment_regions(xyz)
        total = int(ids.max()) + 1 if len(ids) else 0
        if total <= 0:
            return [torch.full_like(each, -1) for each in kept], 0
        least = torch.full((total,), len(points))
        for each in kept:
            own = ids[each]
            least = torch.minimum(least, torch.bincount(own[own >= 0], minlength=total))
        usable = (least >= self.region_points).nonzero()[:, 0]
        usable = usable[torch.randperm(len(usable))[: self.num_regions]]
        number_of = torch.full((total + 1,), -1)  # the last is that of points of no region
        number_of[usable] = torch.arange(len(usable))
        return [number_of[ids[each]] for each in kept], len(usable)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_views={self.num_views}, regions={self.regions!r})'


def _pair(value: Sequence[float], name: str, least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    if isinstance(value, (int, float)) or len(value) != 2:
        raise ValueError(f'{name} must be a pair (least, most), got {value!r}')
    low, high = (check_number(each, name, least, most) for each in value)
    if low > high:
        raise ValueError(f'{name} must be a pair (least, most), got {value!r}')
    return low, high


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _shared(kept: list[Tensor], number: int) -> Tensor:
    """Points that all views hold."""
    seen = torch.ones(number, dtype=torch.bool)
    for each in kept:
        seen &= torch.zeros(number, dtype=torch.bool).index_fill_(0, each, True)
    return seen.nonzero()[:, 0]


def _positions(kept: Tensor, points: Tensor, number: int) -> Tensor:
    """Where in a view the points are."""
    positions = torch.full((number,), -1)
    positions[kept] = torch.arange(len(kept))
    return positions[points]
