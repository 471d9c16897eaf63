# SPDX-License-Identifier: Apache-2.0
"""Generators without a language model: tables of attributes, and functions of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from clusterplug.core.checks import check_choice
from clusterplug.datasets.synthesis.answers import COMPLETE, INFINITE, digest, value_key
from clusterplug.datasets.synthesis.protocol import with_rng

__all__ = ['AttributeGenerator', 'CallableGenerator']

_AT_ONCE = 10  # values of an endless attribute that one answer adds


class AttributeGenerator:
    """Samples are dicts with one value of each attribute; the criteria are the attributes, in their order.

    Args:
        attributes: {attribute: its values}, or ``(rng) -> value`` for one with values without end.
        weights: {attribute: one weight a value}: how likely the values are where nothing is asked for. Uniform where
            an attribute is not named.

    Raises:
        TypeError, ValueError: No attributes, values that are the same, weights that do not fit.

    Example:
        >>> import numpy as np
        >>> shapes = AttributeGenerator({'color': ['red', 'blue'], 'size': [1, 2, 3]}, weights={'color': [9, 1]})
        >>> shapes.samples({'size': 2}, 2, rng=np.random.default_rng(0))
        [{'color': 'red', 'size': 2}, {'color': 'red', 'size': 2}]
    """

    batch_size = 2000  # looking up costs nothing: larger pieces of work

    def __init__(
        self,
        attributes: Mapping[str, Sequence | Callable],
        weights: Mapping[str, Sequence[float]] | None = None,
    ):
        if not isinstance(attributes, Mapping) or not attributes:
            raise TypeError(f'attributes must be a dict with at least one attribute, got {attributes!r:.80}')
        self.attributes: dict[str, list | Callable] = {}
        for name, values in attributes.items():
            if callable(values):
                self.attributes[name] = with_rng(values)
                continue
            if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or not len(values):
                raise TypeError(f'attributes[{name!r}] must be a list of values or a function, got {values!r:.80}')
            self.attributes[name] = [each.item() if isinstance(each, np.generic) else each for each in values]
            if len({value_key(each) for each in values}) < len(values):
                raise ValueError(f'attributes[{name!r}] must have different values, got {values!r:.120}')
        self._shares = {name: self._share(name, given) for name, given in (weights or {}).items()}
        text = {name: 'endless' if callable(v) else [value_key(e) for e in v] for name, v in self.attributes.items()}
        shares = {name: share.round(12).tolist() for name, share in self._shares.items()}
        self.identity = f'{type(self).__name__}:{digest(text, shares)}'

    def _share(self, name: str, weights) -> np.ndarray:
        check_choice(name, 'an attribute of weights', self.attributes)
        values, share = self.attributes[name], np.asarray(weights, dtype=np.float64)
        if callable(values) or share.shape != (len(values),):
            raise ValueError(f'weights[{name!r}] must have one number for each of its values, got {weights!r:.80}')
        if not np.isfinite(share).all() or (share < 0).any() or not share.sum():
            raise ValueError(f'weights[{name!r}] must be numbers >= 0, not all 0, got {weights!r:.80}')
        return share / share.sum()

    def draw(self, n: int, rng: np.random.Generator, desc: Mapping | None = None) -> list[dict]:
        """``n`` random samples, with the values of ``desc`` where it has any."""
        desc, columns = dict(desc or {}), {}
        for name in desc:
            check_choice(name, 'a criterion', self.attributes)
        for name, values in self.attributes.items():
            if name in desc:
                columns[name] = [desc[name]] * n
            elif callable(values):
                columns[name] = [values(rng=rng) for _ in range(n)]
            else:
                columns[name] = [values[i] for i in rng.choice(len(values), n, p=self._shares.get(name))]
        return [dict(zip(columns, row)) for row in zip(*columns.values())]

    def pivots(self, desc: Mapping, n: int, rng: np.random.Generator) -> list[dict]:
        """See :class:`Generator`."""
        return self.draw(n, rng, desc)

    def samples(self, desc: Mapping, n: int, rng: np.random.Generator) -> list:
        """See :class:`Generator`."""
        return self.draw(n, rng, desc)

    def criterion(self, samples: list, used: list[str]) -> dict | None:
        """The first attribute that is not used; None where all are."""
        left = [name for name in self.attributes if name not in used]
        if not left:
            return None
        groups: dict = {}
        for number, sample in enumerate(samples, start=1):
            value = sample[left[0]]
            groups.setdefault(value_key(value), (value, []))[1].append(number)
        return {'dimension': left[0], 'attributes': list(groups.values())}

    def complete(self, criterion: str, values: list, rng: np.random.Generator) -> list | None:
        """The values that are missing."""
        known, known_keys = self.attributes[criterion], {value_key(each) for each in values}
        if callable(known):
            return [*(known(rng=rng) for _ in range(_AT_ONCE)), INFINITE]
        missing = [each for each in known if value_key(each) not in known_keys]
        return [*missing, COMPLETE] if missing else None

    def route(self, sample: Mapping, criterion: str, values: list):
        """The sample's own value."""
        return sample.get(criterion)

    def route_batch(self, samples: list, criterion: str, values: list) -> list:
        """The samples' own values."""
        return [sample.get(criterion) for sample in samples]


class CallableGenerator:
    """Any functions as a generator.

    Args:
        samples: ``(desc, n) -> list`` of n samples for a description {criterion: value}, such as a simulator.
        attributes: Criteria and their values, as of :class:`AttributeGenerator`: then no other function is needed.
        pivots: ``(desc, n) -> list``. None: the attributes' own dicts, or ``samples`` where there are none.
        criterion: ``(samples, used) -> {'dimension', 'attributes'}``. None: the attributes in their order.
        complete: ``(criterion, values) -> None or list``. None: from the attributes.
        route: ``(sample, criterion, values) -> value``. None: from the attributes, for samples that are dicts.
        identity: Keeps answers of different generators apart in a folder; None for the name of ``samples``.

    Every function may take ``rng`` as well.

    Raises:
        TypeError: Something is no function, or neither attributes nor the functions instead of them are given.

    Example:
        >>> from clusterplug.datasets.synthesis import PartitionTree
        >>> def count(desc, n):
        ...     return [f'{desc["word"]}!'] * n
        >>> tree = PartitionTree(max_depth=1, samples_per_call=1)
        >>> generator = CallableGenerator(count, {'word': ['yes', 'no']})
        >>> sorted(tree.grow(generator).generate(generator).samples)
        ['no!', 'yes!']
    """

    def __init__(
        self, samples: Callable, attributes: Mapping | None = None, *, pivots: Callable | None = None,
        criterion: Callable | None = None, complete: Callable | None = None, route: Callable | None = None,
        identity: str | None = None,
    ):  # fmt: skip
        table = None if attributes is None else AttributeGenerator(attributes)
        given = dict(samples=samples, pivots=pivots, criterion=criterion, complete=complete, route=route)
        for name, function in given.items():
            if function is not None and not callable(function):
                raise TypeError(f'{name} must be a function, got {type(function).__name__}')
        if not callable(samples):
            raise TypeError(f'samples must be a function (desc, n) -> list, got {type(samples).__name__}')
        for name, function in given.items():
            if function is None and table is None and name in ('criterion', 'complete'):
                raise TypeError(f'{name} must be a function where attributes are not given; pass attributes=')
            if function is None and table is not None:
                function = getattr(table, name)
            if function is None and name == 'pivots':
                function = samples
            if function is not None:
                setattr(self, name, with_rng(function))
        own = getattr(samples, '__qualname__', type(samples).__name__)
        self.identity = identity or f'{own}:{table.identity if table else ""}'
