# SPDX-License-Identifier: Apache-2.0
"""A backbone that learns to tell the clusters of another model's features, several of them for each sample."""

from pathlib import Path

import torch
from torch import Tensor, nn

from clusterplug.core.files import read_rows
from clusterplug.pretraining._no_loss import NoLoss
from clusterplug.pretraining.multi_view_model import MultiViewModel
from clusterplug.registry import MODELS


@MODELS.register_module()
class ClusterDiscriminationModel(MultiViewModel):
    """Train a backbone on the labels of ``tools/cluster_labels.py`` (MLCD).

    Args:
        backbone: as in :class:`~clusterplug.pretraining.MultiViewModel`; one view is enough.
        classifier: config or module of :class:`~clusterplug.heads.MultiLabelClusterHead`.
        labels: .npy file (N, l) or (N,) of integer classes, -1 = none; row n belongs to the sample with ``sample_idx``
            n (of several data sets: :class:`~clusterplug.datasets.indexed_concat.IndexedConcatDataset`). It is mapped,
            not read.
        head: config or module from (B, C) to (B, D), or None: features are compared with the class centers.
        data_preprocessor, init_cfg: as in :class:`~clusterplug.pretraining.MultiViewModel`.

    All views of a sample have its labels. After training the class centers are dropped: backbone and head stay.

    Raises:
        ValueError: samples without ``sample_idx``, or one outside the labels.

    Source: An et al., "Multi-label Cluster Discrimination", ECCV 2024, arXiv 2407.17331. **Differs from the authors'
    code**: see :class:`~clusterplug.heads.MultiLabelClusterHead`.

    Example:
        >>> ClusterDiscriminationModel(  # doctest: +SKIP
        ...     backbone=dict(type='clusterplug.TimmBackbone', name='resnet18'), labels='labels.npy',
        ...     classifier=dict(type='clusterplug.MultiLabelClusterHead', num_classes=1000, embed_dims=512),
        ... )
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        classifier: dict | nn.Module,
        labels: str | Path,
        head: dict | nn.Module | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(backbone, head, NoLoss(), data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.loss_function = classifier if isinstance(classifier, nn.Module) else MODELS.build(classifier)
        self.labels_file = str(labels)
        _, self.labels_shape = read_rows(self.labels_file, 0, 0)

    def loss(self, inputs: dict, data_samples: list | None = None) -> dict[str, Tensor]:
        """The loss over all views."""
        features = self.extract_features(inputs)
        embeddings, _ = self._head_outputs(self.head, features)
        labels = self._labels(data_samples).to(features[0].device)
        return {'loss_cluster': self.loss_function(torch.cat(embeddings), labels.repeat(len(embeddings), 1))}

    def _labels(self, data_samples: list | None) -> Tensor:
        """(B, l) rows of the file; read on the host, where the numbers of samples are."""
        if not data_samples or any('sample_idx' not in sample for sample in data_samples):
            raise ValueError('every sample needs sample_idx, its row of the labels; use the data sets and PackViews')
        numbers = [int(sample.get('sample_idx')) for sample in data_samples]
        if not 0 <= min(numbers) <= max(numbers) < self.labels_shape[0]:
            raise ValueError(
                f'sample_idx must be 0 .. {self.labels_shape[0] - 1}, the rows of {self.labels_file}, got '
                f'{min(numbers)} .. {max(numbers)}; make the labels from the same data set'
            )
        rows = [torch.as_tensor(read_rows(self.labels_file, n, n + 1)[0]).view(1, -1) for n in numbers]
        return torch.cat(rows).long()
