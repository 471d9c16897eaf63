# SPDX-License-Identifier: Apache-2.0
"""The three contrastive terms of the clustering loss."""

from collections.abc import Sequence

from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.core.constants import arange
from clusterplug.core.distributed import rank
from clusterplug.functional.contrast import CenterProblem, PairProblem, fused_contrast, sampled_bank, whole_bank
from clusterplug.memory import SubclassMemory
from clusterplug.registry import MODELS

TERMS = ('queue', 'point', 'center')
# Remembered embeddings that pull an anchor in a step, at least, where its queue holds more than are compared.
_FEWEST_POSITIVES = 8


@MODELS.register_module()
class SubclassContrast(nn.Module):
    """Compare each anchor with remembered embeddings (``queue``), other anchors (``point``), all centers (``center``).

    Part of :class:`~clusterplug.losses.PointClusterLoss` (``contrast=``).

    Args:
        terms: which terms to compute, of ``('queue', 'point', 'center')``.
        reference: follow the authors' code where it can be compared: an anchor counts among its own negatives, classes
            absent from the batch give no negative centers.
        max_negatives: remembered embeddings, and anchors, that each anchor is compared with. Where there are more, in
            each step some slots of each queue (8 of its own queue as positives) and every so many of the anchors are
            taken, each standing for as many as were not: right on average, at a cost that does not grow with the square
            of the number of classes.

    Source: Feng et al., ICCV 2023, contrastive terms (step 3 of the official code, FengZicai/Cluster3DSeg, MIT).

    Differs from the authors' code: see :func:`~clusterplug.functional.subclass_contrast`.
    """

    def __init__(self, terms: Sequence[str] = TERMS, reference: bool = False, max_negatives: int = 5000):
        super().__init__()
        if not terms or any(term not in TERMS for term in terms):
            raise ValueError(f'terms must be some of {TERMS}, got {tuple(terms)}')
        self.terms, self.reference = tuple(terms), bool(reference)
        self.max_negatives = check_count(max_negatives, 'max_negatives', 1)

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
            Names of the terms; (terms, C (V + 1)) losses; (terms, C (V + 1)) its
            positives, where there are none the loss is 0 and has no gradient.
        """
        # (C, V R), in which ranks take turns, as (R, C, V)
        ids, left_out = (each.unflatten(1, (anchors.shape[1], -1)).permute(2, 0, 1) for each in (ids, left_out))
        own, keys, problems = ids[rank()].flatten(), by_rank.transpose(0, 1), {}
        if 'queue' in self.terms:
            problems['queue'] = self._queue(own, memory, temperature)
        if 'point' in self.terms:
            # keys class by class, those of a rank behind those of another
            anchor_ids, no_key = ids[rank()], left_out.transpose(0, 1).flatten(1, 2)
            key_ids = anchor_ids if len(ids) == 1 else ids.transpose(0, 1).flatten(1, 2)
            problems['point'] = PairProblem(
                anchor_ids, keys.detach().flatten(1, 2), key_ids, no_key, temperature,
                rank() * anchors.shape[1], self.reference, self._slots_of_negatives(no_key, memory),
            )  # fmt: skip
            if 'queue' in problems:
                problems['queue'].numbers = problems['point'].ids
        if 'center' in self.terms:
            used = memory.used if not self.reference else ~(memory.unused | left_out.all(2).all(0)[:, None])
            problems['center'] = CenterProblem(own, memory.center_store.flatten(0, 1), used.flatten(), temperature)
        values, counts = fused_contrast(
            anchors.flatten(0, 1), list(problems.values()), keys.flatten(0, 2), temperature=temperature
        )
        return tuple(problems), values, counts

    def _slots_of_negatives(self, no_key: Tensor, memory: SubclassMemory) -> tuple[int, int]:
        """All slots of the anchors as (first, step); every so many, in turn, where they exceed ``max_negatives``."""
        step = -(-no_key.numel() // self.max_negatives)
        if step == 1 or self.reference:
            return 0, 1
        step += 1 - step % 2  # odd, as hard and easy anchors alternate
        return memory.turn(step), step

    def _queue(self, ids: Tensor, memory: SubclassMemory, temperature: float):
        """All slots of all queues or, where that is more than ``max_negatives``, some of each, drawn in each step."""
        bank, enqueued, width = memory.queue_store.flatten(0, 1), memory.num_enqueued.flatten(), memory.queue_len
        few = max(1, self.max_negatives // len(bank))
        if few >= width:
            return whole_bank(ids, bank, arange(width, ids.device) < enqueued[:, None], temperature)
        return sampled_bank(
            ids, bank, enqueued, temperature, num_negatives=few, num_positives=min(_FEWEST_POSITIVES, width),
            generator=memory.generator(2),
        )  # fmt: skip
