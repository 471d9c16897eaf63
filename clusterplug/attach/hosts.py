# SPDX-License-Identifier: Apache-2.0
"""What the clustering loss has to know of each kind of host: one record a host, and nothing elsewhere."""

from typing import NamedTuple

from torch import nn


class PointHost(NamedTuple):
    """A kind of model, known by the layers that it has.

    Attributes:
        models: which it is.
        tap: layer whose output (``'layer'``) or input (``'layer:input'``) is clustered by ``embedding='auto'``: the
            features before the classifier and before dropout; point features at the deepest stage where a host has
            some, as the method's authors tap them.
        classifier: layer whose output are the logits of the points or pixels, if there is one.
        labels: ``'masks'`` of the points or voxels, or ``'boxes'``.
        grid: part and attribute with the voxels along each axis of the finest grid, if the model tells it.
    """

    models: str
    tap: str
    classifier: str | None = None
    labels: str = 'masks'
    grid: tuple[str, str] | None = None


HOSTS = (
    PointHost('SPVCNN', 'backbone.point_transforms.1:input', 'decode_head.conv_seg'),
    PointHost('PointNet++, PAConv, DGCNN', 'decode_head.pre_seg_conv', 'decode_head.conv_seg'),
    PointHost(
        'MinkUNet, Cylinder3D, heads of mmsegmentation',
        'decode_head.conv_seg:input',
        'decode_head.conv_seg',
        grid=('backbone', 'grid_size'),
    ),
    PointHost('heads with a classifier', 'decode_head.classifier:input', 'decode_head.classifier'),
    PointHost(
        'PV-RCNN, its key points',
        'roi_head.semantic_head.seg_cls_layer:input',
        labels='boxes',
        grid=('middle_encoder', 'sparse_shape'),
    ),
    PointHost('PointRCNN, its points', 'rpn_head.cls_layers:input', labels='boxes'),
    PointHost(
        'SECOND, sparse, before it becomes dense',
        'middle_encoder.conv_out',
        labels='boxes',
        grid=('middle_encoder', 'sparse_shape'),
    ),
    PointHost('PointPillars, before pillars are scattered', 'voxel_encoder', labels='boxes'),
)
# Heads of detectors, of which the first that a model has tells the number of classes.
BOX_HEADS = ('rpn_head', 'bbox_head', 'pts_bbox_head')


def default_tap(model: nn.Module) -> str:
    """The tap of ``embedding='auto'``.

    Raises:
        ValueError: the model has none of the layers that are known.
    """
    layers = dict(model.named_modules())
    for host in HOSTS:
        if host.tap.partition(':')[0] in layers:
            return host.tap
    known = ', '.join(host.tap.partition(':')[0] for host in HOSTS)
    raise ValueError(f'embedding must name a layer: {type(model).__name__} has none of {known}')


def default_classifier(model: nn.Module) -> str | None:
    """The layer whose output are the logits, or None."""
    layers = dict(model.named_modules())
    return next((host.classifier for host in HOSTS if host.classifier in layers), None)


def fine_grid(model: nn.Module) -> tuple[int, ...] | None:
    """Voxels along each axis of a model's finest grid, in the order of its coordinates; None if its data tell it."""
    for part, name in dict.fromkeys(host.grid for host in HOSTS if host.grid):
        grid = getattr(getattr(model, part, None), name, None)
        if grid is not None:
            return tuple(int(size) for size in grid)
    return None


def is_detector(model: nn.Module) -> bool:
    """Whether labels come from boxes when nothing else is said."""
    return not hasattr(model, 'decode_head') and any(hasattr(model, name) for name in BOX_HEADS[:2])


def number_of_box_classes(model: nn.Module) -> int:
    """The number of classes of a detector.

    Raises:
        ValueError: it has no head that is known.
    """
    for name in BOX_HEADS:
        count = getattr(getattr(model, name, None), 'num_classes', None)
        if isinstance(count, int):
            return count
    raise ValueError(
        f'{type(model).__name__} has no rpn_head or bbox_head with num_classes, which labels from boxes need; '
        f'wrap a 3D detector'
    )
