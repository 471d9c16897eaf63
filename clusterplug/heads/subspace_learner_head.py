# SPDX-License-Identifier: Apache-2.0
"""An embedding of disjoint slices, one for each learner, that can be split while it trains."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_points
from clusterplug.core.distributed import gather_ranks
from clusterplug.core.numerics import keep_fp32, no_autocast, on_host, working_dtype
from clusterplug.registry import MODELS

__all__ = ['SubspaceLearnerHead', 'normalize_slices']


def normalize_slices(x: Tensor, partition: Tensor) -> Tensor:
    r"""Return ``x`` with every slice of every row scaled to unit length.

    .. math:: \hat x_{N_k} = x_{N_k} / \lVert x_{N_k} \rVert_2, \qquad N_k = \{j : \text{partition}_j = k\}.

    Args:
        x: (N, D) floating.
        partition: (D,) int64, slice of each dimension, 0 .. D - 1.

    Returns:
        (N, D) in the type of ``x``. A slice of zeros stays 0; a slice with NaN or infinity is NaN, without effect on
        other slices or rows.

    Example:
        >>> normalize_slices(torch.tensor([[3.0, 4.0, -2.0]]), torch.tensor([0, 0, 1]))
        tensor([[ 0.6000,  0.8000, -1.0000]])
    """
    with no_autocast(x):
        rows = x.to(working_dtype(x.dtype))
        index = partition.expand_as(rows)
        # by the largest entry first: squares of large numbers overflow, of small ones vanish
        largest = torch.zeros_like(rows).scatter_reduce(1, index, rows.detach().abs(), 'amax').gather(1, index)
        rows = rows / torch.where(largest == 0, 1.0, largest)
        squares = torch.zeros_like(rows).index_add(1, partition, rows.square())
        norms = torch.where(squares > 0, squares, 1.0).sqrt().gather(1, index)
        return (rows / torch.where(norms == norms, norms, torch.nan)).to(x.dtype)


@MODELS.register_module()
class SubspaceLearnerHead(nn.Module):
    r"""A linear embedding whose dimensions are divided among learners, each trained on its own cluster of the data.

    .. math:: e = W v + b, \qquad \{0, \dots, d - 1\} = N_1 \cup \dots \cup N_K, \qquad
              \hat e_{N_k} = e_{N_k} / \lVert e_{N_k} \rVert.

    In training every row belongs to a cluster, and only the slice of its learner is compared. :meth:`split` turns the
    dimensions of the last learner that matter little into a new one (see
    :class:`~clusterplug.hooks.LearnerSplitHook`). While training, the head adds up e * dL/de of every dimension, the
    first-order Taylor importance, in two vectors of d numbers.

    Args:
        in_channels: Width of the feature v.
        embed_dims: d.
        num_learners: K at the start; 1 and splits on the way, or a fixed number.
        seed: Of the weights that a split initializes anew; with the number of splits it makes each of them
            reproducible, also after a resume.

    Shape: (N, in_channels) -> (N, embed_dims).

    Attributes:
        partition: (embed_dims,) int64 buffer, learner of each dimension; saved with the model.
        importance_sum: (2, embed_dims) buffer: sums of e * g and of its absolute value since the last reset.
        importance_count: () buffer: number of rows in the sums.

    Raises:
        ValueError: More learners than dimensions; :meth:`split` with dimensions that are not of the last learner, or
            with all or none of them.

    Source: Adiga, Dolz and Lombaert, "Attention-based Dynamic Subspace Learners for Medical Image Analysis", IEEE JBHI
    2022 (arXiv 2206.09068); official code adigasu/Dynamic_subspace_learners (MIT).

    **Differs from the authors' code**: a split changes the partition, not the position of rows: theirs copies rows in
    place one after the other, so that a row that was overwritten is lost. The partition is a buffer: theirs is a
    Python list that is in no checkpoint, so a model of several learners is evaluated as one. Theirs keeps e and its
    gradient of an epoch, with their graphs.

    Example:
        >>> head = SubspaceLearnerHead(16, 8)
        >>> head.split([0, 1, 2, 5, 7])
        1
        >>> head.partition.tolist(), head.num_learners
        ([0, 0, 0, 1, 1, 0, 1, 0], 2)
        >>> head(torch.randn(4, 16)).shape, head(torch.randn(4, 16), learner=1)[:, 0].tolist()
        (torch.Size([4, 8]), [0.0, 0.0, 0.0, 0.0])
    """

    partition: Tensor
    importance_sum: Tensor
    importance_count: Tensor

    def __init__(self, in_channels: int, embed_dims: int = 128, num_learners: int = 1, seed: int = 0):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        self.embed_dims = check_count(embed_dims, 'embed_dims', 1)
        number = check_count(num_learners, 'num_learners', 1)
        if number > self.embed_dims:
            raise ValueError(
                f'num_learners must be at most embed_dims = {self.embed_dims}, got {number}; every learner needs a '
                f'dimension of its own'
            )
        self.seed = check_count(seed, 'seed')
        self.fc = nn.Linear(self.in_channels, self.embed_dims)
        self.register_buffer('partition', torch.arange(self.embed_dims) * number // self.embed_dims)
        self.register_buffer('importance_sum', torch.zeros(2, self.embed_dims))
        self.register_buffer('importance_count', torch.zeros(()))

    def _apply(self, fn, recurse=True):
        """Move with the model, but add up in fp32 when it is cast: half precision soon takes in nothing more."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        return super()._apply(keep_fp32(fn), recurse=False)

    @property
    def num_learners(self) -> int:
        """K, read on the host."""
        return int(self.partition.max()) + 1

    def forward(self, x: Tensor, learner: int | Tensor | None = None) -> Tensor:
        """Return the embeddings, every slice of unit length.

        Args:
            x: (N, in_channels) features.
            learner: None: all slices. An int, or (N,) int64 learner of each row: the other slices are 0 (distances are
                then those within the slice), and a row of a negative learner is all 0.
        """
        check_points(x, 'x', allow_empty=True)
        if x.dim() != 2 or x.shape[1] != self.in_channels:
            raise ValueError(f'x must have shape (N, {self.in_channels}), got {tuple(x.shape)}; set in_channels to fit')
        embedding = normalize_slices(self.fc(x), self.partition)
        if torch.is_grad_enabled() and embedding.requires_grad and self.training:
            kept = embedding.detach()
            embedding.register_hook(lambda gradient: self._accumulate(kept, gradient))
        if learner is None:
            return embedding
        if isinstance(learner, Tensor):
            if learner.shape != x.shape[:1] or learner.is_floating_point():
                raise ValueError(f'learner must be (N,) integers for {len(x)} rows, got {tuple(learner.shape)}')
            if on_host(learner) and len(x) and int(learner.max()) >= self.num_learners:
                raise ValueError(
                    f'learner must be below {self.num_learners}, the number of learners, got {int(learner.max())}; '
                    f'cluster into as many'
                )
            chosen = self.partition == learner[:, None]
        else:
            most = self.num_learners if on_host(x) else self.embed_dims
            chosen = self.partition == check_count(learner, 'learner', 0, most - 1)
        return torch.where(chosen, embedding, 0.0)

    @torch.no_grad()
    def _accumulate(self, embedding: Tensor, gradient: Tensor) -> None:
        product = (embedding * gradient).to(self.importance_sum.dtype)
        product = torch.where(product.isfinite(), product, 0.0)
        self.importance_sum += torch.stack([product.sum(0), product.abs().sum(0)])
        self.importance_count += len(product)

    def importance(self, learner: int | None = None, kind: str = 'taylor') -> Tensor:
        r"""Return the importance of the dimensions of a learner, scaled to 0 .. 1.

        .. math:: s_j = \Big| \frac{1}{n} \sum_i e_{ij} \, \partial L / \partial e_{ij} \Big|

        Args:
            learner: Which; the last by default.
            kind: ``'taylor'`` as above (contributions of changing sign cancel), or ``'absolute'``: mean |e * g|.

        Returns:
            (embed_dims,), -1 for the dimensions of other learners; all 0 where the scores are equal (then nothing is
            to be told apart). Every rank must call it: sums are over all ranks.
        """
        check_choice(kind, 'kind', ('taylor', 'absolute'))
        last = self.num_learners - 1
        total = gather_ranks(self.importance_sum).sum(0)[0 if kind == 'taylor' else 1].abs()
        own = self.partition == (last if learner is None else check_count(learner, 'learner', 0, last))
        low = torch.where(own, total, torch.inf).amin()
        high = torch.where(own, total, -torch.inf).amax()
        spread = high - low
        scaled = torch.where(spread > 0, (total - low) / torch.where(spread > 0, spread, 1.0), 0.0)
        return torch.where(own, scaled, -1.0)

    def reset_importance(self) -> None:
        """Forget the sums."""
        self.importance_sum.zero_()
        self.importance_count.zero_()

    @torch.no_grad()
    def split(self, keep: Tensor | Sequence[int]) -> int:
        """Keep dimensions ``keep`` of the last learner, make a new learner of its others, with new weights.

        Args:
            keep: Indices into 0 .. embed_dims - 1, all of the last learner; at least one, and not all of them.

        Returns:
            The number of the new learner. Its weights are drawn anew (Xavier normal, and the default bias of a linear
            layer), the same on every rank; all other rows stay as they are, bit for bit.
        """
        last = self.num_learners - 1
        own = (self.partition == last).nonzero().flatten().tolist()
        wanted = [check_count(each, 'each of keep') for each in (keep.tolist() if isinstance(keep, Tensor) else keep)]
        if len(set(wanted)) != len(wanted) or not set(wanted) < set(own) or not wanted:
            raise ValueError(
                f'keep must be different dimensions of learner {last}, at least one and not all of {own}, got {wanted}'
            )
        rest = torch.tensor(sorted(set(own) - set(wanted)), device=self.partition.device)
        self.partition[rest] = last + 1
        generator = torch.Generator().manual_seed(self.seed + last)
        weight = torch.empty(len(rest), self.in_channels)
        # fans of the whole layer, whose rows these are
        spread = (2.0 / (self.in_channels + self.embed_dims)) ** 0.5
        weight.normal_(0, spread, generator=generator)
        bias = torch.empty(len(rest)).uniform_(-1, 1, generator=generator) / self.in_channels**0.5
        self.fc.weight[rest] = weight.to(self.fc.weight)
        self.fc.bias[rest] = bias.to(self.fc.bias)
        self.reset_importance()
        return last + 1

    def extra_repr(self) -> str:
        return f'in_channels={self.in_channels}, embed_dims={self.embed_dims}, num_learners={self.num_learners}'
