# SPDX-License-Identifier: Apache-2.0
"""One value of a model as a function of the training iteration: momentum, weight, temperature, mass."""

import inspect
import math
import weakref
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.registry import HOOKS

SHAPES = ('cosine', 'linear', 'sigmoid', 'step')

# {owner: {attribute: [value before the training, value given last]}}. Kept outside of the hooks: a training that ends
# with an error calls no hook, and the next one has hooks of its own.
_HELD: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def scheduled_share(iteration: int, begin: int, iters: int, shape: str) -> float:
    """Return how far a schedule is, 0 to 1, in an iteration.

    With t = (iteration - begin) / iters, within 0 .. 1: ``'linear'`` t; ``'cosine'`` (1 - cos(pi t)) / 2; ``'sigmoid'``
    exp(-5 (1 - t)^2), which is 0.0067 at t = 0; ``'step'`` 0 until t = 1. Always 1 from t = 1 on and 0 before
    ``begin``.
    """
    if iteration >= begin + iters:
        return 1.0
    if iteration < begin or shape == 'step':
        return 0.0
    t = (iteration - begin) / iters
    if shape == 'cosine':
        return (1 - math.cos(math.pi * t)) / 2
    return math.exp(-5 * (1 - t) ** 2) if shape == 'sigmoid' else t


@HOOKS.register_module()
class ValueScheduleHook(Hook):
    r"""Set a value of the model before each training iteration.

    .. math:: v(i) = \text{start} + (\text{end} - \text{start}) \cdot \text{share}(i)

    where the share rises from 0 at ``begin`` to 1 at ``begin + iters`` (:func:`scheduled_share`). It follows from the
    number of the iteration, so a resumed run goes on where it was. After the training the value is what it was before,
    unless somebody has set another since; where a training ended with an error, the next one begins with it.

    Args:
        target: Where the value is, as a dotted path from the model: ``'loss.momentum'`` (of
            :class:`~clusterplug.pretraining.MultiViewModel` too, whose ``loss`` is a method),
            ``'head.layers.0.temperature'``. A number that is an attribute, or a buffer or parameter of one element,
            which is then filled.
        start: Value until ``begin``; None: what it was before the training.
        end: Value from ``begin + iters`` on; None: what it was before the training.
        begin: Iteration, counted from 0, in which the value begins to move.
        iters: Iterations from ``start`` to ``end``; None: until the last iteration of the training.
        shape: ``'cosine'``, ``'linear'``, ``'sigmoid'`` (the ramp of mean teachers) or ``'step'`` (``start``, then at
            once ``end``).

    Raises:
        ValueError, TypeError: Values that do not fit, or a ``target`` that the model does not have.

    Example:
        ``custom_hooks = [dict(type='clusterplug.ValueScheduleHook', target='loss.momentum', start=0.9, end=0.999)]``
    """

    priority = 'NORMAL'

    def __init__(
        self,
        target: str = 'loss.momentum',
        start: float | None = None,
        end: float | None = None,
        begin: int = 0,
        iters: int | None = None,
        shape: str = 'cosine',
    ):
        if not isinstance(target, str) or not all(target.split('.')):
            raise ValueError(f"target must be a dotted path from the model such as 'loss.momentum', got {target!r}")
        if start is None and end is None:
            raise ValueError('start and end must not both be None, or the schedule would do nothing; give one')
        self.target, self.shape = target, check_choice(shape, 'shape', SHAPES)
        self.start = None if start is None else check_number(start, 'start')
        self.end = None if end is None else check_number(end, 'end')
        self.begin = check_count(begin, 'begin')
        self.iters = None if iters is None else check_count(iters, 'iters')

    def value(self, iteration: int, own: float | None = None, max_iters: int | None = None) -> float:
        """Return the value in an iteration; ``own`` stands for a start or end of None, ``max_iters`` for ``iters``."""
        iters = self.iters
        if iters is None:
            if max_iters is None:
                raise ValueError('max_iters must be given where iters is None')
            iters = max(0, max_iters - 1 - self.begin)
        start, end = (own if each is None else each for each in (self.start, self.end))
        share = scheduled_share(iteration, self.begin, iters, self.shape)
        return end if share == 1 else start + (end - start) * share

    def owners(self, model: torch.nn.Module) -> list[tuple[Any, str]]:
        """Return the objects whose attribute is scheduled, with its name."""
        return [find_value(model, self.target, type(self).__name__)]

    def before_train(self, runner) -> None:
        """Give each target what it had before a training that was cut short, and remember it."""
        for owner, name in self.owners(runner.model):
            _restore(owner, name)
            _hold(owner, name)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the value for this iteration."""
        length = getattr(runner, 'max_iters', None)
        for owner, name in self.owners(runner.model):
            held = _hold(owner, name)
            held[1] = self.value(runner.iter, held[0], length)
            _write(owner, name, held[1])

    def after_train(self, runner) -> None:
        """Give each target what it had before the training."""
        for owner, name in self.owners(runner.model):
            _restore(owner, name)


def attribute_of(owner: Any, name: str) -> Any:
    """Return ``owner.name``; where that is a method with a module of the name ``name_function``, the module.

    ``loss`` is a method of mmengine's models, and who says ``loss.temperature`` means the module that it calls.
    """
    found = getattr(owner, name)
    module = getattr(owner, f'{name}_function', None)
    return module if inspect.ismethod(found) and isinstance(module, torch.nn.Module) else found


def find_value(model: torch.nn.Module, target: str, hook: str) -> tuple[Any, str]:
    """Return the object on the dotted path, and the name of its attribute.

    Raises:
        ValueError: The model has no such attribute, or it is no number.
    """
    owner = model.module if is_model_wrapper(model) else model
    *path, name = target.split('.')
    for number, part in enumerate(path):
        if not hasattr(owner, part):
            children = [child for child, _ in owner.named_children()] if isinstance(owner, torch.nn.Module) else []
            raise ValueError(
                f'{hook}: target {target!r} is not in the model: {".".join(path[:number]) or type(owner).__name__} '
                f'has no {part!r}' + (f'; it has {", ".join(children)}' if children else '')
            )
        owner = attribute_of(owner, part)
    value = getattr(owner, name, None)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return owner, name
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f'{hook}: target {target!r} must be a number or a tensor of one element, got '
            f'{type(value).__name__ if hasattr(owner, name) else "no such attribute"}'
        )
    return owner, name


def _read(owner: Any, name: str) -> float:
    value = getattr(owner, name)
    return float(value) if isinstance(value, torch.Tensor) else value


def _write(owner: Any, name: str, value: float) -> None:
    current = getattr(owner, name)
    if isinstance(current, torch.Tensor):
        with torch.no_grad():
            current.fill_(value)
    else:
        setattr(owner, name, value)


def _hold(owner: Any, name: str) -> list[float]:
    """Return the value before the training and the one given last, noting the present one where nothing was noted."""
    held = _HELD.setdefault(owner, {})
    if name not in held:
        held[name] = [_read(owner, name)] * 2
    return held[name]


def _restore(owner: Any, name: str) -> None:
    held = _HELD.get(owner, {}).pop(name, None)
    if held is None:
        return
    current, given = getattr(owner, name), held[1]
    if isinstance(current, torch.Tensor):  # a number as its type holds it
        given = float(torch.tensor(given, dtype=current.dtype))
    # where somebody has set another value since, it is what is wanted now
    if _read(owner, name) == given:
        _write(owner, name, held[0])
