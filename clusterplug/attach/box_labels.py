# SPDX-License-Identifier: Apache-2.0
"""Labels of points, key points and voxels of a detector from the ground-truth boxes that contain them."""

from functools import partial

import torch
from torch import Tensor, nn

from clusterplug.attach.hosts import number_of_box_classes
from clusterplug.attach.regions import stacked_points
from clusterplug.core.geometry import inside_boxes

KINDS = ('boxes', 'boxes+background')
# what a point lies in; where a voxel holds several points, the largest number wins
_BOXES = 1 << 32
_NOTHING, _BACKGROUND, _UNKNOWN, _FIRST_CLASS = range(4)


class BoxLabels:
    """Gives each row of a tapped feature the class of the ground-truth box that contains it.

    A point in several boxes belongs to the first, as in mmdet3d's own point heads. A voxel belongs to a class as soon
    as one of its points does. Points in boxes of a class that the detector does not know are ignored, and so are voxels
    without a point. Detectors of mmdet3d hand over lists, one entry a scan, so this loops over the scans of a batch,
    without host synchronization.

    Args:
        model: an mmdet3d detector.
        kind: ``'boxes'``: points outside all boxes are ignored. ``'boxes+background'``: they are a class of their own,
            the last, with its own number of clusters if the loss names one.

    Attributes:
        num_classes: of the labels, with the background if it is one.
        regions: after a call, (M,) int64 number of the box that each row lies in, -1 for none.
        place: after a call, a function without arguments that gives (M, 3) positions of the rows (voxels: their
            centers) in the coordinates of the points, and (M,) int64 numbers of their scans.

    Raises:
        ValueError: the model does not tell its number of classes, or an unknown kind.
    """

    def __init__(self, model: nn.Module, kind: str = 'boxes'):
        if kind not in KINDS:
            raise ValueError(f'labels from boxes must be one of {KINDS}, got {kind!r}')
        self.known_classes = number_of_box_classes(model)
        self.background = kind == 'boxes+background'
        self.num_classes = self.known_classes + self.background
        self.layer = getattr(getattr(model, 'data_preprocessor', None), 'voxel_layer', None)
        self.truth = self.key_points = self.regions = self.place = None
        encoder = getattr(model, 'points_encoder', None)
        if encoder is not None:
            encoder.register_forward_hook(self._keep)

    def _keep(self, encoder, _, output):
        if encoder.training and isinstance(output, dict):
            self.key_points = output.get('keypoints')

    def read(self, samples: list) -> None:
        """Note the ``gt_instances_3d`` of the data samples, before the detector sees them: it may change them.

        Raises:
            ValueError: no ground truth.
            TypeError: boxes in camera coordinates.
        """
        self.truth = [_boxes(sample) for sample in samples]

    def __call__(self, rows, inputs: dict, ignore_index: int) -> Tensor:
        """Labels (M,) int64 of the rows of a feature.

        Args:
            rows: :class:`~clusterplug.attach.taps.Rows` of a feature (M, C): points, key points, voxels, or a
                sparse tensor of any stride.
            inputs: what mmdet3d's preprocessor made: ``points`` (a list), and ``voxels`` where the detector uses them.
            ignore_index: label of rows that are ignored.

        Raises:
            ValueError: rows that are none of these.
        """
        key_points, truth = self.key_points, self.truth
        self.key_points = self.truth = None
        count, voxels = rows.features.shape[0], inputs.get('voxels')
        points = [scan[:, :3] for scan in inputs['points']]
        coords = voxels.get('coors') if isinstance(voxels, dict) else None
        if rows.indices is not None:
            codes = self._of_voxels(rows.indices, rows.spatial_shape, points, truth)
            self.place = partial(self._centers, rows.indices, rows.spatial_shape)
        elif key_points is not None and count == key_points.shape[0]:
            scans = key_points[:, 1:4].unflatten(0, (len(truth), -1)).unbind(0)
            codes = self._of_points(scans, truth)
            self.place = partial(stacked_points, scans)
        elif coords is not None and 'num_points' in voxels and count == coords.shape[0]:
            codes = self._of_voxels(coords, None, points, truth)
            self.place = partial(self._centers, coords, None)
        elif count == sum(map(len, points)):
            codes = self._of_points(points, truth)
            self.place = partial(stacked_points, points)
        else:
            have = dict(points=sum(map(len, points)), voxels=None if coords is None else coords.shape[0])
            have['key points'] = None if key_points is None else key_points.shape[0]
            have = ', '.join(f'{number} {name}' for name, number in have.items() if number is not None)
            raise ValueError(
                f'the tapped feature has {count} rows, which are neither of {have}; tap a layer with one row each, or '
                f'a sparse one of spconv (any stride)'
            )
        classes = torch.arange(self.known_classes)
        codes, box = codes // _BOXES, codes % _BOXES
        # a box of its own for each class and scan: boxes are numbered over all scans
        self.regions = torch.where(codes >= _FIRST_CLASS, box, -1)
        outside = self.known_classes if self.background else ignore_index
        table = torch.cat([torch.tensor([ignore_index, outside, ignore_index]), classes]).to(codes.device)
        return table[codes]

    def _of_points(self, scans, truth: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Code of each point of all scans, times ``_BOXES``, plus the number of its box over all scans."""
        codes, before = [], 0
        for points, (boxes, labels) in zip(scans, truth, strict=True):
            if not len(boxes):
                codes.append(torch.full_like(points[:, 0], _BACKGROUND * _BOXES, dtype=torch.int64))
                continue
            inside = inside_boxes(points.float(), boxes)
            known = (labels >= 0) & (labels < self.known_classes)
            of_box = torch.where(known, labels + _FIRST_CLASS, _UNKNOWN)
            box = inside.int().argmax(1)
            codes.append(torch.where(inside.any(1), of_box[box], _BACKGROUND) * _BOXES + box + before)
            before += len(boxes)
        return torch.cat(codes)

    def _of_voxels(self, coords: Tensor, shape: tuple | None, scans: list[Tensor], truth) -> Tensor:
        """Code of each voxel (batch, z, y, x) of a grid of ``shape``, None: of the finest."""
        if self.layer is None:
            raise ValueError('the model has no data_preprocessor.voxel_layer, which tells where voxels lie')
        points = torch.cat(scans)
        size, low, full, grid, stride = self._grid(shape, points)
        place = ((points - low) / size).floor().long()
        inside = ((place >= 0) & (place < full)).all(1)
        # a strided sparse convolution puts i // stride among the cells that i reaches
        place = place // stride
        inside &= (place < grid).all(1)
        batch = torch.cat([place.new_full((len(scan),), number) for number, scan in enumerate(scans)])
        keys, order = _key(coords.long(), grid).sort()
        wanted = _key(torch.cat([batch[:, None], place.flip(1)], 1), grid)
        found = torch.searchsorted(keys, wanted).clamp_max_(max(len(keys) - 1, 0))
        codes = self._of_points(scans, truth)
        result = codes.new_full((len(coords) + 1,), _NOTHING)
        if len(keys):
            row = torch.where(inside & (keys[found] == wanted), order[found], len(coords))
            result.scatter_reduce_(0, row, codes, 'amax')
        return result[:-1]

    def _grid(self, shape: tuple | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Along x, y, z: size of the finest voxels, low end, their number, that of a grid of ``shape``, its stride."""
        size, limits = (
            torch.tensor(getattr(self.layer, name), dtype=torch.float32, device=like.device)
            for name in ('voxel_size', 'point_cloud_range')
        )
        full = ((limits[3:] - limits[:3]) / size).round().long()
        grid = full if shape is None else torch.tensor(shape[::-1], device=like.device)
        stride = (2 ** torch.log2(full / grid).round().clamp_min(0)).long()
        return size, limits[:3], full, grid, stride

    def _centers(self, coords: Tensor, shape: tuple | None) -> tuple[Tensor, Tensor]:
        """Centers (M, 3) of voxels (batch, z, y, x) of a grid of ``shape``, and their scans."""
        size, low, _, _, stride = self._grid(shape, coords)
        return (coords[:, 1:].flip(1) + 0.5) * (size * stride) + low, coords[:, 0].long()


def _key(coords: Tensor, grid: Tensor) -> Tensor:
    """One number for each cell (batch, z, y, x) of a grid of x, y, z cells."""
    batch, z, y, x = coords.unbind(1)
    return ((batch * grid[2] + z) * grid[1] + y) * grid[0] + x


def _boxes(sample) -> tuple[Tensor, Tensor]:
    """Boxes (T, 7) and classes (T,) of the ground truth of a scan."""
    instances = getattr(sample, 'gt_instances_3d', None)
    if instances is None or 'bboxes_3d' not in instances or 'labels_3d' not in instances:
        raise ValueError(
            "labels from boxes need gt_instances_3d: let the pipeline pack 'gt_bboxes_3d' and 'gt_labels_3d'"
        )
    boxes = instances.bboxes_3d
    if type(boxes).__name__ not in ('LiDARInstance3DBoxes', 'DepthInstance3DBoxes'):
        raise TypeError(
            f'labels from boxes need boxes in the coordinates of the points (LiDARInstance3DBoxes or '
            f'DepthInstance3DBoxes), got {type(boxes).__name__}; convert them with convert_to'
        )
    return boxes.tensor[:, :7].float().clone(), instances.labels_3d.long().clone()
