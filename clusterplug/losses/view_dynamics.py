# SPDX-License-Identifier: Apache-2.0
"""Koopman terms over the views of a sample, next to another loss: against collapse."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.losses.koopman import KoopmanLoss
from clusterplug.registry import MODELS

__all__ = ['ViewDynamicsLoss']


@MODELS.register_module()
class ViewDynamicsLoss(nn.Module):
    """Add the terms of :class:`~clusterplug.losses.KoopmanLoss` to a loss of a ``MultiViewModel``.

    The V views of a sample, in their order, are the steps of a sequence of latents (B, V, D): frames of a video or
    scans of a drive. For views without an order, set ``contrast_weight=0, consistency_weight=0``: the entropy of the
    embeddings alone keeps a loss that pulls views together from putting all samples on one line (dimensional collapse).
    The entropy sees neither mean nor scale of the embeddings and does not replace what a loss has against these.
    Where a model trains on several ranks, the Koopman terms are those of all ranks' samples together.

    Args:
        koopman: Module or config of a KoopmanLoss, its ``embed_dims`` the width of the embeddings. Its temporal
            contrast needs V > 2 ``num_neighbors``.
        loss: Module or config of the other loss; None: the Koopman terms alone.

    It is called as the other loss is: every argument that ``MultiViewModel`` has is handed on if the other loss names
    it, and its ``assign_views``, ``all_sets`` and ``log_values`` are those of the other loss.

    Returns of ``forward``:
        dict of the terms of both.

    Raises:
        ValueError: Embeddings of other widths, or views that do not hold the same samples; as
            :class:`~clusterplug.losses.KoopmanLoss`.

    Source: the entropy term of Cheng et al., ICLR 2026 (arXiv 2510.13025), used as a regularizer.

    Example:
        >>> koopman = dict(type='KoopmanLoss', embed_dims=8, contrast_weight=0, consistency_weight=0)
        >>> sorted(ViewDynamicsLoss(koopman, dict(type='NTXentLoss'))(embeddings=[torch.randn(4, 8)] * 2))
        ['loss_entropy', 'loss_ntxent']
    """

    def __init__(self, koopman: nn.Module | dict, loss: nn.Module | dict | None = None):
        super().__init__()
        self.koopman = MODELS.build(koopman) if isinstance(koopman, dict) else koopman
        if not isinstance(self.koopman, KoopmanLoss):
            raise TypeError(f'koopman must be a KoopmanLoss or its config, got {type(self.koopman).__name__}')
        self.loss = MODELS.build(loss) if isinstance(loss, dict) else loss
        self._names = () if self.loss is None else tuple(inspect.signature(self.loss.forward).parameters)
        for name in ('assign_views', 'all_sets'):
            if hasattr(self.loss, name):
                setattr(self, name, getattr(self.loss, name))

    def log_values(self) -> dict[str, Tensor]:
        """Return the numbers that the other loss has for the log."""
        values = getattr(self.loss, 'log_values', None)
        return {} if values is None else values()

    def forward(
        self,
        embeddings: list[Tensor],
        scores: Any = None,
        features: Any = None,
        queue_scores: Any = None,
        queue_mask: Any = None,
        queues: Any = None,
        teacher_scores: Any = None,
        teacher_embeddings: Any = None,
        labels: Any = None,
        sample_idx: Any = None,
        data_samples: Any = None,
    ) -> dict[str, Tensor]:
        given = dict(
            embeddings=embeddings, scores=scores, features=features, queue_scores=queue_scores, queue_mask=queue_mask,
            queues=queues, teacher_scores=teacher_scores, teacher_embeddings=teacher_embeddings, labels=labels,
            sample_idx=sample_idx, data_samples=data_samples,
        )  # fmt: skip
        if len({each.shape for each in embeddings}) != 1:
            shapes = [tuple(each.shape) for each in embeddings]
            raise ValueError(f'embeddings must be views (N, D) of the same samples, got {shapes}')
        found = self.koopman(torch.stack(list(embeddings), 1))
        if self.loss is None:
            return found
        result = self.loss(**{name: given[name] for name in self._names if given.get(name) is not None})
        if not isinstance(result, dict):
            result = {f'loss_{type(self.loss).__name__.removesuffix("Loss").lower()}': result}
        return {**result, **found}
