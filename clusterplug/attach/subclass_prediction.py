# SPDX-License-Identifier: Apache-2.0
"""The subclass of every point of a scan, from a model trained with a clustering loss."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.attach.alignment import align, grid_cells
from clusterplug.attach.taps import to_rows


class ScanSubclasses(NamedTuple):
    """One scan, in the order of its points.

    Attributes:
        points: (N, 3 or more) as the model got them.
        predictions: (N,) int64 predicted class.
        classes: (N,) int64 class within which the subclass was chosen.
        subclasses: (N,) int64 nearest center within that class, -1 where the class or the point has none.
        features: (N, C) the tapped feature, NaN where a coarse layer has no voxel for the point.
        cells: (N, 1 to 3) int64 coordinates of the row of each point in the grid of the layer, where the loss removes
            what embeddings tell of them, else None.
    """

    points: Tensor
    predictions: Tensor
    classes: Tensor
    subclasses: Tensor
    features: Tensor
    cells: Tensor | None = None


def nearest_subclass(embedded: Tensor, classes: Tensor, memory: nn.Module, rows: int = 65536) -> Tensor:
    """(N,) nearest center of its own class for each unit row (N, D), -1 for classes outside the memory or unseeded."""
    known = (classes >= 0) & (classes < memory.num_classes)
    safe = torch.where(known, classes, 0)
    best = []
    for x, c in zip(embedded.split(rows), safe.split(rows), strict=True):
        cosines = torch.einsum('nd,nkd->nk', x, memory.centers[c])
        best.append(cosines.masked_fill(memory.layout.without_dummy(memory.unused)[c], -2).argmax(1))
    best = torch.cat(best) if best else safe
    return torch.where(known & (memory.num_seeded[safe] > 0), best, -1)


def check_predictable(model: nn.Module) -> None:
    """Raise unless :func:`predict_subclasses` can put subclasses on the points of this model.

    Raises:
        ValueError: The model has no clustering loss, or is a detector, whose loss sees boxes and no class of a point.
    """
    branch = getattr(model, 'clustering', None)
    if branch is None:
        raise ValueError(
            f"{type(model).__name__} has no clustering loss; build it with type='clusterplug.WithClustering'"
        )
    if branch.boxes is not None:
        raise ValueError(
            f'{type(model).__name__} is a detector: it predicts boxes and no class of a point, so that its scans '
            'cannot be drawn by subclass; draw its boxes with tools/analysis_tools/draw_boxes.py (the hook: scans=0)'
        )


@torch.no_grad()
def predict_subclasses(model: nn.Module, data: dict, use_labels: bool = False) -> list[ScanSubclasses]:
    """Predict classes, and the subclass of each point within its class.

    Args:
        model: a segmentor of voxels, cylinders or points, built by :func:`WithClustering`.
        data: a batch as a data loader of mmengine gives it.
        use_labels: choose the subclass within the true class (:func:`true_classes`) instead of the predicted one,
            to compare subclasses with other groupings of the same points.

    Returns:
        One :class:`ScanSubclasses` for each scan of the batch. Where a scene is cut into patches, the feature of a
        point is the mean over those that contain it, as its logits are. A point whose voxel a coarse layer has dropped
        has no subclass (-1), and NaN as its feature.

    Raises:
        ValueError: the model has no clustering loss or is a detector; the tapped layer has other rows than the scans;
            ``use_labels`` without labels.
    """
    check_predictable(model)
    branch = model.clustering
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        data = model.data_preprocessor(data, False)
        with branch.watch(), Patches(model, branch.embedding.path) as patches:
            results = model(**data, mode='predict')
            rows = branch.embedding.take()
            width = rows.features.shape[1]
            if getattr(branch.loss, 'positions', None) is not None:  # coordinates travel as columns
                cells = grid_cells(rows, data['inputs'])
                rows = rows._replace(features=torch.cat([rows.features.float(), cells.float()], 1))
    finally:
        for module, mode in training.items():  # one by one: some are frozen
            module.training = mode
    points = data['inputs']['points']
    if isinstance(data['inputs'].get('voxels'), dict):
        features = features_of_voxels(rows, data['inputs']['voxels'], results, branch)
    else:
        features = patches.features([len(scan) for scan in points])
    scans = []
    for scan, sample, feature in zip(points, results, features, strict=True):
        predictions = sample.pred_pts_seg.pts_semantic_mask
        classes = predictions
        if use_labels:
            classes = true_classes(sample)
            if classes is None:
                raise ValueError('use_labels needs the labels of the points, and this scan has no labels')
        classes = classes.to(feature.device).long()
        known = feature.isfinite().all(1)
        feature, cells = feature[:, :width], feature[:, width:].nan_to_num().long()
        design = branch.loss.positions.design(cells) if cells.shape[1] else None
        subclasses = subclasses_of(torch.where(known[:, None], feature, 0), classes, branch.loss, design)
        cells = cells if cells.shape[1] else None
        scans.append(ScanSubclasses(scan, predictions, classes, torch.where(known, subclasses, -1), feature, cells))
    return scans


@torch.no_grad()
def subclasses_of(features: Tensor, classes: Tensor, loss: nn.Module, design: Tensor | None = None) -> Tensor:
    """(N,) nearest subclass of features (N, C) within their class, as training assigns them.

    ``design`` (N, P): their regressors, where the loss removes what embeddings tell of their position.
    """
    embedded = F.normalize(loss.projector(features), dim=1)
    if design is not None:
        for c, weight in enumerate(loss.positions.weights()):
            mine = classes == c
            embedded[mine] = F.normalize(embedded[mine] - design[mine] @ weight, dim=1)
    return nearest_subclass(embedded, classes, loss.memory)


def true_classes(sample) -> Tensor | None:
    """(N,) labels of the points of a data sample, None if it has none; test pipelines keep them for the evaluation."""
    mask = getattr(getattr(sample, 'gt_pts_seg', None), 'pts_semantic_mask', None)
    if mask is None:
        mask = (getattr(sample, 'eval_ann_info', None) or {}).get('pts_semantic_mask')
    return None if mask is None else torch.as_tensor(mask)


def features_of_voxels(rows, voxels: dict, results: list, branch: nn.Module) -> list[Tensor]:
    """(N, C) feature of each point of each scan, through its voxel."""
    # 'voxel_coors' is what Cylinder3D adds, whose 'coors' are those of the points
    coords = voxels.get('voxel_coors', voxels['coors'])
    _, feature_rows = align(rows, {'voxel': coords[:, 0]}, coords, branch.embedding.path, branch.grid)
    features = rows.features.float()
    if feature_rows is not None:
        missing = (feature_rows < 0)[:, None]
        features = features[feature_rows.clamp_min(0)].masked_fill(missing, torch.nan)
    return [
        features[(coords[:, 0] == number).nonzero()[:, 0][sample.point2voxel_map.long()]]
        for number, sample in enumerate(results)
    ]


class Patches:
    """Collects the rows of a tap for every patch that a point-based model cuts from a scene, and their points."""

    def __init__(self, model: nn.Module, path: str):
        self.model, self.path = model, path
        self.rows, self.indices = [], []

    def __enter__(self):
        name, _, side = self.path.partition(':')
        layer = dict(self.model.named_modules())[name]

        def keep(_, inputs, output):
            self.rows.append(inputs[0] if side == 'input' else output)

        self._handle = layer.register_forward_hook(keep)
        self._host = getattr(self.model, '_sliding_patch_generation', None)
        if self._host is not None:
            self.model._sliding_patch_generation = self._generate
        return self

    def __exit__(self, *_) -> None:
        self._handle.remove()
        if self._host is not None:
            del self.model._sliding_patch_generation

    def _generate(self, *args, **options):
        points, indices = self._host(*args, **options)
        self.indices.append(indices)
        return points, indices

    def features(self, counts: list[int]) -> list[Tensor]:
        """(N, C) mean feature of each point of each scan of ``counts`` points."""
        rows = torch.cat([to_rows(value, self.path).features.float() for value in self.rows])
        indices = self.indices or [torch.arange(count, device=rows.device) for count in counts]
        if sum(map(len, indices)) != len(rows) or len(indices) != len(counts):
            raise ValueError(
                f"the layer '{self.path}' has {len(rows)} rows for {sum(map(len, indices))} points in "
                f'{len(counts)} scans; tap a layer with one row a point to draw subclasses'
            )
        features = []
        for part, index, count in zip(rows.split([len(i) for i in indices]), indices, counts, strict=True):
            total = rows.new_zeros(count, rows.shape[1]).index_add_(0, index, part)
            features.append(total / torch.bincount(index, minlength=count)[:, None])
        return features
