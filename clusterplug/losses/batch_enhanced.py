# SPDX-License-Identifier: Apache-2.0
"""Student and teacher views that attract each other and the neighbors found in a memory, and repel the rest."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.distributed import gather_ranks, rank, sum_over_ranks, world_size
from clusterplug.core.numerics import exact_products, unit_rows, working_dtype
from clusterplug.registry import MODELS


@MODELS.register_module()
class BatchEnhancedLoss(nn.Module):
    r"""Contrastive loss of two views whose positives are extended by neighbors from a clustered memory.

    For sample i with student predictions p, student projections z and teacher projections t of the views v = 1, 2, and
    the k neighbors n of t in the teacher's memory:

    .. math:: L_\text{pos} = -\frac12 \sum_v \operatorname{mean}_i \frac{1}{1 + k_i}
              \Big(\cos(p_i^v, t_i^{\bar v}) + \sum_j \cos(p_i^v, n_{ij}^{\bar v})\Big), \qquad
              L_\text{neg} = \log \operatorname{mean}_a \operatorname{mean}_{c \in C(a)} e^{\cos(z_a, c) / T}

    over all 2N student projections a, with C(a) the projections and neighbors of all *other* samples. Teacher rows and
    neighbors get no gradient, and every neighbor pulls the prediction as the other view does.

    Args:
        temperature: T.
        neg_weight: weight of L_neg.
        block_elements: similarities of L_neg at once; they are recomputed in the backward pass.

    Shapes of ``forward``: every argument is a pair of tensors, one a view. ``predictions``, ``projections``,
    ``targets`` (B, D); ``neighbors`` (B, k, D) of the teacher memory for each ``targets`` row; ``valid`` (B, k) bool,
    neighbors that are there (:meth:`~clusterplug.memory.ClusteredMemory.query` returns both); ``negatives`` (B, k, D),
    neighbors of ``projections`` in the student memory, which other samples are pushed from. The same B on all ranks.
    Returns ``dict(loss_pos=..., loss_neg=...)`` of 0-dim tensors, weighted.

    A sample with NaN or infinity in one of its six rows is ignored, and so is a neighbor with some.

    Distributed: negatives are those of all ranks; the mean over ranks of the gradients is that of one process with the
    joined batch.

    Raises:
        ValueError, TypeError: options or shapes that do not fit, ``neighbors`` without ``valid``, one sample in all
            (there is nothing to push from).

    Source: Poulakakis-Daktylidis, Jamali-Rad, "BECLR", ICLR 2024, arXiv 2402.02444, section 4.2; official code
    stypoumic/BECLR (Apache-2.0).

    **Differs from the authors' code**: theirs puts the neighbors on both sides as constants, so that they pull nothing
    and only scale the gradient of the plain loss by 1 / (1 + k), and it pushes a sample from its own neighbors.

    Example:
        >>> loss = BatchEnhancedLoss()
        >>> a, b = torch.eye(4, 8), torch.eye(4, 8)
        >>> parts = loss((a, b), (a, b), (b, a))
        >>> round(float(parts['loss_pos']), 4), round(float(parts['loss_neg']), 4) + 0.0
        (-1.0, 0.0)
    """

    def __init__(self, temperature: float = 2.0, neg_weight: float = 0.1, block_elements: int = 1 << 22):
        super().__init__()
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.neg_weight = check_number(neg_weight, 'neg_weight', 0)
        self.block_elements = check_count(block_elements, 'block_elements', 1)

    def forward(
        self,
        predictions: Sequence[Tensor],
        projections: Sequence[Tensor],
        targets: Sequence[Tensor],
        neighbors: Sequence[Tensor] | None = None,
        valid: Sequence[Tensor] | None = None,
        negatives: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Both terms, weighted."""
        self._check(predictions, projections, targets, neighbors, valid, negatives)
        first = predictions[0]
        with exact_products(first):
            dtype = working_dtype(first.dtype)
            p, z = (torch.stack(list(views)).to(dtype) for views in (predictions, projections))
            t = torch.stack([each.detach().to(dtype) for each in targets])
            usable = torch.isfinite(p * 0 + z * 0 + t * 0).all(-1).all(0)  # (B,)
            p, z, t = (unit_rows(torch.where(usable[:, None], each, 0.0)) for each in (p, z, t))
            positive = (p * t.flip(0)).sum(-1)
            number: Tensor | float = 1.0
            if neighbors is not None and valid is not None:  # given together
                n, used = _known(neighbors, valid, dtype)
                n, used = n.flip(0), used.flip(0)
                positive = positive + torch.where(used, torch.einsum('vbd,vbkd->vbk', p, n), 0.0).sum(-1)
                number = 1.0 + used.sum(-1)
            ranks = world_size()
            count = sum_over_ranks(usable.sum(), dist.group.WORLD if ranks > 1 else None)
            pulls = torch.where(usable, positive / number, 0.0)
            loss_pos = -pulls.mean(0).sum() * ranks / count.clamp(min=1)
            loss_neg = self._push(z, usable, negatives, valid)
        return {'loss_pos': loss_pos, 'loss_neg': self.neg_weight * loss_neg}

    def _push(self, z: Tensor, usable: Tensor, negatives, valid) -> Tensor:
        """log of the mean over anchors of the mean of e^(cos / T) over the rows of other samples."""
        batch = z.shape[1]
        anchors = gather_ranks(z).flatten(0, 2)  # (W 2 B, D)
        takes_part = gather_ranks(usable)[:, None].expand(-1, 2, -1).flatten()
        sample = torch.arange(len(anchors) // 2, device=z.device).view(-1, 1, batch)
        owner = sample.expand(-1, 2, -1).flatten()
        candidates, owners, used = anchors, owner, takes_part
        if negatives is not None:
            more, more_used = (gather_ranks(each) for each in _known(negatives, valid, z.dtype))
            k = more.shape[-2]
            candidates = torch.cat([anchors, more.flatten(0, 3)])
            owners = torch.cat([owner, owner[:, None].expand(-1, k).flatten()])
            used = torch.cat([used, more_used.flatten()])
        block = max(1, self.block_elements // len(candidates))
        total, count = z.new_zeros(()), takes_part.sum()
        for start in range(0, len(anchors), block):
            part = slice(start, start + block)
            apart = (owner[part, None] != owners) & used & takes_part[part, None]
            total = total + checkpoint(
                _mean_push, anchors[part], candidates, apart, self.temperature, use_reentrant=False,
                preserve_rng_state=False,
            )  # fmt: skip
        # Fewer than two samples that are finite: nothing to push from.
        return torch.where(total > 0, torch.where(total > 0, total, 1.0) / count.clamp(min=1), 1.0).log()

    def _check(self, predictions, projections, targets, neighbors, valid, negatives) -> None:
        shape: tuple[int, ...] = ()
        for name, views in (('predictions', predictions), ('projections', projections), ('targets', targets)):
            _check_pair(name, views)
            for each in views:
                shape = tuple(each.shape) if name == 'predictions' else shape
                if each.dim() != 2 or tuple(each.shape) != shape or not each.is_floating_point():
                    raise ValueError(f'{name} must hold two floating tensors (B, D) = {shape}, got {tuple(each.shape)}')
        if (neighbors is not None or negatives is not None) and valid is None:
            raise ValueError('neighbors and negatives need valid, the mask that query returns with them')
        for name, views in (('neighbors', neighbors), ('valid', valid), ('negatives', negatives)):
            if views is None:
                continue
            _check_pair(name, views)
            wanted = (*valid[0].shape[:2], *shape[1:]) if name != 'valid' else (shape[0], valid[0].shape[-1])
            for each in views:
                if tuple(each.shape) != wanted or (name == 'valid' and each.dtype != torch.bool):
                    raise ValueError(f'{name} must hold two tensors {wanted} (valid: bool), got {tuple(each.shape)}')
        if shape[0] * world_size() < 2:
            raise ValueError(f'the batch must hold at least 2 samples, got {shape[0]} on rank {rank()}')


def _check_pair(name: str, views) -> None:
    if isinstance(views, Tensor) and views.dim() and len(views) == 2:
        return
    if not isinstance(views, Sequence) or len(views) != 2 or not all(isinstance(each, Tensor) for each in views):
        raise TypeError(f'{name} must be a pair of tensors, one for each view, got {type(views).__name__}')


def _known(rows: Sequence[Tensor], valid: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit rows (2, B, k, D) of a memory, and which are there and finite (2, B, k)."""
    found, used = torch.stack([each.detach().to(dtype) for each in rows]), torch.stack(list(valid))
    used = used & torch.isfinite(found).all(-1)
    return unit_rows(torch.where(used[..., None], found, 0.0)), used


def _mean_push(anchors: Tensor, candidates: Tensor, apart: Tensor, temperature: float) -> Tensor:
    scores = torch.where(apart, (anchors @ candidates.mT) / temperature, -torch.inf)
    return (scores.exp().sum(1) / apart.sum(1).clamp(min=1)).sum()
