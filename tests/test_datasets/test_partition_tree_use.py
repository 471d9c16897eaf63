# SPDX-License-Identifier: Apache-2.0
"""Trees in use: budgets, errors, files, bad input, measures."""

import numpy as np
import pytest
from _attribute_grid import GRID, Stub, combination, grid

from clusterplug.core.outputs import FolderInUse, locked_folder
from clusterplug.datasets.synthesis import (
    AttributeGenerator,
    CallableGenerator,
    GeneratorUnavailable,
    PartitionTree,
    coverage,
    mean_cosine,
)

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


def test_many_rows_are_routed():
    tree = PartitionTree(3).grow(grid())
    rows = grid().draw(100_000, np.random.default_rng(0))
    found = tree.route(rows)
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
