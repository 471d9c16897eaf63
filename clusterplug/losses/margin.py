# SPDX-License-Identifier: Apache-2.0
"""Margin loss over pairs of a batch, with hard or distance-weighted negatives."""

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number, check_points
from clusterplug.core.numerics import host_checks_allowed, keep_fp32, no_autocast, unit_rows, working_dtype
from clusterplug.functional import distance_weights
from clusterplug.registry import MODELS

__all__ = ['MarginLoss', 'margin_pairs']

SAMPLINGS = ('cutoff', 'distance')
COUNTS = ('either', 'active')
_EPS = 1e-8


def margin_pairs(
    distances: Tensor, labels: Tensor, *, groups: Tensor | None = None, cutoff: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the triples (anchor, positive, negative) of a batch with the closest negatives beyond a cut-off.

    With P = floor(pairs of one label / rows), an anchor has its first P positives, and its P closest rows of another
    label at distance ``cutoff`` or more; both in the order of rows, paired one by one.

    Args:
        distances: (N, N). labels: (N,) int64, negative = is ignored.
        groups: (N,) int64; pairs are within a group only; None: one group.
        cutoff: Least distance of a negative.

    Returns:
        positives (N, N) and negatives (N, N) int64 columns, and valid (N, N) bool: triple j of anchor i is
        (i, positives[i, j], negatives[i, j]) where valid[i, j]. An anchor with fewer positives or fewer such
        negatives has fewer triples. No host synchronization.

    Source: official code of Adiga et al., lib/loss/sampler.py. **Differs from the authors' code**: where fewer than P
    rows lie beyond the cut-off, theirs fills up with positives and the anchor itself as negatives.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> p, n, valid = margin_pairs(torch.cdist(x, x), torch.tensor([0, 0, 1, 1]))
        >>> p[:, 0].tolist(), n[:, 0].tolist(), valid.sum(1).tolist()
        ([1, 0, 3, 2], [2, 2, 1, 1], [1, 1, 1, 1])
    """
    positive, negative, rows = _kinds(labels, groups)
    number = positive.sum() // rows.clamp(min=1)
    negative = negative & (distances >= cutoff)
    ranks = torch.where(negative, distances, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    negative = negative & (ranks < number)
    positives, negatives = (
        (~positive).byte().argsort(dim=1, stable=True),
        (~negative).byte().argsort(dim=1, stable=True),
    )
    column = torch.arange(len(labels), device=labels.device)
    least = torch.minimum(torch.minimum(positive.sum(1), negative.sum(1)), number)
    return positives, negatives, column < least[:, None]


def _kinds(labels: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(N, N) bool pairs of one label and of two labels, and the number of rows that take part."""
    takes_part = labels >= 0
    allowed = takes_part[:, None] & takes_part
    if groups is not None:
        allowed = allowed & (groups[:, None] == groups)
    same = labels[:, None] == labels
    return (same & allowed).fill_diagonal_(False), ~same & allowed, takes_part.sum()


@MODELS.register_module()
class MarginLoss(nn.Module):
    r"""Pull pairs of one label closer than ``beta - margin``, push others beyond ``beta + margin``.

    .. math:: L = \frac{\sum [D_{ap} - \beta + m]_+ + [\beta - D_{an} + m]_+ + \nu |\beta|}
              {|\{\text{triples with a term above 0}\}|}, \qquad D = \sqrt{\lVert x - y \rVert^2 + 10^{-8}}.

    Args:
        beta: Boundary between the distances of equal and of other labels.
        margin: m.
        nu: Weight of |beta|, of use with ``learn_beta`` only.
        sampling: ``'cutoff'``: the closest negatives beyond ``cutoff``, deterministic (:func:`margin_pairs`);
            ``'distance'``: one negative for every positive pair, drawn by
            :func:`~clusterplug.functional.distance_weights`, uniformly where no negative is within 1.4.
        cutoff: Least distance of a negative (``'distance'``: smaller ones count as this).
        count: ``'either'``: divide by the triples in which at least one term is above 0; ``'active'``: by the number
            of terms above 0, as Wu et al.; up to 2 times larger.
        normalize: Scale embeddings to unit length first. Slices that other learners own are 0 and stay 0.
        learn_beta: Make ``beta`` a parameter.
        num_classes: One ``beta`` for each class of the anchor instead of one for all.
        seed: Of the draws of ``'distance'``; they follow from it and the number of the step, which is a buffer.

    Returns a 0-dim tensor, 0 with zero gradients where there is no triple (one class, one row, no negative beyond the
    cut-off). Rows of a negative label, and rows that are not finite, are ignored.

    Raises:
        ValueError: Embeddings that are not (N, D), labels of another length; an unknown option.

    Source: Wu et al., ICCV 2017 (arXiv 1706.07567); Adiga et al., IEEE JBHI 2022 (arXiv 2206.09068), official code
    adigasu/Dynamic_subspace_learners (MIT), whose numbers are the defaults. **Differs from the authors' code**: no
    positives among the negatives (:func:`margin_pairs`); no loop over anchors; ``beta`` can be learnt (theirs is a
    parameter that no optimizer has).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> MarginLoss()(x, torch.tensor([0, 0, 1, 1]))  # D = sqrt(2): sqrt(2) - 1.2 + 0.2, and nothing to push
        tensor(0.4142)
    """

    step: Tensor
    beta: Tensor

    def __init__(
        self,
        beta: float = 1.2,
        margin: float = 0.2,
        nu: float = 0.0,
        sampling: str = 'cutoff',
        cutoff: float = 0.5,
        count: str = 'either',
        normalize: bool = True,
        learn_beta: bool = False,
        num_classes: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.margin, self.nu = check_number(margin, 'margin', 0), check_number(nu, 'nu', 0)
        self.sampling = check_choice(sampling, 'sampling', SAMPLINGS)
        self.cutoff = check_number(cutoff, 'cutoff', above=0, most=1.4)
        self.count = check_choice(count, 'count', COUNTS)
        self.normalize, self.seed = bool(normalize), check_count(seed, 'seed')
        shape = () if num_classes is None else (check_count(num_classes, 'num_classes', 1),)
        start = torch.full(shape, check_number(beta, 'beta', above=0))
        if learn_beta:
            self.beta = nn.Parameter(start)
        else:
            self.register_buffer('beta', start)
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))

    def _apply(self, fn, recurse=True):
        """Move with the model, but keep the boundary in fp32 when it is cast: 1.2 is 1.203 in bf16."""
        return super()._apply(keep_fp32(fn), recurse)

    def forward(self, embeddings: Tensor, labels: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the loss of ``embeddings`` (N, D) with ``labels`` (N,) int64, -1 = ignored.

        Args:
            embeddings: (N, D). labels: (N,).
            groups: (N,) int64, such as the learner of each row: pairs are within a group only.
        """
        check_points(embeddings, 'embeddings', allow_empty=True)
        for name, value in (('labels', labels), ('groups', groups)):
            if not (isinstance(value, Tensor) or (name == 'groups' and value is None)):
                raise TypeError(f'{name} must be an integer tensor (N,), got {type(value).__name__}')
        if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f'embeddings must be (N, D) and labels (N,) integers, got {tuple(embeddings.shape)} and '
                f'{tuple(labels.shape)} of {labels.dtype}'
            )
        if self.beta.dim() and host_checks_allowed(labels) and len(labels) and int(labels.max()) >= len(self.beta):
            raise ValueError(
                f'labels must be below num_classes = {len(self.beta)}, got {int(labels.max())}; set num_classes'
            )
        if groups is not None and groups.shape != labels.shape:
            raise ValueError(f'groups must be (N,) as the labels, got {tuple(groups.shape)} for {tuple(labels.shape)}')
        with no_autocast(embeddings):
            x = embeddings.to(working_dtype(embeddings.dtype))
            finite = x.isfinite().all(1)
            labels = torch.where(finite, labels.long(), -1)
            x = torch.where(finite[:, None], x, 0.0)
            if self.normalize:
                x = unit_rows(x)
            # by differences: the form over products has no digits left for close pairs
            distances = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist').square().add(_EPS).sqrt()
            with torch.no_grad():
                positives, negatives, valid = self._pairs(distances, labels, groups, x)
            loss = self._loss(distances.gather(1, positives), distances.gather(1, negatives), valid, labels)
        return loss.to(embeddings.dtype)

    def _loss(self, near: Tensor, far: Tensor, valid: Tensor, labels: Tensor) -> Tensor:
        beta = self.beta.to(near.dtype)
        boundary = beta[labels.clamp(min=0)][:, None] if beta.dim() else beta
        pull = torch.where(valid, (near - boundary + self.margin).relu(), 0.0)
        push = torch.where(valid, (boundary - far + self.margin).relu(), 0.0)
        if self.count == 'either':
            number = ((pull > 0) | (push > 0)).sum()
        else:
            number = (pull > 0).sum() + (push > 0).sum()
        total = pull.sum() + push.sum() + torch.where(number > 0, self.nu * beta.abs().sum(), 0.0)
        return total / number.clamp(min=1)

    def _pairs(self, distances: Tensor, labels: Tensor, groups, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.sampling == 'cutoff':
            return margin_pairs(distances, labels, groups=groups, cutoff=self.cutoff)
        positive, negative, _ = _kinds(labels, groups)
        dim: int | Tensor = max(x.shape[1], 2)
        if groups is not None:  # rows of a learner are 0 outside of its slice, which is all that is compared
            dim = (x != 0).sum(1).clamp(min=2)
        weights = distance_weights(distances, dim, mask=negative, cutoff=self.cutoff)
        weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, negative.to(weights.dtype))
        bounds = weights.double().cumsum(1)
        generator = torch.Generator(labels.device).manual_seed(self._next_seed())
        drawn = torch.rand(bounds.shape, generator=generator, device=labels.device, dtype=torch.float64)
        # drawn < 1, so drawn * total lies below the last bound: a candidate of weight 0 is never the first above it
        columns = torch.searchsorted(bounds, drawn * bounds[:, -1:], right=True).clamp(max=max(len(labels) - 1, 0))
        every = torch.arange(len(labels), device=labels.device).expand_as(columns)
        return every, columns, positive & negative.any(1, keepdim=True)

    def _next_seed(self) -> int:
        """Seed of the draws of this step; the count is on the host, and in the buffer that is saved."""
        if not hasattr(self, '_step'):
            self._step = int(self.step)
        self._step += 1
        self.step.add_(1)
        return self.seed + 1_000_003 * self._step

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.__dict__.pop('_step', None)

    def extra_repr(self) -> str:
        return f'sampling={self.sampling!r}, margin={self.margin}, count={self.count!r}, normalize={self.normalize}'
