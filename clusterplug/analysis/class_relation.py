# SPDX-License-Identifier: Apache-2.0
"""How classes are related, as the gates of their pairs tell: a map, and its picture."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count
from clusterplug.functional import linkage


@torch.no_grad()
def class_relation(gate: Any, classes: Sequence[int] | None = None, kind: str = 'overlap') -> Tensor:
    r"""Return the relation of every pair of classes, from a trained gate.

    Neither kind changes when a gate is scaled, as the loss does not.

    Args:
        gate: :class:`~clusterplug.heads.ClassPairGate`, or a function of ``(y1, y2)`` with ``num_classes``.
        classes: Classes to compare; default all.
        kind: ``'overlap'``: cosine between the gates of two classes, each paired with itself: how much of their
            subspaces they share. ``'share'``: :math:`(\sum g^2)^2 / (d \sum g^4)` of the gate of the pair: the share
            of channels in which the two are compared.

    Returns:
        (K, K) fp32, symmetric, within 0 .. 1.

    Raises:
        ValueError, TypeError: Classes that the gate does not have, or no gate.
    """
    if not callable(gate):
        raise TypeError(f'gate must be a ClassPairGate or a function of (y1, y2), got {type(gate).__name__}')
    check_choice(kind, 'kind', ('overlap', 'share'))
    number = getattr(gate, 'num_classes', None)
    if classes is None and number is None:
        raise ValueError('classes must be given where the gate has no num_classes')
    classes = range(number) if classes is None else classes
    chosen = [check_count(each, 'classes', 0, None if number is None else number - 1) for each in classes]
    tensors = [*getattr(gate, 'buffers', tuple)(), *getattr(gate, 'parameters', tuple)()]
    index = torch.tensor(chosen, device=tensors[0].device if tensors else 'cpu')
    training = getattr(gate, 'training', False)
    if training:
        gate.eval()
    try:
        if kind == 'overlap':
            own = torch.nn.functional.normalize(gate(index, index).float(), dim=1)
            return own @ own.T
        # one row of pairs at a time: all of them at once are K x K x d numbers
        rows = [gate(each.expand(len(index)), index).float() for each in index]
    finally:
        if training:
            gate.train()
    squared = [row.square() for row in rows]
    return torch.stack([s.sum(1).square() / (s.square().sum(1) * s.shape[1]).clamp(min=1e-30) for s in squared])


def save_class_relation(
    path: str | os.PathLike, relation: Tensor, names: Sequence[str] | None = None, title: str = ''
) -> list[int]:
    """Draw the map of :func:`class_relation` with related classes next to each other.

    Args:
        path: PNG to write.
        relation: (K, K).
        names: One for each class; default their numbers.
        title: Above it.

    Returns:
        The order in which classes are drawn: the leaves of the average linkage of their rows.

    Raises:
        ValueError: Shapes that do not fit.
        ModuleNotFoundError: matplotlib is missing.
    """
    from clusterplug.visualization import save_class_map

    if not isinstance(relation, Tensor) or relation.dim() != 2 or relation.shape[0] != relation.shape[1]:
        got = tuple(relation.shape) if isinstance(relation, Tensor) else type(relation).__name__
        raise ValueError(f'relation must be a tensor (K, K), got {got}')
    number = len(relation)
    names = [str(each) for each in range(number)] if names is None else list(names)
    if len(names) != number:
        raise ValueError(f'names must be one for each of the {number} classes, got {len(names)}')
    order = _leaves(relation)
    save_class_map(path, relation[order][:, order].cpu().numpy(), [names[each] for each in order], title)
    return order


def _leaves(relation: Tensor) -> list[int]:
    """Order of the leaves of the tree: each merge puts the right part behind the left one."""
    number = len(relation)
    if number < 2:
        return list(range(number))
    tree = linkage(relation.detach().float().cpu(), method='average')
    parts = [[each] for each in range(number)]
    for left, right in tree.children.tolist():
        parts.append(parts[left] + parts[right])
    return parts[-1]
