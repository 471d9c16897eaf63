# SPDX-License-Identifier: Apache-2.0
"""NT-Xent over the views of a batch, on one rank or over all of them."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_number
from clusterplug.core.distributed import gather_ranks, rank, world_size
from clusterplug.functional import nt_xent, view_contrast_terms
from clusterplug.registry import MODELS


@MODELS.register_module()
class NTXentLoss(nn.Module):
    """Pull the views of a sample together and push all other views of the batch away: SimCLR's loss.

    :func:`~clusterplug.functional.nt_xent` of every pair of views, averaged over the pairs. Where it runs on several
    ranks and gathers, the samples of all ranks are negatives, and the mean over ranks of losses and of gradients is
    that of one process with the joined batch, also where ranks hold different numbers of samples.

    Args:
        temperature: Divides the cosines.
        gather: Take negatives from all ranks. Use ``ClusterDisjointBatchSampler(disjoint='all')`` with it.

    Shapes:
        ``embeddings``: V >= 2 tensors (B, D), one a view, rows in the same order of samples; or one tensor, the other
        in ``other``.

    Returns of ``forward``:
        0-dim tensor in the type of the embeddings. ln(2 B - 1) where all embeddings are one (collapse). 0 with a
        gradient path for an empty batch, and for one sample, which has no negatives. On one rank no host
        synchronization; over ranks one, for their numbers of samples.

    Raises:
        ValueError, TypeError: Fewer than two views, views of different shapes, a temperature that is not positive.

    Source: see :func:`~clusterplug.functional.nt_xent`.

    Example:
        >>> view = torch.ones(4, 8)
        >>> bool(torch.isclose(NTXentLoss()([view, view]), torch.tensor(7.0).log()))
        True
    """

    def __init__(self, temperature: float = 0.1, gather: bool = True):
        super().__init__()
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.gather = gather
        self._at_collapse: Tensor | None = None

    def forward(self, embeddings: Tensor | Sequence[Tensor], other: Tensor | None = None) -> Tensor:
        if isinstance(embeddings, Tensor):
            if other is None:
                raise TypeError(
                    'embeddings must be a list of at least two views, got one tensor; pass the other one as well'
                )
            views = [embeddings, other]
        elif other is not None:
            raise TypeError(
                'other goes with one tensor, got a list of embeddings and other; put all views into the list'
            )
        else:
            views = list(embeddings)
        if len(views) < 2:
            raise ValueError(f'embeddings must hold at least two views, got {len(views)}')
        pairs = [self._pair(a, b) for a, b in itertools.combinations(views, 2)]
        return torch.stack(pairs).mean()

    def _pair(self, a: Tensor, b: Tensor) -> Tensor:
        ranks = world_size() if self.gather else 1
        if ranks == 1:
            self._at_collapse = a.new_full((), math.log(max(2 * len(a) - 1, 1)), dtype=torch.float32)
            return nt_xent(a, b, temperature=self.temperature)
        counts = gather_ranks(torch.tensor(len(a), device=a.device))
        self._at_collapse = (2 * counts.sum() - 1).clamp(min=1).float().log()
        most = int(counts.max())
        present = torch.arange(most, device=a.device) < counts[:, None]
        a, b = (F.pad(each, (0, 0, 0, most - len(each))) for each in (a, b))
        all_a, all_b = gather_ranks(a).flatten(0, 1), gather_ranks(b).flatten(0, 1)
        losses, valid = view_contrast_terms(
            a, b, all_a, all_b, temperature=self.temperature, offset=rank() * most, present=present.flatten()
        )
        # over the mean number of anchors a rank, so that the mean over ranks is the mean over all anchors
        total = gather_ranks(valid.sum()).sum().to(losses.dtype)
        return (losses.sum() * ranks / total.clamp(min=1)).to(a.dtype)

    def log_values(self) -> dict[str, Tensor]:
        """``ln_k`` for the log: the loss of a collapsed model, ln(2 B - 1). Empty before the first call."""
        return {} if self._at_collapse is None else {'ln_k': self._at_collapse}

    def extra_repr(self) -> str:
        """Return what ``print`` shows in the parentheses."""
        return f'temperature={self.temperature}, gather={self.gather}'
