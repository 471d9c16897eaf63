"""The subclass of every point of a scan, from a model trained with a clustering loss."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.segmentors.alignment import align


class ScanSubclasses(NamedTuple):
    """One scan, in the order of its points.

    Attributes:
        points: (N, 3 or more) as the model got them.
        predictions: (N,) int64 predicted class.
        classes: (N,) int64 class within which the subclass was chosen.
        subclasses: (N,) int64 nearest center within that class, -1 where the class has none.
        features: (N, C) the tapped feature.
    """

    points: Tensor
    predictions: Tensor
    classes: Tensor
    subclasses: Tensor
    features: Tensor


def nearest_subclass(embedded: Tensor, classes: Tensor, memory: nn.Module, rows: int = 65536) -> Tensor:
    """(N,) nearest center of its own class for each unit row (N, D), -1 for classes outside the memory or unseeded."""
    known = (classes >= 0) & (classes < memory.num_classes)
    safe = torch.where(known, classes, 0)
    best = []
    for x, c in zip(embedded.split(rows), safe.split(rows), strict=True):
        cosines = torch.einsum('nd,nkd->nk', x, memory.centers[c])
        best.append(cosines.masked_fill(memory.unused[c, :-1], -2).argmax(1))
    best = torch.cat(best) if best else safe
    return torch.where(known & (memory.num_seeded[safe] > 0), best, -1)


@torch.no_grad()
def predict_subclasses(model: nn.Module, data: dict, use_labels: bool = False) -> list[ScanSubclasses]:
    """Predict classes, and the subclass of each point within its class.

    Args:
        model: a voxel-based segmentor built by :func:`WithClustering`.
        data: a batch as a data loader of mmengine gives it.
        use_labels: choose the subclass within the true class (``gt_pts_seg.pts_semantic_mask``) instead of the
            predicted one, to compare subclasses with other groupings of the same points.

    Returns:
        One :class:`ScanSubclasses` for each scan of the batch.

    Raises:
        ValueError: the model has no clustering loss.
    """
    branch = getattr(model, 'clustering', None)
    if branch is None:
        raise ValueError(
            f"{type(model).__name__} has no clustering loss; build it with type='clusterplug.WithClustering'"
        )
    was_training = model.training
    model.eval()
    try:
        data = model.data_preprocessor(data, False)
        with branch.watch():
            results = model(**data, mode='predict')
        rows = branch.embedding.take()
    finally:
        model.train(was_training)
    coords = data['inputs']['voxels']['coors']
    _, feature_rows = align(rows, {'voxel': coords[:, 0]}, coords, branch.embedding.path, branch.grid)
    features = rows.features.float()
    if feature_rows is not None:
        features = features[feature_rows.clamp_min(0)]
    embedded = F.normalize(branch.loss.projector(features), dim=1)
    scans = []
    for number, (points, sample) in enumerate(zip(data['inputs']['points'], results, strict=True)):
        voxels = (coords[:, 0] == number).nonzero()[:, 0][sample.point2voxel_map]
        predictions = sample.pred_pts_seg.pts_semantic_mask
        classes = (sample.gt_pts_seg.pts_semantic_mask if use_labels else predictions).to(coords.device).long()
        subclasses = nearest_subclass(embedded[voxels], classes, branch.loss.memory)
        scans.append(ScanSubclasses(points, predictions, classes, subclasses, features[voxels]))
    return scans
