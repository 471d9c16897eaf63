# SPDX-License-Identifier: Apache-2.0
"""What a generator answers, and how it says that it cannot."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ['BudgetExceeded', 'Generator', 'GeneratorUnavailable', 'InvalidAnswer']


class InvalidAnswer(ValueError):
    """An answer that cannot be used, such as text that is not JSON; the question is asked again."""


class GeneratorUnavailable(RuntimeError):
    """No answer came: a time-out, an overloaded server. Nothing is lost, the same call goes on later.

    Args:
        message: What happened.
        again: Whether asking again now makes sense.
    """

    def __init__(self, message: str, again: bool = True):
        super().__init__(message)
        self.again = again


class BudgetExceeded(RuntimeError):
    """The number of calls that was allowed is used up."""


@runtime_checkable
class Generator(Protocol):
    """What a :class:`PartitionTree` asks. Any object with these methods is a generator.

    Every method may take a further argument ``rng`` (``numpy.random.Generator``), which depends on the seed of the tree
    and on the question alone: an answer drawn from it is the same in any order of calls. ``route_batch(samples,
    criterion, values) -> list`` is used instead of ``route`` where there is one. An ``identity`` (a short string)
    keeps answers of different generators apart when a run goes on.
    """

    def pivots(self, desc: dict, n: int) -> list:
        """``n`` different samples that satisfy ``desc``, a dict {criterion: value} (empty at the root)."""

    def criterion(self, samples: list, used: list[str]) -> dict:
        """The dimension in which the samples differ most, none of ``used``, and a value for each of them.

        Returns:
            ``{'dimension': name, 'attributes': {value: [numbers]}}`` (or pairs instead of the inner dict), or the same
            as JSON text. Numbers go from 1 to the number of samples, each in one list.
        """

    def complete(self, criterion: str, values: list) -> list | None:
        """The values that are missing: None where the list is complete; new values, then ``'complete'``; or some new
        values, then ``'infinite'``."""

    def samples(self, desc: dict, n: int) -> list:
        """``n`` samples that satisfy ``desc``."""

    def route(self, sample, criterion: str, values: list):
        """The one of ``values`` that the sample has."""


def with_rng(method: Callable) -> Callable:
    """Return ``method`` as a function that takes ``rng`` by name; it is dropped where the method has no such one."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # a builtin
        parameters = ()
    if any(each.name == 'rng' or each.kind is each.VAR_KEYWORD for each in parameters):
        return method
    return lambda *args, rng: method(*args)


def method_of(generator, name: str) -> Callable:
    """Return a method of a generator, taking ``rng``.

    Raises:
        TypeError: If the generator has none.
    """
    method = getattr(generator, name, None)
    if not callable(method):
        raise TypeError(
            f'generator must have a method {name}, got {type(generator).__name__}; see clusterplug.datasets.synthesis.'
            'Generator for what it answers, or wrap functions in CallableGenerator'
        )
    return with_rng(method)


def identity_of(generator) -> str:
    """The name under which answers of a generator are kept."""
    name = getattr(generator, 'identity', None) or getattr(generator, '__qualname__', None)
    return str(name or type(generator).__name__)


def draw(values: list, rng: np.random.Generator):
    """One of the values, each as likely as the other."""
    return values[int(rng.integers(len(values)))]
