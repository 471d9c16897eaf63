# SPDX-License-Identifier: Apache-2.0
"""Cross entropy of every view with the cluster that its sample belongs to: DeepCluster-v2."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.distributed import gather_ranks, world_size
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype
from clusterplug.memory import SampleTable
from clusterplug.registry import MODELS


@MODELS.register_module()
class DeepClusterLoss(nn.Module):
    r"""Predict the cluster of a sample, one for each head, from the scores of each of its views.

    .. math:: L = \frac{1}{H} \sum_h \frac{1}{|R|} \sum_{(v, b) \in R}
              -\log \mathrm{softmax}(S_{v, h}[b] / \tau)_{y_h[b]}

    over all finite rows of all views whose sample has a label. Labels are read from ``self.table``, a
    :class:`~clusterplug.memory.SampleTable` in the checkpoint, which :class:`~clusterplug.hooks.ClusterRefreshHook`
    fills at the start of every epoch, together with the prototypes, which are not trained
    (:class:`~clusterplug.hooks.FreezeParamsHook`). Computed in fp32 or better with autocast off; no synchronization;
    one collective a call over ranks, and the mean over ranks is the loss of one process with the joined batch.

    Args:
        num_samples: size of the data set.
        num_heads: H, sets of prototypes, each with its own clustering.
        temperature: tau.

    Shapes:
        ``scores``: V views, each (B, K) or a list of H of them. ``sample_idx`` (B,) int64 rows of the table.

    Attributes:
        table: columns ``label_0`` ... ``label_<H-1>``, -1 = no cluster (ignored).

    Raises:
        TypeError: scores that are not floating.
        ValueError: another number of heads; on the CPU a label at or above K, or an index outside of the table.

    Returns of ``forward``:
        0-dim tensor; 0 with a gradient path where no sample has a label.

    Source: Caron et al., NeurIPS 2020, arXiv 2006.09882, appendix ("DeepCluster-v2"); official code
    facebookresearch/swav, ``main_deepclusterv2.py`` (CC BY-NC 4.0; written from the paper). **Differs from the authors'
    code**: labels belong to the checkpoint (theirs are lost on resume and clustered anew); ignored rows are -1 (-100).

    Example:
        >>> loss = DeepClusterLoss(num_samples=10)
        >>> loss.table.write([3, 4], label_0=[1, 0])
        >>> bool(torch.isclose(loss([torch.zeros(2, 8)] * 2, torch.tensor([3, 4])), torch.tensor(8.0).log()))
        True
    """

    all_sets = True
    assign_views = ()

    def __init__(self, num_samples: int, num_heads: int = 1, temperature: float = 0.1):
        super().__init__()
        self.num_heads = check_count(num_heads, 'num_heads', 1)
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.table = SampleTable(num_samples, {f'label_{head}': -1 for head in range(self.num_heads)})
        self._num_prototypes: int | None = None

    def forward(self, scores: list, sample_idx: Tensor) -> Tensor:
        """Loss of the scores of all views."""
        by_head = self._by_head(scores)
        numbers, sums = [], []
        for head, views in enumerate(by_head):
            labels = self.table.read(sample_idx, f'label_{head}').long()
            self._check_rows(views, len(labels))
            self._check_labels(labels, views[0].shape[1], head)
            x = torch.cat(list(views))
            with no_autocast(x):
                finite = torch.isfinite(x).all(1)
                logits = torch.where(finite[:, None], x, 0.0).to(working_dtype(x.dtype)) / self.temperature
                labels = torch.where(finite, labels.repeat(len(views)), -1)
                sums.append(F.cross_entropy(logits, labels, ignore_index=-1, reduction='sum'))
            numbers.append((labels >= 0).sum())
        counts = torch.stack(numbers).to(sums[0].dtype)
        if world_size() > 1:
            counts = gather_ranks(counts).mean(0)
        self._num_prototypes = by_head[0][0].shape[1]
        return (torch.stack(sums) / counts.clamp(min=1 / world_size())).mean()

    @torch.no_grad()
    def log_values(self) -> dict[str, Tensor]:
        """``ln_k``: the loss of a model that tells nothing apart. Empty before the first call."""
        if self._num_prototypes is None:
            return {}
        return {'ln_k': torch.full((), math.log(self._num_prototypes), device=self.table.written.device)}

    def _by_head(self, scores: list) -> list[list[Tensor]]:
        views = [view if isinstance(view, (list, tuple)) else [view] for view in scores]
        heads = {len(view) for view in views}
        if heads != {self.num_heads}:
            raise ValueError(
                f'scores must be of {self.num_heads} heads in every view, got {sorted(heads)}; give the PrototypeHead '
                f'num_prototypes=[K] * {self.num_heads}, or set num_heads'
            )
        kinds = {each.dtype for view in views for each in view}
        if not all(kind.is_floating_point for kind in kinds):
            raise TypeError(f'scores must be floating, got {sorted(map(str, kinds))}')
        return [list(each) for each in zip(*views, strict=True)]

    @staticmethod
    def _check_rows(views: list[Tensor], number: int) -> None:
        shapes = [tuple(each.shape) for each in views]
        if len(set(shapes)) != 1 or len(shapes[0]) != 2 or shapes[0][0] != number:
            raise ValueError(
                f'scores must be ({number}, K) in every view, one row for each of the {number} entries of sample_idx, '
                f"got {shapes}; labels are of whole samples: embed='global'"
            )

    def _check_labels(self, labels: Tensor, num_prototypes: int, head: int) -> None:
        if host_checks_allowed(labels) and labels.numel() and int(labels.max()) >= num_prototypes:
            raise ValueError(
                f'labels of head {head} must be below the number of prototypes, {num_prototypes}, got '
                f'{int(labels.max())}; use as many clusters as prototypes'
            )
