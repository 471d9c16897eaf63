# SPDX-License-Identifier: Apache-2.0
"""What each layer of a clustering backbone makes of an image, as maps of labels over its pixels."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.functional.contrast import compose_labels
from clusterplug.functional.kmeans import kmeans


class ClusterView(NamedTuple):
    """One layer (and head) seen on an image of H x W pixels.

    Attributes:
        name: Such as ``'stage 1 block 2, head 3'``, ``'pool 1'`` or ``'3 groups'``.
        labels: (H, W) int64 cluster of each pixel, numbered 0, 1, ... without gaps.
        marks: (K, 2) int64 row and column of the pixel that stands for each cluster: the middle of the point that is
            most similar to its center.
    """

    name: str
    labels: np.ndarray
    marks: np.ndarray


def cluster_views(
    model: nn.Module, image: Tensor, num_groups: int | None = None, generator: torch.Generator | None = None
) -> list[ClusterView]:
    """Follow every pixel through all layers of an FEC.

    A layer's clusters are those of the points it sees, and points beyond the first pooling are clusters themselves; so
    the label of a pixel is that of the point which it has ended in.

    Args:
        model: :class:`~clusterplug.backbones.FEC`; clusters of regions (fold) are numbered apart.
        image: (1, C, H, W), normalized as the model wants it.
        num_groups: Also put the clusters of the last pooling into so many groups by k-means over their
            representatives; with as many clusters or fewer, each is a group.
        generator: Randomness of k-means; by default seeded with 0.

    Returns:
        A view for each head of each block, for each pooling, and for the groups, in the order of the layers.

    Raises:
        ValueError: ``image`` is no single image, or ``num_groups`` is below 1.

    Example:
        >>> from clusterplug.backbones import FEC
        >>> [view.name for view in cluster_views(FEC('small').eval(), torch.randn(1, 3, 64, 64), 3)][-2:]
        ['stage 4 block 2, head 8', '3 groups']
    """
    if image.dim() != 4 or len(image) != 1:
        raise ValueError(f'image must have shape (1, channels, height, width), got {tuple(image.shape)}')
    if num_groups is not None and num_groups < 1:
        raise ValueError(f'num_groups must be at least 1, got {num_groups}')
    with torch.no_grad():
        found = model.clusters(image)
    size = tuple(image.shape[2:])
    first = found[0].clusters.labels.shape[2:]
    points = torch.arange(first[0] * first[1], device=image.device)[None]  # the point in which each patch has ended
    views, stride, last = [], 4, None
    for layer in found:
        labels, similarity = layer.clusters.labels[0].flatten(1), layer.clusters.similarity[0].flatten(1)
        width = layer.clusters.labels.shape[3]
        for head, (label, strength) in enumerate(zip(labels, similarity)):
            name = layer.name if layer.kind == 'pool' else f'{layer.name}, head {head + 1}'
            patches = compose_labels([points, label[None]])[0].view(first)
            views.append(_view(name, patches, label, strength, width, stride, size))
        if layer.kind == 'pool':
            points, stride, last = compose_labels([points, labels[:1]]), 2 * stride, layer.clusters
    if num_groups is not None and last is not None:
        views.append(_groups(last, points.view(first), num_groups, generator, size, stride))
    return views


def _view(name, patches, label, strength, width, stride, size) -> ClusterView:
    """View of clusters of points, from the clusters of patches."""
    used, dense = patches.unique(return_inverse=True)
    marks = []
    for cluster in used.tolist():
        place = int(torch.where(label == cluster, strength, -torch.inf).argmax())
        marks.append([(place // width + 0.5) * stride, (place % width + 0.5) * stride])
    return ClusterView(name, _pixels(dense, size), np.minimum(np.array(marks, np.int64), np.array(size) - 1))


def _groups(clusters, patches, num_groups, generator, size, stride) -> ClusterView:
    used, dense = patches.unique(return_inverse=True)
    vectors = clusters.representatives[0, 0, used].float()
    number = min(num_groups, len(used))
    generator = generator or torch.Generator(device=vectors.device).manual_seed(0)
    result = kmeans(vectors, number, generator=generator)
    width = -(-size[1] // stride)
    marks = []
    for group in range(number):
        distance = (vectors - result.centers[group]).square().sum(-1)
        place = int(used[torch.where(result.labels == group, distance, torch.inf).argmin()])
        marks.append([(place // width + 0.5) * stride, (place % width + 0.5) * stride])
    marks = np.minimum(np.array(marks, np.int64), np.array(size) - 1)
    return ClusterView(f'{number} groups', _pixels(result.labels[dense], size), marks)


def _pixels(patches: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(H, W) of the labels of 4 x 4 patches."""
    return patches.repeat_interleave(4, 0).repeat_interleave(4, 1)[: size[0], : size[1]].cpu().numpy()
