# SPDX-License-Identifier: Apache-2.0
"""How well discovered subclasses agree with hidden sub-types, class by class."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.functional.metrics import normalized_mutual_info


class SubclassAgreement(NamedTuple):
    """Agreement of two groupings within each class.

    Attributes:
        per_class: (C,) float64 normalized mutual information, NaN where a class has fewer than two sub-types.
        mean: mean over the classes that have a value, NaN if none has.
    """

    per_class: Tensor
    mean: float


def subclass_agreement(classes: Tensor, subclasses: Tensor, subtypes: Tensor, num_classes: int) -> SubclassAgreement:
    """Normalized mutual information of subclasses and sub-types within each true class.

    Args:
        classes: (N,) integer true class; points outside 0 .. num_classes - 1 are left out.
        subclasses: (N,) discovered subclass, below 0 = none (left out).
        subtypes: (N,) true sub-type, below 0 = unknown (left out).
        num_classes: C.

    Returns:
        :class:`SubclassAgreement`. 0 = independent, 1 = the same grouping.

    Example:
        >>> a = torch.tensor([0, 0, 1, 1])
        >>> subclass_agreement(torch.zeros(4, dtype=torch.long), a, 1 - a, num_classes=1).mean
        1.0
    """
    shapes = {tuple(x.shape) for x in (classes, subclasses, subtypes)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f'classes, subclasses and subtypes must be (N,) with the same N, got shapes {sorted(shapes)}')
    per_class = torch.full((num_classes,), float('nan'), dtype=torch.float64)
    usable = (subclasses >= 0) & (subtypes >= 0)
    for c in range(num_classes):
        chosen = usable & (classes == c)
        if chosen.any() and subtypes[chosen].unique().numel() > 1:
            per_class[c] = float(normalized_mutual_info(subtypes[chosen], subclasses[chosen]))
    return SubclassAgreement(per_class, float(per_class.nanmean()))
