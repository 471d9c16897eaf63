# SPDX-License-Identifier: Apache-2.0
"""Swapped prediction: the code of one view is predicted from every other view."""

import math
import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clusterplug.core.checks import check_count, check_finite, check_mask, check_number
from clusterplug.core.distributed import gather_ranks, world_size
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype
from clusterplug.functional import balanced_codes
from clusterplug.registry import MODELS


@MODELS.register_module()
class SwAVLoss(nn.Module):
    r"""Predict the balanced assignment of a view from the scores of all other views of the same sample.

    .. math:: L = \frac{1}{A} \sum_{a} \frac{1}{V - 1} \sum_{v \ne a} \frac{1}{B} \sum_b
              -\sum_k Q_a[b, k] \log \mathrm{softmax}(S_v[b] / \tau)_k, \qquad
              Q_a = \text{balanced\_codes}(S_a, \epsilon)

    The codes of all assigned views are one batched solve, over all ranks, without gradient. Rows of the loss are
    compared in fp32 or better with autocast off. No host synchronization on devices; ``num_iters + 1`` collectives a
    call over ranks, and the mean over ranks of loss and gradient is that of one process with the joined batch, also
    where ranks hold different numbers of samples.

    Args:
        temperature: tau, divides the scores that predict.
        epsilon: entropic regularization of the codes; 0.03 helps where the loss stays at ln K.
        num_iters: Sinkhorn iterations.
        assign_views: views whose codes are predicted, the full crops.

    Shapes:
        ``scores``: V >= 2 tensors (B, K), one a view, rows in the same order of samples. ``queue_scores``: (A, L, K),
        a list of A tensors (L, K), or (L, K) for all assigned views: scores of remembered samples with the current
        prototypes, which take part in the assignment alone. In a distributed run every rank gives its own samples and
        its own share of the queue. ``queue_mask`` (A, L) bool, True = valid.

    Returns of ``forward``:
        0-dim tensor in the type of the scores (fp32 for fp16 and bf16). ln K is where it starts and where a collapsed
        model stays (identical samples: codes of 1 / K). 0 with a gradient path for an empty batch.

    Raises:
        ValueError: fewer than two views, an assigned view that is not there, views of different shapes, one sample in
            all (its code is 1 / K whatever it is), an option out of range; scores with NaN or inf where looking costs
            nothing (on the CPU in one process). Elsewhere such rows are ignored: neither their code nor their
            prediction counts, and the other rows get what they would get without them.

    More prototypes than samples (with the queue, of all ranks) warn once: the balance is loose then.

    Source: Caron et al., NeurIPS 2020, arXiv 2006.09882, equations 1 to 4; official code facebookresearch/swav
    (CC BY-NC 4.0; reimplemented). **Differs from the authors' code**: see :func:`~clusterplug.functional.
    balanced_codes`; one cross entropy a view with the sum of the codes that it predicts; with several ranks one queue
    is shared instead of one a rank.

    Example:
        >>> loss = SwAVLoss()
        >>> same = torch.zeros(4, 8)
        >>> bool(torch.isclose(loss([same, same]), torch.tensor(8.0).log()))
        True
    """

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        num_iters: int = 3,
        assign_views: Sequence[int] = (0, 1),
    ):
        super().__init__()
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.epsilon = check_number(epsilon, 'epsilon', above=0, hint='usual values are 0.03 to 0.05')
        self.num_iters = check_count(num_iters, 'num_iters', 1)
        self.assign_views = tuple(check_count(view, 'assign_views') for view in assign_views)
        if not self.assign_views or len(set(self.assign_views)) != len(self.assign_views):
            raise ValueError(f'assign_views must name at least one view, each once, got {tuple(assign_views)}')
        self._last_codes: Tensor | None = None
        self._warned = False

    def forward(
        self,
        scores: Sequence[Tensor],
        queue_scores: Tensor | Sequence[Tensor] | None = None,
        queue_mask: Tensor | None = None,
    ) -> Tensor:
        """Loss of the scores of all views."""
        scores = list(scores)
        self._check(scores)
        dtype = working_dtype(*(each.dtype for each in scores))
        with no_autocast(scores[0]):
            scores = [each.to(dtype) for each in scores]
            finite = self._finite_rows(scores)
            if finite is not None:
                scores = [torch.where(rows[:, None], each, 0.0) for each, rows in zip(scores, finite, strict=True)]
            codes = self.codes([scores[a] for a in self.assign_views], queue_scores, finite, queue_mask)
            self._last_codes = codes
            return self._swapped(scores, codes, finite)

    @torch.no_grad()
    def codes(
        self,
        scores: Sequence[Tensor],
        queue_scores: Tensor | Sequence[Tensor] | None = None,
        finite: list[Tensor] | None = None,
        queue_mask: Tensor | None = None,
    ) -> Tensor:
        """Codes (A, B, K) of the assigned views ``scores`` (A tensors (B, K)), rows that sum to 1."""
        scores = [each.detach() for each in scores]
        num_samples, mask = len(scores[0]), None
        if finite is not None:
            mask = torch.stack([finite[a] for a in self.assign_views])
        if queue_scores is None:
            x = torch.stack(scores)
        else:
            queue, queue_mask = self._queue(queue_scores, queue_mask, scores)
            if mask is not None or queue_mask is not None:
                parts = zip((queue, scores), (queue_mask, mask), strict=True)
                masks = [torch.ones(len(scores), len(each[0]), dtype=torch.bool, device=scores[0].device)
                         if known is None else known for each, known in parts]  # fmt: skip
                mask = torch.cat(masks, 1)
            x = torch.stack([torch.cat(rows) for rows in zip(queue, scores, strict=True)])
        self._check_number(x)
        group = dist.group.WORLD if world_size() > 1 else None
        if group is None and x.shape[1] == 0:
            return x
        codes = balanced_codes(x, epsilon=self.epsilon, num_iters=self.num_iters, mask=mask, group=group)
        return codes[:, x.shape[1] - num_samples :]

    @torch.no_grad()
    def log_values(self) -> dict[str, Tensor]:
        """Numbers of the last call for the log, without synchronization.

        ``ln_k``: the loss of a collapsed model. ``prototypes_used``: share of the prototypes that are the best of some
        sample of this rank (at most B A / K). ``code_entropy``: mean entropy of the codes over ln K, 1 = uniform.
        ``largest_prototype``: the largest mass of a prototype over the mean one. Empty before the first call.
        """
        codes = self._last_codes
        if codes is None or codes.numel() == 0:
            return {}
        num_prototypes = codes.shape[-1]
        used = codes.new_zeros(num_prototypes).index_fill_(0, codes.argmax(-1).flatten(), 1.0)
        entropy = torch.special.entr(codes).sum(-1).mean() / max(math.log(num_prototypes), 1e-12)
        return {
            'ln_k': codes.new_full((), math.log(num_prototypes)),
            'prototypes_used': used.mean(),
            'code_entropy': entropy,
            'largest_prototype': codes.mean((0, 1)).amax() * num_prototypes,
        }

    def _swapped(self, scores: list[Tensor], codes: Tensor, finite: list[Tensor] | None) -> Tensor:
        """Mean over pairs of an assigned view and another one, each the mean over its samples."""
        pairs = len(self.assign_views) * (len(scores) - 1)
        assigned = {view: n for n, view in enumerate(self.assign_views)}
        total = scores[0].new_zeros(())
        if finite is None:
            everything = codes.sum(0)
            for view, each in enumerate(scores):
                if view not in assigned:
                    total = total + _cross_entropy(each, everything, self.temperature)
                elif len(assigned) > 1:
                    total = total + _cross_entropy(each, everything - codes[assigned[view]], self.temperature)
            return total / (pairs * max(len(scores[0]), 1))
        rows = torch.stack(finite)
        both = rows[list(self.assign_views), None] & rows  # (A, V, B)
        shares = 1 / (pairs * self._mean_number(both.sum(-1).to(codes.dtype)))  # (A, V)
        for view, each in enumerate(scores):
            others = [n for a, n in assigned.items() if a != view]
            if others:
                weights = shares[others, view][:, None] * both[others, view]
                target = (codes[others] * weights[..., None]).sum(0)
                total = total + _cross_entropy(each, target, self.temperature)
        return total

    def _mean_number(self, counts: Tensor) -> Tensor:
        """Mean over ranks of numbers of rows: sums over it are means of all rows once they are averaged over ranks."""
        if world_size() > 1:
            counts = gather_ranks(counts).mean(0)
        return counts.clamp(min=1 / world_size())

    def _finite_rows(self, scores: list[Tensor]) -> list[Tensor] | None:
        """Which rows of each view are finite, or None where all are known to be."""
        if host_checks_allowed(scores[0]) and world_size() == 1:
            for view, each in enumerate(scores):
                check_finite(each.detach(), f'scores of view {view}')
            return None
        return [torch.isfinite(each).all(1) for each in scores]

    def _queue(self, queue_scores, queue_mask: Tensor | None, scores: list[Tensor]) -> tuple[list, Tensor | None]:
        """Scores (L, K) for each assigned view, and a mask (A, L) or None where all rows are known to be valid."""
        like = scores[0]
        if isinstance(queue_scores, Tensor) and queue_scores.dim() == 2:
            queue_scores = queue_scores.expand(len(scores), -1, -1)
        shapes = [tuple(each.shape) for each in queue_scores]
        if len(shapes) != len(scores) or len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][1] != like.shape[1]:
            raise ValueError(
                f'queue_scores must be ({len(scores)}, L, {like.shape[1]}), one entry an assigned view, got {shapes}'
            )
        queue = [each.detach().to(like.dtype) for each in queue_scores]
        check_mask(queue_mask, (len(scores), shapes[0][0]), like.device, 'queue_mask')
        if host_checks_allowed(like):  # a finite sum is proof; which rows are finite takes ten times as long
            known = all(bool(torch.isfinite(each.sum())) for each in queue)
            if known and (queue_mask is None or bool(queue_mask.all())):
                return queue, None
        valid = torch.stack([torch.isfinite(each).all(1) for each in queue])
        return queue, valid if queue_mask is None else valid & queue_mask

    def _check(self, scores: list[Tensor]) -> None:
        if len(scores) < 2:
            raise ValueError(
                f'scores must hold at least 2 views of each sample, got {len(scores)}; a view predicts the code of '
                f'another one'
            )
        bad = [view for view in self.assign_views if view >= len(scores)]
        if bad:
            raise ValueError(f'assign_views must name views 0 to {len(scores) - 1}, got {bad}; they are the full crops')
        shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in scores]
        if len(set(shapes)) != 1 or len(shapes[0]) != 2:
            raise ValueError(f'scores must be (B, K) for every view, got {shapes}')
        if not all(each.is_floating_point() for each in scores):
            raise TypeError(f'scores must be floating, got {[each.dtype for each in scores]}')

    def _check_number(self, x: Tensor) -> None:
        number = x.shape[1]
        if number == 1 and world_size() == 1:
            raise ValueError(
                'scores hold one sample, whose balanced code is 1 / K whatever it is; use at least 2 samples a step '
                '(drop_last=True for the last batch), or a queue'
            )
        if not self._warned and 0 < number * world_size() < x.shape[2]:
            self._warned = True
            warnings.warn(
                f'SwAVLoss has {x.shape[2]} prototypes for {number * world_size()} samples a step, so that they are '
                f'balanced only loosely; use a queue of about {x.shape[2]} rows, or fewer prototypes',
                stacklevel=3,
            )


def _cross_entropy(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Sum over rows of ``-target log softmax(scores / temperature)``, with gradients of the scores alone."""
    return _CrossEntropy.apply(scores, target, temperature)


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy with soft targets of any row sums, in two passes less forward and three less backward."""

    @staticmethod
    def forward(ctx, scores, target, temperature):
        log_probabilities = scores.div(temperature).log_softmax(-1)
        ctx.save_for_backward(log_probabilities, target)
        ctx.temperature = temperature
        return -torch.dot(log_probabilities.flatten(), target.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        log_probabilities, target = ctx.saved_tensors
        gradient = log_probabilities.exp().mul_(target.sum(-1, keepdim=True)).sub_(target)
        return gradient.mul_(grad / ctx.temperature), None, None
