# SPDX-License-Identifier: Apache-2.0
"""The feature of every point of a scan, from a trained segmentor."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from clusterplug.attach.hosts import default_tap, fine_grid
from clusterplug.attach.subclass_prediction import Patches, features_of_voxels
from clusterplug.attach.taps import Tap


class ScanFeatures(NamedTuple):
    """One scan, in the order of its points.

    Attributes:
        points: (N, 3 or more) as the model got them.
        predictions: (N,) int64 predicted class.
        features: (N, C) the tapped feature, NaN where a coarse layer has no voxel for the point.
        sample: the data sample of the model, with its labels where the pipeline keeps them.
    """

    points: Tensor
    predictions: Tensor
    features: Tensor
    sample: object


class PointFeatures:
    """Reads the feature of each point while a segmentor predicts.

    Args:
        model: a segmentor of mmdet3d: of voxels, cylinders or points.
        embedding: a layer as in ``model.named_modules()``, with ``':input'`` at the end for what goes into it;
            ``'auto'``: what the classifier of a known host sees.

    Raises:
        ValueError: no such layer; when called: the model predicts no class of a point, or the layer has other rows.

    Example:
        ``PointFeatures(model)(pseudo_collate([dataset[0]]))[0].features``
    """

    def __init__(self, model: nn.Module, embedding: str = 'auto'):
        self.model = model
        self.embedding = Tap(model, default_tap(model) if embedding == 'auto' else embedding)
        self.grid = fine_grid(model)

    @torch.no_grad()
    def __call__(self, data: dict) -> list[ScanFeatures]:
        """Return one :class:`ScanFeatures` for each scan of a batch of a data loader."""
        model = self.model
        training = {module: module.training for module in model.modules()}
        model.eval()
        self.embedding.open = True
        try:
            data = model.data_preprocessor(data, False)
            with Patches(model, self.embedding.path) as patches:
                results = model(**data, mode='predict')
                rows = self.embedding.take()
        finally:
            self.embedding.open, self.embedding.value = False, None
            for module, mode in training.items():  # one by one: some are frozen
                module.training = mode
        if not all(hasattr(sample, 'pred_pts_seg') for sample in results):
            raise ValueError(f'{type(model).__name__} predicts no class of a point; point features need a segmentor')
        points = data['inputs']['points']
        if isinstance(data['inputs'].get('voxels'), dict):
            features = features_of_voxels(rows, data['inputs']['voxels'], results, self)
        else:
            features = patches.features([len(scan) for scan in points])
        found = [(scan, sample.pred_pts_seg.pts_semantic_mask) for scan, sample in zip(points, results, strict=True)]
        return [ScanFeatures(*each, x.float(), s) for each, x, s in zip(found, features, results, strict=True)]
