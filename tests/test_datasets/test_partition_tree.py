# SPDX-License-Identifier: Apache-2.0
"""Trees over a space of samples: leaves, values without end, refused answers, budgets, going on, routes, balance."""

import itertools
import json
import time

import numpy as np
import pytest

from clusterplug.core.outputs import FolderInUse, locked_folder
from clusterplug.datasets.synthesis import (
    AttributeGenerator,
    CallableGenerator,
    Generator,
    GeneratorUnavailable,
    InvalidAnswer,
    PartitionTree,
    coverage,
    mean_cosine,
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


# What a user relies on beyond that.


@pytest.mark.parametrize('workers', [1, 3])
def test_a_budget_ends_cleanly_and_a_larger_one_goes_on(tmp_path, workers):
    whole = PartitionTree(3).grow(grid())
    tree = PartitionTree(3)
    for budget in (0, 7, 20):
        with pytest.warns(RuntimeWarning, match=f'budget of {budget} calls'):
            tree.grow(grid(), folder=tmp_path, budget=budget, workers=workers)
        assert tree.cost.calls <= budget
        assert not tree.is_complete
        assert '[open]' in tree.to_text()
        assert not PartitionTree.load(tmp_path).is_complete
    tree.grow(grid(), folder=tmp_path, budget=39, workers=workers)
    assert tree.is_complete
    assert tree.to_text() == whole.to_text()
    with pytest.warns(RuntimeWarning, match='leaves are not full'):
        part = tree.generate(grid(), folder=tmp_path, budget=45, workers=workers)
    assert len(part.samples) == 60
    assert len(part.missing) == 21
    assert tree.generate(grid(), folder=tmp_path) == whole.generate(grid())
    assert tree.cost.calls == 66
    with pytest.warns(RuntimeWarning, match='not routed'):
        assert (tree.route([{'color': 'red'}], lambda s, c, v: 'red', budget=0).leaf == -1).all()


def test_no_answer_is_repeated_and_then_nothing_is_lost(tmp_path):
    gone = [GeneratorUnavailable('503'), ConnectionResetError('reset'), TimeoutError('slow')]
    tree = PartitionTree(2, pause=0.0).grow(Stub({'criterion': gone}), folder=tmp_path / 'a')
    assert tree.cost.unavailable == 3
    assert len(tree.leaves) == 9
    broken = Stub({'complete': [GeneratorUnavailable('503')]}, always=True)
    tree = PartitionTree(2, pause=0.0, retries=2)
    for _ in range(2):
        with pytest.raises(GeneratorUnavailable, match='run the same again'):
            tree.grow(broken, folder=tmp_path / 'b', workers=2)
    assert broken.calls == ['pivots', 'criterion', *['complete'] * 6]
    broken.wrong = {}
    assert tree.grow(broken, folder=tmp_path / 'b').to_text() == PartitionTree(2).grow(grid()).to_text()
    never = Stub({'pivots': [GeneratorUnavailable('401', again=False)]}, always=True)
    with pytest.raises(GeneratorUnavailable, match='401'):
        PartitionTree(1).grow(never)
    assert never.calls == ['pivots']


def test_an_error_of_the_generator_is_not_hidden():
    for workers in (1, 3):
        with pytest.raises(KeyError, match='colour'):
            PartitionTree(2).grow(Stub({'criterion': [KeyError('colour')]}), workers=workers)


def test_a_leaf_that_nothing_can_fill_is_reported():
    def empty_for_red(desc, n, rng):
        return [] if desc['color'] == 'red' else grid().draw(n, rng, desc)

    generator = CallableGenerator(empty_for_red, GRID)
    tree = PartitionTree(1).grow(generator)
    found = tree.generate(generator)
    red = [leaf.description()['color'] for leaf in tree.leaves].index('red')
    assert found.missing == {red: 10}
    assert len(found.samples) == 20
    assert tree.cost.invalid == 5
    one = CallableGenerator(lambda desc, n: ['same'], GRID)  # one sample a call, always the same
    assert len(tree.generate(one).samples) == 30
    found = tree.generate(one, unique=True)
    assert found.samples == ['same'] * 3
    assert found.missing == {0: 9, 1: 9, 2: 9}
    assert tree.rebalance([], one, 2).missing == {}


def test_trees_are_read_back_and_shown(tmp_path):
    tree = PartitionTree(2, max_values=2, seed=5).grow(AttributeGenerator({'<a>': [1, 2], 'b': ['x', 'y', 'z']}))
    same = PartitionTree.from_json(tree.to_json())
    assert same.to_dict() == tree.to_dict()
    assert same.settings == tree.settings
    assert same.route([{'<a>': 1}, {'<a>': '2'}, {'<a>': 3}]).leaf.tolist() == [*sorted({0, 1}, key=[
        leaf.path[0][1][0] for leaf in tree.leaves].__getitem__), -1]  # fmt: skip
    with pytest.raises(TypeError, match='generator must be given'):
        same.generate()
    tree.save(tmp_path / 'x.json')
    assert PartitionTree.load(tmp_path / 'x.json').to_text([1, 2]) == tree.to_text([1, 2])
    assert ': 2' in tree.to_text([1, 2])
    assert '<a>' not in tree.to_html()
    assert '&lt;a&gt;' in tree.to_html(title='<b>')
    for text in ('', '{}', '[]', 'null', tree.to_json()[:50], tree.to_json().replace('inner', 'outer')):
        with pytest.raises(ValueError, match='to_json wrote'):
            PartitionTree.from_json(text)
    with pytest.raises(ValueError, match='each of the 2 leaves'):
        tree.to_text([1])


def test_folders_are_told_apart(tmp_path):
    PartitionTree(1).grow(grid(), folder=tmp_path)
    with pytest.raises(ValueError, match='max_depth: 1 there, 2 now'):
        PartitionTree(2).grow(grid(), folder=tmp_path)
    other = AttributeGenerator({'other': [1, 2]})
    assert PartitionTree(1).grow(other, folder=tmp_path).leaves[0].path[0][0] == 'other'
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'journal.jsonl').write_text('my diary\n')
    with pytest.raises(ValueError, match='not a journal'):
        PartitionTree(1).grow(grid(), folder=tmp_path / 'b')
    assert (tmp_path / 'b' / 'journal.jsonl').read_text() == 'my diary\n'
    with locked_folder(tmp_path), pytest.raises(FolderInUse):
        PartitionTree(1).grow(grid(), folder=tmp_path)
    with pytest.raises(TypeError, match='plain values'):
        PartitionTree(1).grow(CallableGenerator(lambda d, n: [object()] * n, GRID, pivots=lambda d, n: [object()] * n),
                              folder=tmp_path / 'c')  # fmt: skip
    with pytest.raises(TypeError, match='plain values'):
        PartitionTree(1).grow(grid(), folder=tmp_path).route([{'color': object()}], folder=tmp_path)


def test_routing_is_fast():
    tree = PartitionTree(3).grow(grid())
    rows = grid().draw(100_000, np.random.default_rng(0))
    begin = time.process_time()
    found = tree.route(rows)
    assert time.process_time() - begin < 5
    names = [combination(leaf.description()) for leaf in tree.leaves]
    assert [names[leaf] for leaf in found.leaf[:500]] == [combination(row) for row in rows[:500]]
    assert (found.leaf >= 0).all()
    own = tree.route(rows[:3000], lambda sample, criterion, values: sample[criterion], workers=2)
    assert own.leaf.tolist() == found.leaf[:3000].tolist()


@pytest.mark.parametrize(
    ('call', 'error', 'text'),
    [
        (lambda: PartitionTree(-1), ValueError, 'max_depth'),
        (lambda: PartitionTree(1.5), TypeError, 'max_depth'),
        (lambda: PartitionTree(n_pivots=0), ValueError, 'n_pivots'),
        (lambda: PartitionTree(max_values=0), ValueError, 'max_values'),
        (lambda: PartitionTree(pause=float('nan')), ValueError, 'pause'),
        (lambda: PartitionTree().grow(3), TypeError, 'method pivots'),
        (lambda: PartitionTree().grow(grid(), workers=0), ValueError, 'workers'),
        (lambda: PartitionTree().grow(grid(), budget=-1), ValueError, 'budget'),
        (lambda: PartitionTree().generate(), TypeError, 'generator'),
        (lambda: PartitionTree().generate(grid(), 0), ValueError, 'n_per_leaf'),
        (lambda: PartitionTree(1).grow(grid()).route('text'), TypeError, 'samples'),
        (lambda: PartitionTree(1).grow(grid()).route({'a': 1}), TypeError, 'samples'),
        (lambda: PartitionTree(1).grow(grid()).route([{}], 3), TypeError, 'method route'),
        (lambda: PartitionTree(1).grow(grid()).route([{}], batch_size=0), ValueError, 'batch_size'),
        (lambda: PartitionTree(1).estimate(0), ValueError, 'values'),
        (lambda: AttributeGenerator({}), TypeError, 'attributes'),
        (lambda: AttributeGenerator({'a': 'xyz'}), TypeError, 'list of values'),
        (lambda: AttributeGenerator({'a': [1, 1.0]}), ValueError, 'different'),
        (lambda: grid(weights={'colour': [1]}), ValueError, "did you mean 'color'"),
        (lambda: grid(weights={'color': [1, 2]}), ValueError, 'one number'),
        (lambda: grid(weights={'color': [1, -2, 3]}), ValueError, '>= 0'),
        (lambda: grid().draw(1, np.random.default_rng(0), {'colour': 'red'}), ValueError, 'did you mean'),
        (lambda: CallableGenerator(3), TypeError, 'samples must be a function'),
        (lambda: CallableGenerator(print), TypeError, 'criterion must be a function'),
        (lambda: coverage([3], 3), ValueError, 'from -1 to 2'),
        (lambda: coverage([0.5], 3), ValueError, 'integers'),
        (lambda: mean_cosine(np.zeros((2, 2))), ValueError, r'rows \[0, 1\]'),
        (lambda: mean_cosine(np.ones((1, 2))), ValueError, 'N >= 2'),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_odd_values_do_not_stop_a_run(tmp_path):
    odd = ['\ud800', 10**400, 'x', 2.0]
    huge = {'dimension': 'color', 'attributes': [[10**400, [1, 2, 3]]]}
    tree = PartitionTree(1, n_pivots=3).grow(Stub({'criterion': [huge, '[' * 5000, '{"a": ' + '9' * 5000 + '}']}))
    assert (tree.cost.invalid, len(tree.leaves)) == (3, 3)
    tree = PartitionTree(1).grow(AttributeGenerator({'a': ['\ud800', 'x']}), folder=tmp_path)
    assert PartitionTree.load(tmp_path).to_text() == tree.to_text()
    assert (tree.route([{'a': each} for each in odd]).leaf >= 0).tolist() == [True, False, True, False]
    with pytest.raises(TypeError, match='to_dict'):
        tree.route(type('Table', (), {'iloc': 0, '__len__': lambda self: 0})())
    rows = np.array([[0, 1], [1, 0]])
    assert tree.route(rows, lambda row, criterion, values: 'x' if row[0] else None).leaf.tolist().count(-1) == 1


def test_measures():
    assert coverage(list(range(12)), 12).evenness == 1.0
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(30) for j in range(30) if i != j]
    assert mean_cosine(x) == pytest.approx(np.mean(pairs))
    assert mean_cosine(x * 1e200) == pytest.approx(np.mean(pairs))
    found = coverage([], 3)
    assert (found.covered, found.entropy, found.outside) == (0.0, 0.0, 0)
