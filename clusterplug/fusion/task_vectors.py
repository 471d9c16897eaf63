# SPDX-License-Identifier: Apache-2.0
"""Differences of fine-tuned models from their common start, and sums of them."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_number
from clusterplug.core.numerics import working_dtype

__all__ = ['TaskVector', 'task_arithmetic', 'ties_merging']

_SHOWN = 8


class TaskVector(dict):
    r"""What fine-tuning added to a model: name -> tensor, :math:`\tau = \theta - \theta_0`, in fp32 at least.

    Integer buffers (counters of BatchNorm) are no part of it. It is a plain dict of tensors, which adds, subtracts and
    scales: ``first + 0.5 * second``.

    Args:
        base: State dict of the start.
        tuned: State dict of the fine-tuned model with the same names and shapes.
        ignore: Beginnings of names that are left out, such as heads of another size (``('head.',)``).

    Raises:
        ValueError: Names or shapes that differ (they are listed), or numbers that are not finite.

    Source: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023 (arXiv 2212.04089).

    Example:
        >>> vector = TaskVector({'w': torch.tensor([1.0, 2.0])}, {'w': torch.tensor([1.5, 2.0])})
        >>> vector['w'], (2 * vector).apply({'w': torch.tensor([1.0, 2.0])})['w']
        (tensor([0.5000, 0.0000]), tensor([2., 2.]))
    """

    def __init__(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], ignore: Iterable[str] = ()):
        ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
        states = [{k: v for k, v in each.items() if not k.startswith(ignore)} for each in (base, tuned)]
        names = _common_names(*states, 'the base', 'the fine-tuned model')
        super().__init__()
        for name in names:
            one, other = (state[name].detach() for state in states)
            dtype = working_dtype(one.dtype, other.dtype)
            self[name] = other.to(one.device, dtype) - one.to(dtype)
        _check_finite(self, 'the difference')

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> 'TaskVector':
        """Return a vector of given differences."""
        vector = cls({}, {})
        vector.update(tensors)
        return vector

    def __add__(self, other: Mapping[str, Tensor]) -> 'TaskVector':
        names = _common_names(self, other, 'the first vector', 'the second vector')
        return TaskVector.of({name: self[name] + other[name] for name in names})

    def __mul__(self, factor: float) -> 'TaskVector':
        factor = check_number(factor, 'factor')
        return TaskVector.of({name: tensor * factor for name, tensor in self.items()})

    __rmul__ = __mul__

    def __neg__(self) -> 'TaskVector':
        return self * -1.0

    def __sub__(self, other: Mapping[str, Tensor]) -> 'TaskVector':
        return self + TaskVector.of({name: -tensor for name, tensor in other.items()})

    def apply(self, base: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        """Return the state dict ``base`` + ``scale`` times this vector (:func:`task_arithmetic` of one)."""
        return task_arithmetic(base, [self], scale)


def task_arithmetic(
    base: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]], scale: float | Sequence[float] = 0.3
) -> dict[str, Tensor]:
    r"""Return the state dict of the model merged by a weighted sum of task vectors.

    .. math:: \theta = \theta_0 + \sum_t \lambda_t \tau_t

    Args:
        base: State dict of the common start. It is not changed, and the result shares no memory with it.
        vectors: Task vectors (:class:`TaskVector`, or any dict of differences), all with the same names; integer
            entries are passed over.
        scale: lambda, for all, or one per vector. 1 / T averages the models.

    Returns:
        A state dict with the names, types, order and module versions of ``base``. What is in no vector, and integer
        buffers, are copies of those of ``base``. Running variances of BatchNorm stay at least 0.

    Raises:
        ValueError: No vectors; names or shapes that differ (listed); numbers that are not finite; a wrong number of
            scales.

    Source: Ilharco et al., ICLR 2023 (arXiv 2212.04089); tanganke/fusion_bench (MIT), ``method/task_arithmetic``.
    **Differs from the authors' code**: tanganke/subspace_fusion adds into the tensors of the base where base and result
    are on the same device; here the base stays as it is.

    Example:
        >>> base = {'w': torch.zeros(2)}
        >>> task_arithmetic(base, [{'w': torch.tensor([1.0, 0.0])}, {'w': torch.tensor([0.0, 2.0])}], 0.5)['w']
        tensor([0.5000, 1.0000])
    """
    names = check_vectors(base, vectors)
    scales = list(scale) if isinstance(scale, Sequence) else [scale] * len(vectors)
    if len(scales) != len(vectors):
        raise ValueError(f'scale must be a number or one per vector, got {len(scales)} for {len(vectors)} vectors')
    scales = [check_number(each, 'scale') for each in scales]
    changes = {}
    for name in names:
        dtype = working_dtype(base[name].dtype)
        total = torch.zeros_like(base[name], dtype=dtype)
        for factor, vector in zip(scales, vectors, strict=True):
            total.add_(vector[name].to(total.device, dtype), alpha=factor)
        changes[name] = total
    return added_to(base, changes)


def ties_merging(
    base: Mapping[str, Tensor],
    vectors: Sequence[Mapping[str, Tensor]],
    scale: float = 1.0,
    keep_ratio: float = 0.2,
    reduction: str = 'mean',
    *,
    parity: bool = False,
) -> dict[str, Tensor]:
    r"""Return the state dict of the model merged by TIES: trim, elect signs, merge what agrees.

    Each vector keeps its ``ceil(d * keep_ratio)`` entries of largest magnitude (over the whole model). An entry's sign
    is that of the sum over the trimmed vectors; where that is 0, the overall majority of the elected signs. Entries of
    the other sign are dropped, and the rest is combined:

    .. math:: \theta = \theta_0 + \lambda \, \mathrm{reduce}_t \{ \tau_t : \mathrm{sign}(\tau_t) = \gamma \}.

    Args:
        base: State dict of the common start; not changed.
        vectors: Task vectors, as for :func:`task_arithmetic`.
        scale: lambda.
        keep_ratio: Above 0, at most 1 (nothing is trimmed). Equal magnitudes at the border are all kept.
        reduction: 'mean' over the entries that are kept and agree, 'sum', or 'max', the largest of them.
        parity: Keep one entry more, as the authors' code does.

    Returns:
        A state dict as :func:`task_arithmetic` returns it.

    Raises:
        ValueError: As there; a ratio or reduction that is not allowed.

    Source: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023 (arXiv 2306.01708);
    tanganke/fusion_bench (MIT), ``method/ties_merging``. **Differs from the authors' code**: exactly the ratio is kept
    and a ratio of 1 is allowed; ratios above 1 are refused instead of read as per cent.

    Example:
        >>> vectors = [{'w': torch.tensor([3.0, -1.0, 2.0, 0.5])}, {'w': torch.tensor([-2.0, -4.0, 1.0, 0.5])}]
        >>> ties_merging({'w': torch.zeros(4)}, vectors, keep_ratio=0.5)['w']
        tensor([ 3., -4.,  2.,  0.])
    """
    names = sorted(check_vectors(base, vectors))
    check_choice(reduction, 'reduction', ('mean', 'sum', 'max'))
    scale = check_number(scale, 'scale')
    keep_ratio = check_number(keep_ratio, 'keep_ratio', most=1, above=0, hint='0.2 keeps a fifth of the entries')
    device = base[names[0]].device
    dtype = working_dtype(*(base[name].dtype for name in names))
    flat = torch.stack([torch.cat([v[name].reshape(-1).to(device, dtype) for name in names]) for v in vectors])
    merged = _ties(flat, keep_ratio, reduction, parity) * scale
    changes, start = {}, 0
    for name in names:
        count = base[name].numel()
        changes[name] = merged[start : start + count].view(base[name].shape)
        start += count
    return added_to(base, changes)


def _ties(flat: Tensor, keep_ratio: float, reduction: str, parity: bool) -> Tensor:
    """(T, d) to (d,)."""
    count = flat.shape[1]
    # the product of a ratio such as 0.2 may end just above a whole number
    keep = int(count * keep_ratio) + 1 if parity else math.ceil(count * keep_ratio - 1e-9 * count)
    keep = min(count, max(1, keep))
    border = flat.abs().kthvalue(count - keep + 1, dim=1, keepdim=True).values
    trimmed = torch.where(flat.abs() >= border, flat, 0.0)
    sign = trimmed.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agreed = torch.where(trimmed * sign > 0, trimmed, 0.0)
    if reduction == 'max':
        return agreed.abs().amax(0) * sign
    total = agreed.sum(0)
    return total if reduction == 'sum' else total / (agreed != 0).sum(0).clamp(min=1)


def added_to(base: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A new state dict; computed in fp32 at least and returned in the types of the base."""
    state = like_state_of(base)
    for name, value in base.items():
        if name in changes:
            state[name] = sum_of(name, value.detach(), changes[name])
        else:
            state[name] = value.detach().clone() if isinstance(value, Tensor) else value
    return state


def like_state_of(base: Mapping[str, Tensor]) -> OrderedDict:
    """An empty state dict with the versions of the modules of ``base``.

    spconv reads the layout of its kernels from them, and takes a dict without them for one of an older layout.
    """
    state = OrderedDict()
    if hasattr(base, '_metadata'):
        state._metadata = base._metadata
    return state


def sum_of(name: str, base: Tensor, change: Tensor) -> Tensor:
    """Base and change; a variance of BatchNorm stays at least 0, below which its output would be NaN."""
    dtype = working_dtype(base.dtype, change.dtype)  # not the change's: half vectors must not round an fp32 base
    total = (base.to(dtype) + change.to(dtype)).to(base.dtype)
    return total.clamp(min=0) if name.endswith('running_var') else total


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of BatchNorm: merged as any other, but neither masked nor trained."""
    return name.endswith(('running_mean', 'running_var'))


def _is_merged(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _common_names(one: Mapping, other: Mapping, first: str, second: str) -> list[str]:
    """Names of the floating tensors of two state dicts, which must be the same with the same shapes."""
    names = [{name for name, value in state.items() if _is_merged(value)} for state in (one, other)]
    problems = [f'{name}: only in {first}' for name in sorted(names[0] - names[1])]
    problems += [f'{name}: only in {second}' for name in sorted(names[1] - names[0])]
    problems += [
        f'{name}: {tuple(one[name].shape)} in {first}, {tuple(other[name].shape)} in {second}'
        for name in sorted(names[0] & names[1])
        if one[name].shape != other[name].shape
    ]
    if problems:
        shown = '\n  '.join(problems[:_SHOWN]) + (
            f'\n  ... and {len(problems) - _SHOWN} more' * (len(problems) > _SHOWN)
        )
        raise ValueError(
            f'{second} must have the names and shapes of {first}; ignore heads that differ '
            f"(ignore=('head.',)). Differences:\n  {shown}"
        )
    return [name for name in one if name in names[0]]


def check_vectors(base: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Names that the vectors change."""
    if not isinstance(base, Mapping):
        raise TypeError(f'base must be a state dict, got {type(base).__name__}; pass model.state_dict()')
    if isinstance(vectors, Mapping) or not len(vectors):
        raise ValueError('vectors must be a list of at least one task vector')
    names = {name for name, value in vectors[0].items() if _is_merged(value)}
    part = {name: value for name, value in base.items() if name in names}
    for k, vector in enumerate(vectors):
        common = _common_names(part, vector, 'the base', f'vector {k}')
        _check_finite({name: vector[name] for name in common}, f'vector {k}')
    if not names:
        raise ValueError('vectors must hold at least one floating tensor')
    return [name for name in base if name in names]


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f'{what} must be finite, got NaN or inf in {", ".join(bad[:_SHOWN])}; check the checkpoints')
