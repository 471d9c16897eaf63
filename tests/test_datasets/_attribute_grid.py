# SPDX-License-Identifier: Apache-2.0
"""A space of 27 samples, and a generator over it whose answers go wrong."""

import itertools

from clusterplug.datasets.synthesis import (
    AttributeGenerator,
)

GRID = {'color': ['red', 'green', 'blue'], 'shape': ['cube', 'ball', 'cone'], 'size': ['small', 'medium', 'large']}
ALL = set(itertools.product(*GRID.values()))


def grid(**options):
    return AttributeGenerator(GRID, **options)


def combination(sample):
    return tuple(sample[name] for name in GRID)


class Stub(AttributeGenerator):
    """The grid, with answers that go wrong: ``wrong[method]`` is a list of answers or errors that come first."""

    def __init__(self, wrong=None, attributes=GRID, always=False):
        super().__init__(attributes)
        self.wrong, self.always, self.calls = {name: list(each) for name, each in (wrong or {}).items()}, always, []

    def _first(self, name, answer):
        self.calls.append(name)
        left = self.wrong.get(name)
        if not left:
            return answer()
        found = left[0] if self.always else left.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    def pivots(self, desc, n, rng):
        return self._first('pivots', lambda: AttributeGenerator.pivots(self, desc, n, rng))

    def criterion(self, samples, used):
        return self._first('criterion', lambda: AttributeGenerator.criterion(self, samples, used))

    def complete(self, criterion, values, rng):
        return self._first('complete', lambda: AttributeGenerator.complete(self, criterion, values, rng))

    def samples(self, desc, n, rng):
        return self._first('samples', lambda: AttributeGenerator.samples(self, desc, n, rng))
