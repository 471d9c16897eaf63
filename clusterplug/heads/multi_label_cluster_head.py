# SPDX-License-Identifier: Apache-2.0
"""Discrimination of a million clusters, several of which are right for each row: sampled, sharded, recomputed."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.distributed import gather_ranks, rank, world_size
from clusterplug.core.files import read_rows
from clusterplug.core.numerics import exact_products, host_checks_allowed, keep_fp32, unit_rows, working_dtype
from clusterplug.heads._discrimination import Draw, discriminate
from clusterplug.registry import MODELS


@MODELS.register_module()
class MultiLabelClusterHead(nn.Module):
    r"""Loss of rows that each belong to several of very many clusters, against a sample of all others.

    .. math:: \log\Big(1 + \sum_{i \in \Omega_p} e^{-\gamma \cos(\theta_i + m)}\Big)
              + \log\Big(1 + \sum_{j \in \Omega_n'} e^{\gamma \cos\theta_j}\Big),

    averaged over rows, with cosines between the row and learnable class centers: see
    :func:`~clusterplug.functional.multilabel_discrimination`. In each step a rank scores int(``sample_rate`` K_r) of
    its K_r classes: all that are positive for any row of the batch of all ranks, and others drawn uniformly without
    replacement (all positives and no others where those are more). A class that is positive for one row is a negative
    of the rows it is not positive for.

    Scores are computed in blocks of classes and again in the backward pass, so nothing of the size rows x classes is
    kept. With random centers the loss is about log(1 + l) + log(1 + sampled classes) for scale 1; where it stays
    there, nothing is learned. There is no host synchronization.

    Args:
        num_classes: K.
        embed_dims: D.
        scale: gamma > 0. The paper does not state it; with 1 the loss cannot be solved by cosines.
        margin: m in radians on the positives.
        sample_rate: fraction of the classes scored in a step, 0 < r <= 1; 1: all, without randomness.
        init_centers: (K, D) array, tensor, or path of a .npy file, such as ``centers.npy`` of
            ``tools/cluster_labels.py``; None: N(0, 0.01^2).
        sparse: gradients of the centers are sparse tensors (for ``torch.optim.SparseAdam`` or SGD without momentum):
            untouched classes cost nothing. Otherwise they are dense, for any optimizer.
        shard_weights: each rank holds the centers of its own classes only. DDP must not touch them then (name
            ``weight`` in ``_ddp_params_and_buffers_to_ignore`` of the wrapped model), and a checkpoint holds the shard
            of the rank that wrote it; :meth:`gather_centers` gives all. By default every rank holds all centers and
            scores its own classes, which works in every Runner.
        block_elements: scores at once, rows x classes.
        seed: of the draws; a step's draw derives from it and from the number of the step, which is in the checkpoint.

    Attributes:
        weight: (K, D) parameter, with ``shard_weights`` the rows ``first_class`` to ``last_class`` of it.

    Shapes:
        ``x`` (N, D) floating, the same N on all ranks; ``labels`` (N, l) integer classes, -1 = none, or (N,). A class
        named twice in a row counts once. Returns the mean loss over the rows of all ranks, 0-dim, equal on all ranks.
        Rows without a class and rows with NaN or inf are ignored; without any row the loss is 0 with a gradient path.

    Distributed: rank r scores every W-th part of the classes, for the rows of all ranks. The mean over ranks of the
    gradients (what DDP makes) is that of one process with the joined batch; the gradient of sharded centers is that
    gradient itself. Four collectives forward and one backward, whatever the data.

    Raises:
        ValueError, TypeError: sizes, options, shapes or types that do not fit; on the CPU a label outside -1 .. K-1
            (elsewhere a device-side assert).

    Source: An, Yang, Dai, Feng, Deng, "Multi-label Cluster Discrimination for Visual Representation Learning", ECCV
    2024, arXiv 2407.17331; sharding and sampling after deepglint/unicom (MIT), ``unicom/partial_fc.py``.

    **Differs from the authors' code**: the multi-label loss is not in their repository. Their single-label version
    keeps three copies of the logits, finds the positives with ``unique`` (a synchronization), lets gradients skip the
    margin, and drops the margin at scale 1.

    Example:
        >>> head = MultiLabelClusterHead(1000, 16)
        >>> loss = head(torch.randn(4, 16), torch.tensor([[3, 17], [5, -1], [999, 0], [7, 7]]))
        >>> loss.backward()
        >>> head.weight.grad.norm(dim=1).gt(0).sum() <= 100
        tensor(True)
    """

    step: Tensor

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        scale: float = 32.0,
        margin: float = 0.3,
        sample_rate: float = 0.1,
        init_centers: Tensor | str | None = None,
        sparse: bool = False,
        shard_weights: bool = False,
        block_elements: int = 1 << 22,
        seed: int = 0,
    ):
        super().__init__()
        self.num_classes = check_count(num_classes, 'num_classes', 1)
        self.embed_dims = check_count(embed_dims, 'embed_dims', 1)
        self.scale = check_number(scale, 'scale', above=0)
        self.margin = check_number(margin, 'margin', 0, 1.57, hint='it is an angle in radians; 0.3 is the usual one')
        self.sample_rate = check_number(sample_rate, 'sample_rate', most=1, above=0)
        self.block_elements = check_count(block_elements, 'block_elements', 1)
        self.sparse, self.shard_weights, self.seed = bool(sparse), bool(shard_weights), int(seed)
        if self.num_classes < world_size():
            raise ValueError(f'num_classes must be at least the number of ranks, {world_size()}, got {num_classes}')
        first, last = self._shard() if self.shard_weights else (0, self.num_classes)
        self.weight = nn.Parameter(torch.empty(last - first, self.embed_dims))
        if init_centers is None:
            nn.init.normal_(self.weight, std=0.01)
        else:
            self.load_centers(init_centers)
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))
        self._step = 0

    @property
    def first_class(self) -> int:
        """First class that this rank scores."""
        return self._shard()[0]

    @property
    def last_class(self) -> int:
        """One more than the last class that this rank scores."""
        return self._shard()[1]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings (N, D) with their classes (N, l), -1 = none."""
        labels = self._check(x, labels)
        with exact_products(x):
            dtype = working_dtype(x.dtype, self.weight.dtype)
            usable = torch.isfinite(x).all(1)
            rows = torch.where(usable[:, None], x, 0.0).to(dtype)
            rows = unit_rows(rows)
            labels = torch.where(usable[:, None], labels, -1)
            rows = gather_ranks(rows).flatten(0, 1)
            labels = gather_ranks(labels).flatten(0, 1)
            labels = labels.sort(1)[0]
            repeated = F.pad(labels[:, 1:] == labels[:, :-1], (1, 0))
            labels = torch.where(repeated, -1, labels)
            weight = self.weight.to(dtype)
            draw = self._draw(labels)
            # The loss is the same on all ranks and DDP takes the mean: what reaches parameters through a rank's own
            # classes is one of W shares.
            share = world_size()
            group = dist.group.WORLD if share > 1 else None
            losses = discriminate(
                _scaled_gradient(rows, share),
                weight if self.shard_weights else _scaled_gradient(weight, share),
                draw,
                self.scale,
                self.margin,
                max(1, self.block_elements // max(1, len(rows))),
                group,
                self.sparse,
            )
            takes_part = labels.amax(1) >= 0
            loss = torch.where(takes_part, losses, 0.0).sum() / takes_part.sum().clamp(min=1)
        if self.training:
            self._step += 1
            self.step.fill_(self._step)
        return loss

    @torch.no_grad()
    def gather_centers(self) -> Tensor:
        """Centers (K, D) of all ranks, on every rank; a collective where weights are sharded."""
        if not self.shard_weights or world_size() == 1:
            return self.weight.detach().clone()
        most = -(-self.num_classes // world_size())
        padded = F.pad(self.weight.detach(), (0, 0, 0, most - len(self.weight)))
        parts = gather_ranks(padded)
        bounds = [self._shard(number) for number in range(world_size())]
        return torch.cat([part[: last - first] for part, (first, last) in zip(parts, bounds, strict=True)])

    @torch.no_grad()
    def load_centers(self, centers: Tensor | str) -> None:
        """Set the centers from (K, D) rows or a .npy file, of which a rank reads its own part."""
        first, last = self._shard() if self.shard_weights else (0, self.num_classes)
        if isinstance(centers, str | Path):
            rows, shape = read_rows(centers, first, last)
            part = torch.as_tensor(rows)
        else:
            part, shape = torch.as_tensor(centers[first:last]), centers.shape
        if tuple(shape) != (self.num_classes, self.embed_dims):
            raise ValueError(
                f'init_centers must have shape {(self.num_classes, self.embed_dims)}, got {tuple(shape)}; centers of '
                f'another width cannot start this head, leave them out'
            )
        self.weight.copy_(part)

    def extra_repr(self) -> str:
        """Sizes and options for ``print``."""
        return (
            f'num_classes={self.num_classes}, embed_dims={self.embed_dims}, scale={self.scale:g}, '
            f'margin={self.margin:g}, sample_rate={self.sample_rate:g}'
        )

    def _apply(self, fn, recurse=True):
        """Move to a device with the model, but stay fp32: a step of a center is below the digits of fp16."""
        return super()._apply(keep_fp32(fn), recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._step = int(self.step)

    def _shard(self, number: int | None = None) -> tuple[int, int]:
        number = rank() if number is None else number
        each, more = divmod(self.num_classes, world_size())
        first = number * each + min(number, more)
        return first, first + each + (number < more)

    def _draw(self, labels: Tensor) -> Draw:
        """Classes of this rank that are scored, and where in them the labels (N, l) are."""
        first, last = self._shard()
        count, offset = last - first, 0 if self.shard_weights else first
        own = torch.where((labels >= first) & (labels < last), labels - first, count)
        asked = int(self.sample_rate * count)
        if asked >= count or self.sample_rate == 1:
            return Draw(None, None, own, offset, count)
        number = min(count, max(asked, labels.numel(), 1))
        generator = torch.Generator(labels.device)
        generator.manual_seed(((self.seed * 1_000_003 + self._step) * world_size() + rank()) % 2**63)
        # One slot more, for labels of other ranks and for none.
        draws = torch.rand(count + 1, generator=generator, device=labels.device)
        draws.scatter_(0, own.flatten(), 2.0)
        found, drawn = draws[:count].topk(number)
        used = None
        if number > asked:
            order = torch.arange(number, device=labels.device)
            used = (order < max(asked, 1)) | (found > 1.0)
        drawn, order = drawn.sort()
        used = None if used is None else used[order]
        table = torch.full((count + 1,), number, device=labels.device)
        table.scatter_(0, drawn, torch.arange(number, device=labels.device))
        return Draw(drawn + offset, used, table[own], 0, number)

    def _check(self, x: Tensor, labels: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f'x must be a floating tensor (N, {self.embed_dims}), got {got}; use x.float()')
        if x.dim() != 2 or x.shape[1] != self.embed_dims:
            raise ValueError(f'x must have shape (N, {self.embed_dims}), got {tuple(x.shape)}; set embed_dims to fit')
        if not isinstance(labels, Tensor):
            raise TypeError(f'labels must be an int tensor (N, l), got {type(labels).__name__}; pad rows with -1')
        if labels.dtype not in (torch.int16, torch.int32, torch.int64):
            raise TypeError(f'labels must be an int tensor (N, l), got {labels.dtype}; use labels.long()')
        labels = labels[:, None] if labels.dim() == 1 else labels
        if labels.dim() != 2 or len(labels) != len(x):
            raise ValueError(
                f'labels must have shape ({len(x)}, l) for {len(x)} rows, got {tuple(labels.shape)}; pad rows with -1'
            )
        labels = labels.long() if labels.shape[1] else labels.new_full((len(labels), 1), -1, dtype=torch.int64)
        inside = ((labels >= -1) & (labels < self.num_classes)).all()
        if not host_checks_allowed(labels):
            torch._assert_async(inside, f'labels must be -1 (none) or 0 .. {self.num_classes - 1}')
        elif not bool(inside):
            raise ValueError(
                f'labels must be -1 (none) or 0 .. {self.num_classes - 1}, got {int(labels.min())} to '
                f'{int(labels.max())}; set num_classes to that of the clustering'
            )
        return labels


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def _scaled_gradient(x: Tensor, factor: int) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``factor``."""
    return x if factor == 1 else _ScaledGradient.apply(x, factor)
