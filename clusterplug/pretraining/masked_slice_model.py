# SPDX-License-Identifier: Apache-2.0
"""Predict the embeddings of hidden slices from those of all others."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_mask, check_number, check_points
from clusterplug.core.distributed import gather_ranks, world_size
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype
from clusterplug.registry import MODELS


@MODELS.register_module()
class MaskedSliceModel(nn.Module):
    r"""Hide some slices of every volume, mix the others, predict what was hidden.

    .. math:: L = \frac{1}{|M|} \sum_{s \in M} \mathrm{mean}_c (\hat x_{sc} - \mathrm{sg}(x_{sc}))^2

    over the hidden slices M of all volumes: ceil(``mask_ratio`` S) of each, other ones in every call. Targets have no
    gradient, and the prediction sees nothing of a hidden slice.

    Args:
        encoder: Module or config from (B, S, C) and a mask (B, S) to (B, S, C), such as
            :class:`~clusterplug.layers.InterSliceEncoder`; it must have ``channels``.
        mask_ratio: Share of the slices that is hidden, rounded up.
        distance: ``'mse'``, or ``'cosine'``: 1 - cosine.

    Shapes:
        ``x`` (B, S, C) slice embeddings, ``mask`` (B, S) bool, True = a slice, False = padding behind them; ``targets``
        (B, S, C), by default ``x`` (of another network, as an average of the weights).

    Returns of ``forward``:
        0-dim tensor in the type of ``x``. 0 with a gradient path for no volumes, and with ``mask_ratio=0``, which
        warns. Volumes with NaN, infinity or entries of 1e15 and above are ignored. Distributed: the mean over ranks of
        loss and gradient is that of one process with the joined batch.

    Raises:
        ValueError, TypeError: A ratio that hides every slice of a volume, or inputs that do not fit.

    Source: Nguyen et al., AAAI 2023, arXiv 2212.01893, masked embedding prediction; official code
    duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive (no license), not copied. **Differs from the
    authors' code**: theirs averages over all slices, so that 90 % of the loss is copying what is visible, and lets the
    gradient through the targets.

    Example:
        >>> encoder = dict(type='clusterplug.InterSliceEncoder', channels=16, depth=1, heads=2)
        >>> model = MaskedSliceModel(encoder, mask_ratio=0.25)
        >>> model(torch.randn(2, 8, 16)).shape
        torch.Size([])
    """

    def __init__(self, encoder: nn.Module | dict, mask_ratio: float = 0.1, distance: str = 'mse'):
        super().__init__()
        self.encoder = MODELS.build(encoder) if isinstance(encoder, dict) else encoder
        channels = getattr(self.encoder, 'channels', None)
        if channels is None:
            raise TypeError(f'encoder must have an attribute channels, got {type(self.encoder).__name__}')
        self.mask_ratio = check_number(mask_ratio, 'mask_ratio', 0, 1)
        if self.mask_ratio == 1:
            raise ValueError('mask_ratio must be below 1, as a volume without a visible slice tells nothing, got 1.0')
        self.distance = check_choice(distance, 'distance', ('mse', 'cosine'))
        self.token = nn.Parameter(0.02 * torch.randn(channels))
        self.decoder = nn.Linear(channels, channels)
        self._warned = False

    def draw(self, x: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return which slices to hide, (B, S) bool: ceil(ratio S) of the slices of each volume, at random."""
        draws = torch.rand(x.shape[:2], device=x.device, generator=generator)
        if mask is None:
            lengths = torch.full((len(x), 1), x.shape[1], device=x.device)
        else:
            draws, lengths = draws.masked_fill(~mask, 2.0), mask.sum(1, keepdim=True)
        rank = draws.argsort(1).argsort(1)
        # in double precision 0.1 * 70 is a little above 7
        count = (self.mask_ratio * lengths.double() - 1e-9).ceil().long()
        return rank < count

    def predict(self, x: Tensor, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the embeddings (B, S, C) that are predicted where ``hidden`` (B, S) is True, from the others."""
        seen = torch.where(hidden[..., None], self.token.to(x.dtype), x)
        return self.decoder(self.encoder(seen) if mask is None else self.encoder(seen, mask))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        check_points(x, 'x', allow_empty=True)
        if x.dim() != 3:
            raise ValueError(f'x must have shape (B, S, C), got {tuple(x.shape)}')
        check_mask(mask, x.shape[:2], x.device)
        targets = x if targets is None else targets
        if targets.shape != x.shape:
            raise ValueError(f'targets must have the shape of x, {tuple(x.shape)}, got {tuple(targets.shape)}')
        if self.mask_ratio == 0 and not self._warned:
            warnings.warn('mask_ratio is 0: the loss of the masked slices is always 0', stacklevel=2)
            self._warned = True
        hidden = self.draw(x, mask, generator)
        if host_checks_allowed(x) and x.numel() and self.mask_ratio > 0:
            visible = ~hidden if mask is None else ~hidden & mask
            if not bool(visible.any(1).all()):
                raise ValueError(
                    f'mask_ratio must leave a slice of every volume visible, got {self.mask_ratio} for volumes of '
                    f'{int((visible | hidden).sum(1).min())} slices or more; use a smaller ratio or longer volumes'
                )
        usable = [_usable(each.detach(), mask) for each in (x, targets)]
        usable = (usable[0] & usable[1])[:, None]
        x, hidden = torch.where(usable[..., None], x, 0.0), hidden & usable
        targets = torch.where(hidden[..., None], targets, 0.0)
        predicted = self.predict(x, hidden, mask)
        with no_autocast(x):
            dtype = working_dtype(x.dtype)
            predicted, wanted = predicted.to(dtype), targets.detach().to(dtype)
            if self.distance == 'mse':
                error = (predicted - wanted).square().mean(-1)
            else:
                error = 1 - F.cosine_similarity(predicted, wanted, dim=-1)
            count = hidden.sum().to(dtype)
            if world_size() > 1:
                count = gather_ranks(count).mean(0)
            loss = error.masked_fill(~hidden, 0.0).sum() / count.clamp(min=1 / world_size())
        return loss.to(x.dtype)


def _usable(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) volumes whose slices are finite and have squares that are."""
    good = (x.abs() < 1e15).all(-1)
    return (good if mask is None else good | ~mask).all(1)
