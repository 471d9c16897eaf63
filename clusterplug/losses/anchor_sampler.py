# SPDX-License-Identifier: Apache-2.0
"""Which rows of a batch become anchors of the clustering loss, and how many of them are remembered."""

import torch
from torch import Tensor, nn

from clusterplug.core.checks import whole_number
from clusterplug.functional.contrast import AnchorSample, draw_anchors
from clusterplug.registry import MODELS


@MODELS.register_module()
class AnchorSampler(nn.Module):
    """Draw up to V rows of every class at random, half of them wrongly predicted (:func:`sample_anchors`).

    Part of :class:`~clusterplug.losses.PointClusterLoss` (``sampler=``). Another sampler is a module with the same
    ``forward`` and the attribute ``enqueue_per_step``.

    Args:
        max_anchors: bound on the anchors of all classes that are present (of one rank), default none.
        enqueue_per_step: at most so many anchors of a subclass enter its queue in a step.

    Source: Feng et al., ICCV 2023, anchor sampling and queue of the official code (FengZicai/Cluster3DSeg, MIT).

    Example:
        >>> sampler, labels = AnchorSampler(), torch.tensor([0, 0, 1, -1])
        >>> sampler(labels, None, num_classes=2, num_anchors_per_class=2, num_slots=3).valid
        tensor([[ True,  True, False],
                [ True, False, False]])
    """

    def __init__(self, max_anchors: int | None = None, enqueue_per_step: int = 10):
        super().__init__()
        self.max_anchors = whole_number('max_anchors', max_anchors, optional=True)
        self.enqueue_per_step = whole_number('enqueue_per_step', enqueue_per_step)

    def forward(
        self,
        labels: Tensor,
        predictions: Tensor | None,
        *,
        num_classes: int,
        num_anchors_per_class: int,
        num_slots: int,
        generator: torch.Generator | None = None,
    ) -> AnchorSample:
        """Rows (C, num_slots) of the anchors, and which slots hold one; labels (N,) int64 with -1 = ignored."""
        return draw_anchors(
            labels,
            predictions,
            num_classes=num_classes,
            num_anchors_per_class=num_anchors_per_class,
            max_anchors=self.max_anchors,
            num_slots=num_slots,
            generator=generator,
        )
