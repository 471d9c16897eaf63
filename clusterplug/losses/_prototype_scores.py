# SPDX-License-Identifier: Apache-2.0
"""Soft cross entropy of scores that may still be factors, in blocks that are recomputed in the backward pass."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clusterplug.core.distributed import world_size
from clusterplug.functional import sinkhorn_log_plan
from clusterplug.heads import PrototypeScores

_BLOCK = 1 << 22  # scores at once


def as_scores(scores: Tensor | PrototypeScores) -> Tensor:
    """Return scores (N, K) in fp32 at least."""
    if isinstance(scores, PrototypeScores):  # made in fp32: large ones have no place in fp16
        scores = PrototypeScores(*(each if each.dtype == torch.float64 else each.float() for each in scores)).dense()
    return scores if scores.dtype == torch.float64 else scores.float()


@torch.no_grad()
def column_bias(scores: Tensor, temperature: float, num_iters: int, mask: Tensor | None) -> Tensor:
    """Return (K,) such that softmax(scores / temperature + bias) are the balanced codes of Sinkhorn, over all ranks.

    The last step of Sinkhorn scales rows to 1, so its plan is a softmax with one more term a column: K numbers instead
    of N x K. Rows where ``mask`` is False, and rows that are not finite, are not counted.
    """
    usable = torch.isfinite(scores).all(1)
    usable = usable if mask is None else usable & mask
    group = dist.group.WORLD if world_size() > 1 else None
    if not len(scores) and group is None:
        return scores.new_zeros(scores.shape[1])
    clean = torch.where(usable[:, None], scores, 0.0)
    plan = sinkhorn_log_plan(clean, epsilon=temperature, num_iters=num_iters, mask=usable, group=group)
    if not len(scores):  # this rank has none, and has joined the sums
        return scores.new_zeros(scores.shape[1])
    row = usable.to(torch.uint8).argmax().view(1)  # any row that is counted tells the bias
    bias = (plan.index_select(0, row) - clean.index_select(0, row) / temperature)[0]
    bias = bias - bias.amax()
    return torch.where(usable.any(), bias, 0.0)


def soft_cross_entropy(
    student: Tensor | PrototypeScores,
    teacher: Tensor | PrototypeScores,
    bias: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Return (N,) cross entropy of softmax(student / T_s) against softmax(teacher / T_t + bias), row by row.

    Of factors nothing of the size N x K is kept for the backward pass; of scores, they alone.
    """
    number, width = student.shape[0], student.shape[1]
    block = max(1, _BLOCK // width)
    parts = []
    for start in range(0, number, block):
        part = slice(start, start + block)
        parts.append(
            checkpoint(
                _rows, *_factors(student, part), *_factors(teacher, part), bias, student_temperature,
                teacher_temperature, use_reentrant=False, preserve_rng_state=False,
            )
        )  # fmt: skip
    return torch.cat(parts) if parts else as_scores(student).sum(1)


def _factors(scores: Tensor | PrototypeScores, part: slice) -> tuple[Tensor, Tensor | None]:
    return (scores.embeddings[part], scores.prototypes) if isinstance(scores, PrototypeScores) else (scores[part], None)


def _rows(student, prototypes, teacher, teacher_prototypes, bias, student_temperature, teacher_temperature) -> Tensor:
    with torch.no_grad():
        teacher = _finite_rows(teacher)
        goal = as_scores(teacher if teacher_prototypes is None else PrototypeScores(teacher, teacher_prototypes))
        goal = (goal.detach() / teacher_temperature + bias).softmax(1)
    student = _finite_rows(student)
    scores = as_scores(student if prototypes is None else PrototypeScores(student, prototypes))
    return -(goal * F.log_softmax(scores / student_temperature, dim=1)).sum(1)


def _finite_rows(x: Tensor) -> Tensor:
    """Zeros for rows with NaN or infinity, whose losses the caller drops: 0 times NaN would reach the prototypes."""
    return torch.where(torch.isfinite(x).all(1, keepdim=True), x, 0.0)
