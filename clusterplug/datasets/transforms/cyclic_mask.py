# SPDX-License-Identifier: Apache-2.0
"""Masks of patch tokens in which every position is visible equally often."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number
from clusterplug.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CyclicMask:
    r"""Hide all tokens of a grid but one block, and roll it over both borders.

    Of T = H W tokens, n = floor(ratio T) are hidden, exactly, on every grid. The c = T - n visible ones form one block
    of an aspect drawn log-uniformly,

    .. math:: h \approx \sqrt{c r}, \quad w \approx \sqrt{c / r}, \quad \log r \sim U(\log r_0, -\log r_0),

    whose surplus cells (h w - c, the last in raster order) are hidden, at a position drawn uniformly over the torus: a
    block that stays inside the grid shows its middle more often than its corners, this one every position equally.

    Args:
        size: (H, W) of the grid of tokens; an int means a square.
        ratio: Fraction of hidden tokens, 0 to 1; a pair (low, high) draws it uniformly for each mask. 0 hides nothing,
            1 hides everything; in between at least one token stays visible.
        min_aspect: r_0, 0 < r_0 <= 1. The side of a long grid may ask for more.
        generator: Where random numbers come from; None: torch's global one, which mmengine seeds in every worker.

    Called with a dict of results (``TRANSFORMS``), it adds ``mask``, a bool tensor (H, W), **True = visible**, as
    every mask of this package (``~mask`` is what BEiT or iBOT call the mask). Called without arguments it returns that
    tensor; :meth:`sample` returns many.

    Raises:
        ValueError, TypeError: a size below 1, a ratio outside 0 to 1 or reversed, an aspect outside 0 to 1.

    Source: Venkataramanan et al., "Franca", arXiv 2507.14137, section 3.3, after Darcet et al., "CAPI"; official code
    valeoai/Franca (Apache-2.0), ``franca/data/masking.py``. **Differs from the authors' code**: theirs hides too many
    tokens where the block does not fit into the grid (60 instead of 51 on 32 x 4); here the other side grows.

    Example:
        >>> mask = CyclicMask((4, 6), 0.75)()
        >>> tuple(mask.shape), int(mask.sum())
        ((4, 6), 6)
    """

    def __init__(
        self,
        size: int | Sequence[int],
        ratio: float | Sequence[float] = 0.5,
        min_aspect: float = 0.3,
        generator: torch.Generator | None = None,
    ):
        sides = (size, size) if not isinstance(size, Sequence) else tuple(size)
        if len(sides) != 2:
            raise ValueError(f'size must be an int or (H, W), got {size!r}')
        self.size = tuple(check_count(side, 'size', 1) for side in sides)
        pair = tuple(ratio) if isinstance(ratio, Sequence) else (ratio, ratio)
        if len(pair) != 2 or isinstance(ratio, str):
            raise ValueError(f'ratio must be a number or (low, high), got {ratio!r}')
        self.ratio = tuple(check_number(each, 'ratio', 0, 1) for each in pair)
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f'ratio must be (low, high) with low <= high, got {self.ratio}')
        self.min_aspect = check_number(min_aspect, 'min_aspect', most=1, above=0)
        self.generator = generator

    def __call__(self, results: dict | None = None) -> dict | Tensor:
        mask = self.sample(1)[0]
        if results is None:
            return mask
        return {**results, 'mask': mask}

    def sample(self, num_masks: int, ratios: Tensor | None = None) -> Tensor:
        """Return (num_masks, H, W) bool, True = visible.

        Args:
            num_masks: B, at least 0.
            ratios: (B,) fraction of hidden tokens of each mask, in place of draws; for strata over a batch.

        Raises:
            ValueError: ``ratios`` of another shape or outside 0 to 1.
        """
        check_count(num_masks, 'num_masks', 0)
        height, width = self.size
        draws = torch.rand(4, num_masks, generator=self.generator, dtype=torch.float64)
        if ratios is None:
            ratios = self.ratio[0] + (self.ratio[1] - self.ratio[0]) * draws[0]
        else:
            ratios = torch.as_tensor(ratios, dtype=torch.float64)
            if ratios.shape != (num_masks,) or not bool(((ratios >= 0) & (ratios <= 1)).all()):
                raise ValueError(f'ratios must be {num_masks} numbers from 0 to 1, got {ratios.tolist()}')
        total = height * width
        hidden = (ratios * total + 1e-9).floor().long()  # 0.29 * 100 is a little less than 29
        visible = total - hidden
        tall, wide = self._block(visible.clamp(min=1), draws[1])
        rows = (torch.arange(height) - (draws[2] * height).long()[:, None]) % height
        columns = (torch.arange(width) - (draws[3] * width).long()[:, None]) % width
        inside = (rows < tall[:, None])[:, :, None] & (columns < wide[:, None])[:, None, :]
        order = rows[:, :, None] * wide[:, None, None] + columns[:, None, :]
        return inside & (order < visible[:, None, None])

    def _block(self, cells: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Sides of a block that fits into the grid and holds at least so many cells."""
        height, width = self.size
        bound = -math.log(self.min_aspect)
        low = (cells / width**2).log().clamp(min=-bound)
        high = (height**2 / cells).log().clamp(max=bound)
        low = torch.minimum(low, high)
        aspect = (low + (high - low) * draw).exp()
        tall = (cells * aspect).sqrt().ceil().long().clamp(1, height)
        wide = (cells / aspect).sqrt().ceil().long().clamp(1, width)
        wide = torch.where(tall * wide < cells, -(-cells // tall), wide).clamp(max=width)
        tall = torch.where(tall * wide < cells, -(-cells // wide), tall)
        return tall, wide

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, ratio={self.ratio}, min_aspect={self.min_aspect})'
