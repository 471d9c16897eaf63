# SPDX-License-Identifier: Apache-2.0
"""Metric learning whose embedding is divided among learners, each trained on its own cluster of the data."""

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.memory import SampleTable
from clusterplug.registry import MODELS

__all__ = ['SubspaceMetricModel']


@MODELS.register_module()
class SubspaceMetricModel(BaseModel):
    r"""Backbone, attention, head of subspace learners and a loss over the pairs of a batch.

    .. math:: v = \text{mean}(F \odot A), \qquad e = \text{head}(v), \qquad L = \text{loss}(e_{N_k}, y, k)

    with k the cluster of each sample, from the table that a :class:`~clusterplug.hooks.ClusterRefreshHook`
    (``table='table', column='learner'``) fills; pairs are within a cluster only, so that a batch may hold several. A
    :class:`~clusterplug.hooks.LearnerSplitHook` adds learners.

    Args:
        backbone: Config or module: (B, ...) -> map (B, C, ...) or vectors (B, C); of several outputs the last. None:
            the inputs are vectors, such as features of point segments.
        head: Config or module of :class:`~clusterplug.heads.SubspaceLearnerHead`.
        loss: Config or module of :class:`~clusterplug.losses.MarginLoss`, or another with
            ``(embeddings, labels, groups)``.
        num_samples: Length of the training set.
        attention: Config or module of :class:`~clusterplug.layers.SpatialAttention`, or None.
        data_preprocessor: Config of mmengine.

    ``forward(inputs, data_samples, mode)``: inputs (B, ...) tensor, list of tensors, or the dict with one view of a
    :class:`~clusterplug.pretraining.MultiViewPreprocessor`; data samples with ``gt_label`` (-1 = ignored) and
    ``sample_idx``: dicts, mm data elements, or a dict of columns. ``'tensor'`` gives v (B, C), for clustering;
    ``'loss'`` a dict; ``'predict'`` samples with ``features`` v (1, C) and ``embeddings`` of all slices (1, D), for
    the probes.

    Raises:
        ValueError: A training step without data samples; several views.

    Source: Adiga, Dolz and Lombaert, IEEE JBHI 2022 (arXiv 2206.09068); official code
    adigasu/Dynamic_subspace_learners (MIT). **Differs from the authors' code**: theirs has a data loader for each
    cluster and batches of one cluster; here one loader is enough.

    Example:
        >>> from clusterplug.heads import SubspaceLearnerHead
        >>> from clusterplug.losses import MarginLoss
        >>> model = SubspaceMetricModel(None, SubspaceLearnerHead(6, 4), MarginLoss(), num_samples=8)
        >>> samples = [dict(gt_label=i % 2, sample_idx=i) for i in range(8)]
        >>> list(model(torch.randn(8, 6), samples, mode='loss'))
        ['loss_margin']
    """

    def __init__(
        self,
        backbone: dict | nn.Module | None,
        head: dict | nn.Module,
        loss: dict | nn.Module,
        num_samples: int,
        attention: dict | nn.Module | None = None,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(data_preprocessor)
        built = [MODELS.build(each) if isinstance(each, dict) else each for each in (backbone, head, loss, attention)]
        self.backbone, self.head, self.loss, self.attention = built
        self.table = SampleTable(check_count(num_samples, 'num_samples', 1), dict(learner=0))
        self.finetune = False

    def features(self, inputs: Any) -> Tensor:
        """Return the pooled features v (B, C)."""
        if isinstance(inputs, dict):
            if len(inputs['views']) != 1:
                raise ValueError(f'inputs must hold one view, got {len(inputs["views"])}; leave MultiCrop out')
            (inputs,) = inputs['views']
        x = torch.stack(list(inputs)) if isinstance(inputs, list | tuple) else inputs
        if self.backbone is not None:
            x = self.backbone(x)
            x = x[-1] if isinstance(x, list | tuple) else x
        if self.attention is not None:
            x = self.attention(x)
        return x.flatten(2).mean(2) if x.dim() > 2 else x

    def forward(self, inputs: Any, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        features = self.features(inputs)
        if mode == 'tensor':
            return features
        if mode == 'predict':
            return _with_features(features, self.head(features), data_samples)
        if not data_samples:
            raise ValueError('a training step needs data_samples with gt_label and sample_idx')
        device = features.device
        labels = torch.tensor(_column(data_samples, 'gt_label'), device=device)
        if self.finetune:
            return dict(loss_margin=self.loss(self.head(features), labels))
        ids = torch.tensor(_column(data_samples, 'sample_idx'), device=device)
        learners = self.table.read(ids, 'learner')
        labels = torch.where(learners >= 0, labels, -1)
        return dict(loss_margin=self.loss(self.head(features, learners), labels, learners))


def _with_features(features: Tensor, embeddings: Tensor, data_samples: Any) -> list:
    """The samples, with one row of each for every one of them."""
    if data_samples is None:
        data_samples = [{} for _ in features]
    elif isinstance(data_samples, dict):
        labels = _column(data_samples, 'gt_label')
        data_samples = [dict(gt_label=label) for label in labels]
    for sample, x, e in zip(data_samples, features, embeddings, strict=True):
        found = dict(features=x[None], embeddings=e[None])
        sample.update(found) if isinstance(sample, dict) else sample.set_data(found)
    return list(data_samples)


def _column(data_samples: Any, name: str) -> list[int]:
    """One whole number of each sample: a list of dicts or mm data elements, or a dict of columns."""
    if isinstance(data_samples, dict):
        values = list(data_samples.get(name, [None]))
    else:
        values = [each.get(name) if hasattr(each, 'get') else getattr(each, name, None) for each in data_samples]
    if any(value is None for value in values):
        raise ValueError(f'every data sample needs {name}; pack it with the inputs')
    return [int(value) for value in values]
