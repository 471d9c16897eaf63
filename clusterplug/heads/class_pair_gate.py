# SPDX-License-Identifier: Apache-2.0
"""Which channels two classes share: a gate for every unordered pair of classes."""

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_device
from clusterplug.core.numerics import keep_fp32, no_autocast, on_host
from clusterplug.registry import MODELS

_MODES = ('fuse', 'product', 'open')


@MODELS.register_module()
class ClassPairGate(nn.Module):
    r"""Learned gate of each pair of classes, the same in both orders.

    .. math:: g(y_1, y_2) = \sigma(\mathrm{MLP}((E_{y_1} + E_{y_2}) / 2))

    with E an embedding of every class, and the MLP ReLU, norm, linear, ReLU, norm, linear. Computed in fp32 whatever
    the model is cast to.

    Args:
        num_classes: C; labels are 0 .. C-1.
        channels: d, width of the gate.
        embed_dims: Width of the class embeddings.
        hidden_dims: Width between the two linear layers.
        mode: ``'fuse'``: as above; ``'product'``: the product of the gates of the two classes; ``'open'``: all ones.
        norm: ``'layer'`` or ``'batch'``, the published one.

    Shapes:
        ``y1`` (B,) and ``y2`` (B,) integers; returns (B, channels) fp32 within 0 .. 1.

    Raises:
        ValueError, TypeError: Labels outside of 0 .. C-1 (on CUDA a device-side assert), or arguments that do not fit;
            ``norm='batch'`` in training with one pair.

    Source: Wu et al., arXiv 2410.18200; defaults of erow/vitookit. **Differs from the authors' code**: layer norm
        instead
    of batch norm over the pairs that happen to be in the batch, so that the gate of a pair is the same in every batch
    and in evaluation; ``norm='batch'`` is theirs.

    Example:
        >>> gate = ClassPairGate(num_classes=3, channels=8)
        >>> y1, y2 = torch.tensor([0, 1]), torch.tensor([2, 1])
        >>> bool((gate(y1, y2) == gate(y2, y1)).all())
        True
    """

    ones: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int,
        embed_dims: int = 512,
        hidden_dims: int = 1024,
        mode: str = 'fuse',
        norm: str = 'layer',
    ):
        super().__init__()
        self.num_classes, self.channels = (
            check_count(num_classes, 'num_classes', 1),
            check_count(channels, 'channels', 1),
        )
        embed_dims, hidden_dims = check_count(embed_dims, 'embed_dims', 1), check_count(hidden_dims, 'hidden_dims', 1)
        self.mode = check_choice(mode, 'mode', _MODES)
        kind = nn.LayerNorm if check_choice(norm, 'norm', ('layer', 'batch')) == 'layer' else nn.BatchNorm1d
        self.register_buffer('ones', torch.ones(channels), persistent=False)
        if mode != 'open':
            self.embedding = nn.Embedding(num_classes, embed_dims)
            self.layers = nn.Sequential(
                nn.ReLU(), kind(embed_dims), nn.Linear(embed_dims, hidden_dims),
                nn.ReLU(), kind(hidden_dims), nn.Linear(hidden_dims, channels),
            )  # fmt: skip

    def _apply(self, fn, recurse=True):
        """Move with the model, but compute in fp32 when it is cast."""
        return super()._apply(keep_fp32(fn), recurse)

    def forward(self, y1: Tensor, y2: Tensor) -> Tensor:
        for labels, name in ((y1, 'y1'), (y2, 'y2')):
            if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
                got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
                raise TypeError(f'{name} must be an integer tensor, got {got}; convert it with {name}.long()')
            if labels.dim() != 1 or labels.shape != y1.shape:
                raise ValueError(f'y1 and y2 must have one shape (B,), got {tuple(y1.shape)} and {tuple(y2.shape)}')
            check_device(labels, self.ones.device, name)
        if self.mode == 'open':
            self._look_at(y1, y2)
            return self.ones.expand(len(y1), -1)
        try:
            first, second = self.embedding(y1.long()), self.embedding(y2.long())
        except IndexError:
            self._look_at(y1, y2)
            raise
        with no_autocast(first):
            if self.mode == 'product':
                return self._of(first) * self._of(second)
            return self._of((first + second) / 2)

    def _look_at(self, y1: Tensor, y2: Tensor) -> None:
        """Raise for labels outside of the classes, where looking costs nothing."""
        both = torch.cat([y1, y2])
        if not on_host(both) or not both.numel():
            return
        low, high = int(both.min()), int(both.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f'labels must be from 0 to num_classes - 1 = {self.num_classes - 1}, got {low} to {high}')

    def _of(self, embedded: Tensor) -> Tensor:
        return self.layers(embedded).sigmoid()

    def extra_repr(self) -> str:
        """Return what ``print`` shows in the parentheses."""
        return f'num_classes={self.num_classes}, channels={self.channels}, mode={self.mode!r}'
