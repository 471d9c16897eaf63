# SPDX-License-Identifier: Apache-2.0
"""Rows of all classes in one tensor, with a dummy row at the end of each class."""

import torch
from torch import Tensor

__all__ = ['PaddedClasses']


class PaddedClasses:
    """The layout (C, K + 1, ...): K rows of each of C classes, and then one that belongs to none.

    This file alone knows where that dummy is. Whatever is ignored, unassigned or one too many gets its number and is
    written into it; nothing that counts is read from it. So a step of training needs no mask, no loop over classes and
    no count of anything on the host.

    Args:
        num_classes: C.
        num_rows: K, without the dummy.

    Attributes:
        shape: (C, K + 1).
        dummy: number of the dummy within its class, K.

    Example:
        >>> rows = PaddedClasses(2, 3)
        >>> rows.shape, rows.dummy, rows.first_of_class().tolist()
        ((2, 4), 3, [[0], [4]])
        >>> rows.without_dummy(torch.arange(8).view(2, 4)).tolist()
        [[0, 1, 2], [4, 5, 6]]
        >>> rows.ignore(torch.tensor([[0, 1]]), torch.tensor([[False, True]])).tolist()
        [[0, 3]]
    """

    def __init__(self, num_classes: int, num_rows: int):
        self.num_classes, self.num_rows = num_classes, num_rows
        self.shape, self.dummy = (num_classes, num_rows + 1), num_rows

    @classmethod
    def of(cls, x: Tensor) -> 'PaddedClasses':
        """Return the layout of a tensor (C, K + 1, ...)."""
        return cls(x.shape[0], x.shape[1] - 1)

    def first_of_class(self) -> Tensor:
        """Return (C, 1) int64, what is added to numbers within a class to get numbers over all classes."""
        return torch.arange(self.num_classes)[:, None] * (self.num_rows + 1)

    def numbers_of_members(self) -> Tensor:
        """Return (K + 1,) int64 numbers within a class; -1 for the dummy, to which no number is equal."""
        return torch.cat([torch.arange(self.num_rows), torch.tensor([-1])])

    def without_dummy(self, x: Tensor) -> Tensor:
        """Return the view (C, K, ...) of ``x`` (C, K + 1, ...)."""
        return x[:, :-1]

    def of_dummy(self, x: Tensor) -> Tensor:
        """Return the view (C, ...) of what is in the dummies of ``x`` (C, K + 1, ...)."""
        return x[:, -1]

    def ignore(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return numbers within a class with that of the dummy where ``mask`` is True."""
        return ids.masked_fill(mask, self.dummy)

    def is_ignored(self, ids: Tensor) -> Tensor:
        """Return bool, which numbers within a class are that of the dummy."""
        return ids == self.dummy
