# SPDX-License-Identifier: Apache-2.0
"""How well the clusters that a model predicts agree with the classes, as a metric of mm Runners."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric

from clusterplug.evaluation._samples import labels_and_predictions
from clusterplug.functional import adjusted_rand_index, clustering_accuracy, normalized_mutual_info
from clusterplug.registry import METRICS


@METRICS.register_module()
class ClusteringMetric(BaseMetric):
    """Accuracy under the best matching of clusters and classes, NMI and ARI over a whole data set, in percent.

    Labels and predictions are found in a data sample under ``gt_label`` / ``pred_label`` or ``pred_score``
    (mmpretrain), or ``pts_semantic_mask`` of ``eval_ann_info`` (``gt_pts_seg``) / ``pred_pts_seg`` (mmdet3d).
    The number of a cluster has no meaning of its own, and there may be more or fewer clusters than classes; clusters
    that nothing is matched to count as wrong in the accuracy.

    Args:
        ignore_index: Label that is ignored, besides negative ones; None: no other.
        num_samples: Most rows that are compared, the first ones (points of many scans); None: all.
        collect_device: Where results of ranks are gathered.
        prefix: Of the names. Defaults to ``'clustering'``.

    Raises:
        ValueError: A sample without labels or predictions, scores with NaN, no labeled row.

    Example:
        ``val_evaluator = dict(type='clusterplug.ClusteringMetric')`` logs ``clustering/accuracy``, ``nmi``, ``ari``
        and ``clusters``, the number of clusters in use.
    """

    default_prefix = 'clustering'

    def __init__(
        self,
        ignore_index: int | None = None,
        num_samples: int | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index, self.num_samples = ignore_index, num_samples

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep the pairs of label and cluster of each sample."""
        for sample in data_samples:
            labels, clusters = labels_and_predictions(sample)
            clusters = torch.as_tensor(clusters)
            if clusters.is_floating_point():
                if bool(clusters.isnan().any()):
                    raise ValueError('predictions must not hold NaN scores; look at the model')
                clusters = clusters.reshape(len(labels), -1).argmax(1)
            labels, clusters = labels.cpu().long().reshape(-1), clusters.cpu().long().reshape(-1)
            if labels.shape != clusters.shape:
                raise ValueError(
                    f'labels and predictions must have one entry for each row, got {tuple(labels.shape)} and '
                    f'{tuple(clusters.shape)}'
                )
            known = labels >= 0
            if self.ignore_index is not None:
                known &= labels != self.ignore_index
            self.results.append(torch.stack([labels[known], clusters[known]]))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Agreement over the samples of all ranks."""
        labels, clusters = torch.cat(results, 1) if results else torch.empty(2, 0, dtype=torch.int64)
        if self.num_samples is not None:
            labels, clusters = labels[: self.num_samples], clusters[: self.num_samples]
        if not len(labels):
            raise ValueError('there is no labeled row; check the labels and ignore_index')
        return {
            'accuracy': 100 * clustering_accuracy(labels, clusters),
            'nmi': 100 * normalized_mutual_info(labels, clusters),
            'ari': 100 * adjusted_rand_index(labels, clusters),
            'clusters': float(len(clusters.unique())),
        }
