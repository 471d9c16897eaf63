# SPDX-License-Identifier: Apache-2.0
"""Student and teacher over two views, with positives from a clustered memory."""

import copy

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.pretraining._no_loss import NoLoss
from clusterplug.pretraining.multi_view_model import MultiViewModel
from clusterplug.registry import MODELS


@MODELS.register_module()
class BatchEnhancedModel(MultiViewModel):
    """Contrastive pre-training with neighbors from a memory as further positives (BECLR).

    The student is backbone, head (projector) and predictor; the teacher an average of backbone and head. Once the
    memories (``queues``) are clustered and ``queue_enabled`` is True (:class:`~clusterplug.hooks.QueueStartHook`), each
    row's neighbors are looked up; the rows of the step are pushed afterwards, from the first step on.

    Args:
        backbone: as in :class:`~clusterplug.pretraining.MultiViewModel`.
        head: config or module, the projector from (B, C) to (B, D).
        predictor: config or module from (B, D) to (B, D), of the student alone.
        memory: config of :class:`~clusterplug.memory.ClusteredMemory`; there are two, of the teacher's projections
            (whose neighbors pull) and of the student's (whose neighbors push other samples).
        loss: config or module of :class:`~clusterplug.losses.BatchEnhancedLoss`.
        num_neighbors: k.
        teacher: as in :class:`~clusterplug.pretraining.MultiViewModel`.
        data_preprocessor, init_cfg: likewise.

    Raises:
        ValueError: another number of full views than two.

    Source: Poulakakis-Daktylidis, Jamali-Rad, "BECLR", ICLR 2024, arXiv 2402.02444; official code stypoumic/BECLR
    (Apache-2.0). **Differs from the authors' code**: two memories instead of three (that of predictions has no use, as
    retrieved rows are no predictions of this sample), no block masks of the student's input, and see the memory and the
    loss.

    Example:
        >>> BatchEnhancedModel(  # doctest: +SKIP
        ...     backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet18'),
        ...     head=dict(type='clusterplug.ProjectionHead', in_channels=512, out_channels=512),
        ...     predictor=dict(type='clusterplug.ProjectionHead', in_channels=512, out_channels=512),
        ...     memory=dict(type='clusterplug.ClusteredMemory', length=8192, embed_dims=512, num_clusters=200),
        ... )
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module,
        predictor: dict | nn.Module,
        memory: dict,
        loss: dict | nn.Module | None = None,
        num_neighbors: int = 5,
        teacher: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        teacher = dict(type='ExponentialMovingAverage', momentum=0.005) if teacher is None else teacher
        super().__init__(backbone, head, NoLoss(), 'global', teacher, None, data_preprocessor, init_cfg)
        loss = dict(type='clusterplug.BatchEnhancedLoss') if loss is None else loss
        self.loss_function = loss if isinstance(loss, nn.Module) else MODELS.build(loss)
        self.predictor = predictor if isinstance(predictor, nn.Module) else MODELS.build(predictor)
        self.queues = nn.ModuleList(MODELS.build(copy.deepcopy(memory)) for _ in range(2))
        self.num_neighbors = check_count(num_neighbors, 'num_neighbors', 1, self.queues[0].length)

    def loss(self, inputs: dict, data_samples: list | None = None) -> dict[str, Tensor]:
        """Both terms of the loss."""
        if self.training:
            self.teacher.update_parameters(self._online())
        self._check_views(inputs)
        projections, _ = self._head_outputs(self.head, self.extract_features(inputs))
        if len(projections) != 2:
            raise ValueError(f'BatchEnhancedModel compares 2 views of each sample, got {len(projections)}')
        predictions = self.predictor(torch.cat(projections)).chunk(2)
        targets = self._of_teacher(inputs)['teacher_embeddings']
        more = {}
        if self.queue_enabled and all(memory.clustered for memory in self.queues):
            found, apart = (
                [memory.query(view.detach(), self.num_neighbors) for view in views]
                for memory, views in zip(self.queues, (targets, projections), strict=True)
            )
            more = {
                'neighbors': [each.rows for each in found],
                'valid': [a.valid & b.valid for a, b in zip(found, apart, strict=True)],
                'negatives': [each.rows for each in apart],
            }
        result = self.loss_function(predictions, projections, targets, **more)
        if self.training:
            for memory, views in zip(self.queues, (targets, projections), strict=True):
                memory.push(torch.cat(list(views)).detach())
        return result
