# SPDX-License-Identifier: Apache-2.0
"""The three contrastive terms of the clustering loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.core.constants import arange, constant
from clusterplug.core.distributed import rank
from clusterplug.functional.contrast import NEVER, bank_contrast_terms, pair_contrast_terms
from clusterplug.memory import SubclassMemory
from clusterplug.registry import MODELS

TERMS = ('queue', 'point', 'center')


@MODELS.register_module()
class SubclassContrast(nn.Module):
    """Compare each anchor with remembered embeddings (``queue``), other anchors (``point``), all centers (``center``).

    Part of :class:`~clusterplug.losses.PointClusterLoss` (``contrast=``).

    Args:
        terms: which terms to compute, of ``('queue', 'point', 'center')``.
        reference: follow the authors' code where it can be compared: an anchor counts among its own negatives, classes
            absent from the batch give no negative centers.
        max_negatives: remembered embeddings that each anchor is compared with; where the queues hold more, as many
            slots of each as that allows are drawn in each step, so that the cost does not grow with the square of the
            number of classes.

    Source: Feng et al., ICCV 2023, contrastive terms (step 3 of the official code, FengZicai/Cluster3DSeg, MIT).

    Differs from the authors' code: see :func:`~clusterplug.functional.subclass_contrast`.
    """

    zero: Tensor

    def __init__(self, terms: Sequence[str] = TERMS, reference: bool = False, max_negatives: int = 40_000):
        super().__init__()
        if not terms or any(term not in TERMS for term in terms):
            raise ValueError(f'terms must be some of {TERMS}, got {tuple(terms)}')
        self.terms, self.reference = tuple(terms), bool(reference)
        self.max_negatives = check_count(max_negatives, 'max_negatives', 1)
        self.register_buffer('zero', torch.zeros(()), persistent=False)

    def forward(
        self,
        anchors: Tensor,
        by_rank: Tensor,
        ids: Tensor,
        left_out: Tensor,
        memory: SubclassMemory,
        temperature: float,
    ) -> tuple[tuple[str, ...], Tensor, Tensor]:
        """Loss of each anchor of this rank, term by term.

        Args:
            anchors: (C, V + 1, D) unit rows of this rank, with gradient.
            by_rank: (R, C, V + 1, D) those of all ranks.
            ids: (C, (V + 1) R) id over all classes of those of all ranks, which take turns.
            left_out: (C, (V + 1) R) bool, slots without an anchor or without a subclass.
            memory: queues and centers, before the update of this step.
            temperature: tau.

        Returns:
            Names of the terms; (terms, C (V + 1)) losses; (terms, C (V + 1)) bool, whether the anchor has a positive.
        """
        x = anchors.flatten(0, 1)
        unused = memory.unused if not self.reference else memory.unused | left_out.all(1, keepdim=True)
        # (C, V R), in which ranks take turns, as (R, C, V)
        ids, left_out = (each.unflatten(1, (anchors.shape[1], -1)).permute(2, 0, 1) for each in (ids, left_out))
        own_ids, own_left_out = ids[rank()].flatten(), left_out[rank()].flatten()
        pairs = {}
        if 'queue' in self.terms:
            empty = arange(memory.queue_len, ids.device) >= memory.num_enqueued[..., None]
            bank = memory.queue_store.flatten(0, 1)
            pairs['queue'] = bank_contrast_terms(
                x, own_ids, bank, empty.flatten(0, 1), temperature=temperature, negatives=self._negatives(memory)
            )
        if 'point' in self.terms:
            # keys class by class, those of a rank behind those of another
            by_class = (each.transpose(0, 1).flatten(1, 2) for each in (by_rank, ids, left_out))
            found = pair_contrast_terms(
                anchors,
                ids[rank()],
                *by_class,
                temperature=temperature,
                self_offset=rank() * anchors.shape[1],
                count_self_as_negative=self.reference,
            )
            pairs['point'] = found[0].flatten(), found[1].flatten()
        if 'center' in self.terms:
            # exactly one positive: the contrast is a cross entropy over the centers in use
            bias = self.zero.masked_fill(unused.flatten(), NEVER)
            # cloned, as the centers move before backward
            logits = torch.addmm(bias, x, memory.center_store.flatten(0, 1).clone().mT, alpha=1 / temperature)
            one = constant(1, own_ids.dtype, own_ids.device)
            pairs['center'] = F.cross_entropy(logits, own_ids, reduction='none'), one.expand_as(own_ids)
        values, counts = zip(*pairs.values(), strict=True)
        return tuple(pairs), torch.stack(values), (torch.stack(counts) > 0) > own_left_out

    def _negatives(self, memory: SubclassMemory) -> Tensor | None:
        """Slots of every ring that are compared in this step; None: all of them."""
        per_ring = max(1, self.max_negatives // memory.center_store[..., 0].numel())
        if per_ring >= memory.queue_len:
            return None
        generator = memory.generator(2)
        return torch.randperm(memory.queue_len, generator=generator, device=generator.device)[:per_ring]
