# SPDX-License-Identifier: Apache-2.0
"""Trees over a space of samples: leaves, values without end, refused answers, going on, routes, balance."""

import itertools
import json
import time

import numpy as np
import pytest
from _attribute_grid import ALL, GRID, Stub, combination, grid

from clusterplug.datasets.synthesis import (
    AttributeGenerator,
    CallableGenerator,
    Generator,
    InvalidAnswer,
    PartitionTree,
    coverage,
)

# The card's checks, in its order.


def test_leaves_are_all_combinations_once():
    generator = grid()
    assert isinstance(generator, Generator)
    tree = PartitionTree(3, 10, 50).grow(generator)
    descriptions = [leaf.description() for leaf in tree.leaves]
    assert sorted(combination(each) for each in descriptions) == sorted(ALL)
    for one, other in itertools.combinations(descriptions, 2):
        assert any(one[name] != other[name] for name in one)
    found = tree.generate(generator)
    assert len(found.samples) == 270
    assert not found.missing
    assert coverage(found.leaf, 27).counts.tolist() == [10] * 27
    assert [combination(s) for s in found.samples] == [combination(descriptions[leaf]) for leaf in found.leaf]
    # each dimension once on a path; a node takes 3 calls, a leaf 1
    assert tree.cost.calls == 13 * 3 + 27
    assert tree.estimate(3, n_per_leaf=None) is not None
    assert PartitionTree(3).estimate(3) == {
        'grow': 39, 'grow_at_most': 13 * 5 * 53, 'generate': 27, 'leaves': 27,
    }  # fmt: skip


def test_a_biased_generator_covers_the_space_through_the_tree():
    generator = grid(weights={name: [0.965, 0.025, 0.01] for name in GRID})  # one combination has 90 %
    drawn = generator.draw(270, np.random.default_rng(0))
    tree = PartitionTree(3).grow(generator)
    made = tree.generate(generator)
    direct, ours = coverage(tree.route(drawn).leaf, 27), coverage(made.leaf, 27)
    assert max(direct.counts) > 230
    assert (direct.counts > 0).sum() < 15
    assert direct.entropy < 0.8
    assert (ours.counts > 0).sum() == 27
    assert ours.entropy == pytest.approx(np.log(27))
    assert ours.evenness == pytest.approx(1.0)


def test_values_without_end_are_one_child_that_is_drawn_from():
    from scipy.stats import chisquare

    numbers = AttributeGenerator({'number': list(range(1, 1001)), 'sign': ['plus', 'minus']})
    tree = PartitionTree(1, samples_per_call=1, infinite_path_samples=800).grow(numbers)
    (leaf,) = tree.leaves
    assert tree.root.sampled
    assert leaf.num_sampled == 1
    assert sorted(leaf.path[0][1]) == list(range(1, 1001))
    found = tree.generate(numbers)
    assert len(found.samples) == 800  # s ** 1 calls of one sample, the value drawn for each
    assert [sample['number'] for sample in found.samples] == [each['number'] for each in found.descriptions]
    counts = np.bincount((np.array([s['number'] for s in found.samples]) - 1) // 100, minlength=10)
    assert chisquare(counts).pvalue > 1e-3
    two = PartitionTree(2, infinite_path_samples=3, samples_per_call=2, max_values=3).grow(
        AttributeGenerator({'a': range(9), 'b': range(9)})
    )
    assert len(two.generate().samples) == 2 * 3**2
    assert 'one of 9' in two.to_text()
    endless = AttributeGenerator({'number': lambda rng: int(rng.integers(10**9))})
    tree = PartitionTree(1, max_values=50).grow(endless)
    assert 50 < len(tree.leaves[0].path[0][1]) <= 60
    assert tree.cost.steps['complete'] in (5, 6)


WRONG = {
    'pivots': [[], 'nothing', 3, [1, 2], InvalidAnswer('no')],
    'criterion': [
        'no JSON here',
        {'dimension': 'color'},
        {'dimension': 'color', 'attributes': {'red': [1, 2], 'blue': [2, 3]}},  # one sample under two values
        {'dimension': 'color', 'attributes': {'red': [1], 'blue': [2]}},  # one is missing
        {'dimension': 'color', 'attributes': {'red': [1], 'blue': [2, 4]}},  # there is no fourth
        {'dimension': 'color', 'attributes': {'red': [1, 2.0], 'blue': [3]}},
        {'dimension': 'color', 'attributes': {'red': [1], ' RED': [2, 3]}},
        {'dimension': 'color', 'attributes': {'0-10': [1], '5-20': [2, 3]}},
        {'dimension': '', 'attributes': {'red': [1, 2, 3]}},
        {'dimension': 7, 'attributes': {'red': [1, 2, 3]}},
        {'dimension': 'color', 'attributes': {'x' * 300: [1, 2, 3]}},
        '{"dimension": "color", "attributes": {"red": [1], "red": [2, 3]}}',
        None,
    ],
    'complete': ['?', ['red', 'blue'], [], ['infinite'], {'values': []}, [float('nan'), 'complete'], [['a'], 'b']],
}


@pytest.mark.parametrize(('step', 'number'), [(step, i) for step, each in WRONG.items() for i in range(len(each))])
def test_a_wrong_answer_is_asked_for_again(step, number):
    stub = Stub({step: [WRONG[step][number]]})
    tree = PartitionTree(2, n_pivots=3).grow(stub)
    assert tree.cost.invalid == 1
    assert len(tree.cost.reasons) == 1
    assert len(tree.leaves) == 9
    assert stub.calls.count(step) == 5


def test_a_dimension_of_the_path_is_refused():
    again = {'dimension': 'Color ', 'attributes': {'red': list(range(1, 11))}}
    stub = Stub({'criterion': [AttributeGenerator(GRID).criterion([{'color': 'red'}] * 10, []), again]})
    tree = PartitionTree(2).grow(stub)
    assert tree.cost.invalid == 1
    assert 'on the path already' in tree.cost.reasons[0]
    assert len(tree.leaves) == 9


@pytest.mark.parametrize('step', WRONG)
def test_answers_that_stay_wrong_leave_a_leaf(step):
    for answer in WRONG[step]:
        tree = PartitionTree(2, n_pivots=3).grow(stub := Stub({step: [answer]}, always=True))
        assert len(tree.leaves) == 1
        assert tree.is_complete
        assert len(stub.calls) <= tree.calls_per_node
        assert stub.calls.count(step) == 5
        leaf = tree.leaves[0]
        assert leaf.reason
        assert len(leaf.pivots) == (0 if step == 'pivots' else 3)
        found = tree.generate(stub)  # the pivots that were paid for are part of the ten
        assert found.samples[: len(leaf.pivots)] == leaf.pivots
        assert len(found.samples) == 10


def test_infinite_without_end_comes_to_an_end():
    count = itertools.count()
    stub = CallableGenerator(
        lambda desc, n: [0] * n,
        criterion=lambda samples, used: {'dimension': 'x', 'attributes': {'a': list(range(1, len(samples) + 1))}},
        complete=lambda criterion, values: [f'v{next(count)}', 'infinite'],
    )
    tree = PartitionTree(1, max_values=20).grow(stub)
    assert tree.root.sampled
    assert tree.cost.calls <= tree.calls_per_node
    same = CallableGenerator(stub.samples, criterion=stub.criterion, complete=lambda c, v: ['A', 'infinite'])
    tree = PartitionTree(1, max_values=20).grow(same)
    assert tree.leaves[0].reason == 'no end of the values'
    assert tree.cost.calls == 2 + 5


def test_depth_0_is_plain_generation():
    generator = grid()
    tree = PartitionTree(0).grow(generator)
    assert tree.cost.calls == 0
    assert len(tree.generate(generator).samples) == 10
    assert len(tree.generate(generator, 25).samples) == 25
    assert tree.route([{}, {}]).leaf.tolist() == [0, 0]


class Killed(BaseException):
    """As a signal: nothing catches it."""


class Mortal(AttributeGenerator):
    """The grid, until one call."""

    def __init__(self, made, stop):
        super().__init__(GRID)
        self.made, self.stop, self.identity = made, stop, grid().identity

    def draw(self, n, rng, desc=None):
        self.made.append(1)
        if len(self.made) == self.stop:
            raise Killed
        return super().draw(n, rng, desc)


@pytest.mark.parametrize('workers', [1, 4])
def test_a_killed_run_goes_on_to_the_same_tree(tmp_path, workers):
    whole = PartitionTree(2, seed=3).grow(grid())
    expected = whole.generate(grid())
    for stop in (1, 5, 12, 13):
        folder, made = tmp_path / str(stop), []

        mortal = Mortal(made, stop)
        tree = PartitionTree(2, seed=3)
        for _ in range(2):
            try:
                tree.grow(mortal, folder=folder, workers=workers)
                tree.generate(mortal, folder=folder, workers=workers)
            except Killed:
                before = len((folder / 'journal.jsonl').read_text().splitlines())
        assert len(made) == 4 + 9 + 1 or workers > 1
        assert len((folder / 'journal.jsonl').read_text().splitlines()) >= before
        again = PartitionTree(2, seed=3).grow(grid(), folder=folder)
        assert again.to_text() == whole.to_text()
        assert again.generate(grid(), folder=folder) == expected
        assert again.cost.calls == whole.cost.calls
        assert PartitionTree.load(folder).to_text() == whole.to_text()


def test_a_line_that_was_cut_off_is_asked_again(tmp_path):
    whole = PartitionTree(2).grow(grid(), folder=tmp_path)
    journal = tmp_path / 'journal.jsonl'
    content = journal.read_bytes()
    for cut in (1, 7, len(content) // 2, len(content) - 10):
        journal.write_bytes(content[:cut])
        (tmp_path / 'tree.json').unlink(missing_ok=True)
        assert PartitionTree(2).grow(grid(), folder=tmp_path).to_text() == whole.to_text()
        assert sorted(_plain(journal)) == sorted(_plain_of(content))


def _plain_of(content):
    entries = [json.loads(line) for line in content.splitlines()]
    return [json.dumps([entry.get('call'), entry.get('answer'), entry.get('settings')]) for entry in entries]


def _plain(path):
    return _plain_of(path.read_bytes())


def test_oracle_router_balances_a_skewed_set():
    generator, rng = grid(), np.random.default_rng(1)
    rows = grid(weights={name: [6, 3, 1] for name in GRID}).draw(600, rng)
    for number, row in enumerate(rows):
        row['id'] = number
    tree = PartitionTree(3).grow(generator)
    found = tree.rebalance(rows, generator, 15)
    assert coverage(found.leaf, 27).counts.tolist() == [15] * 27
    assert not found.missing
    kept = [(row, source) for row, source in zip(found.samples, found.source) if source >= 0]
    assert all(row is rows[source] for row, source in kept)
    assert len({source for _, source in kept}) == len(kept) == np.minimum(found.counts, 15).sum()
    leaves = [leaf.description() for leaf in tree.leaves]
    assert all(combination(row) == combination(leaves[leaf]) for row, leaf in zip(found.samples, found.leaf))
    assert found.counts.sum() == 600
    short = tree.rebalance(rows, generator, 15, fill=False)
    assert set(short.source) == {source for _, source in kept}
    assert short.missing == {i: 15 - n for i, n in enumerate(found.counts.tolist()) if n < 15}
    assert coverage(tree.rebalance(rows, generator).leaf, 27).counts.tolist() == [10] * 27  # 10 * 5 ** 0


def test_errors_of_the_router_are_counted():
    tree = PartitionTree(2).grow(grid())
    rows = grid().draw(90, np.random.default_rng(0))
    rows[3] = {'color': 'violet', 'shape': 'cube', 'size': 'small'}
    rows[4], rows[5] = {'color': 'red'}, {'color': ['red']}
    found = tree.route(rows)
    assert (found.leaf < 0).nonzero()[0].tolist() == [3, 4, 5]
    assert found.depth[[3, 4, 5]].tolist() == [0, 1, 0]
    assert sum(found.errors.values()) == 3
    assert any('violet' in error for error in found.errors)
    assert 3 not in tree.rebalance(rows, grid(), 5).source
    assert tree.route([]).leaf.shape == (0,)
    # values are compared without case and with numbers as numbers
    sizes = PartitionTree(1).grow(AttributeGenerator({'size': [1, 2.5]}))
    assert (
        sizes.route([{'size': 1.0}, {'size': '2.5'}, {'size': np.float32(2.5)}, {'size': True}]).leaf >= 0
    ).tolist() == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize('seed', [0, 1])
def test_the_seed_alone_decides_whatever_the_workers(seed, tmp_path):
    def slow(desc, n, rng):
        time.sleep(float(rng.random()) * 0.003)
        return table.draw(n, rng, desc)

    table = AttributeGenerator({**GRID, 'number': list(range(100))})
    generator = CallableGenerator(slow, {**GRID, 'number': list(range(100))}, pivots=slow)
    trees = [PartitionTree(4, seed=seed).grow(generator, workers=workers) for workers in (1, 2, 8)]
    assert len({tree.to_text() for tree in trees}) == 1
    sets = [tree.generate(generator, 3, workers=workers) for tree, workers in zip(trees, (8, 1, 2))]
    assert sets[0] == sets[1] == sets[2]
    other = PartitionTree(4, seed=seed + 10).grow(generator)
    assert other.generate(generator, 3).samples != sets[0].samples
