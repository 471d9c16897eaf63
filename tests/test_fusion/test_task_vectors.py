# SPDX-License-Identifier: Apache-2.0
"""Task vectors, task arithmetic and TIES: by hand, aliasing, buffers, a plain loop, keys that differ."""

import copy

import pytest
import torch
from torch import nn

from clusterplug.fusion import AdaMerging, ConcreteMerging, TaskVector, task_arithmetic, ties_merging

V = torch.tensor([[3.0, -1.0, 2.0, 0.5], [-2.0, -4.0, 1.0, 0.5]])
BASE = {'w': torch.zeros(4)}
VECTORS = [{'w': V[0]}, {'w': V[1]}]


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def states(count=3):
    models = [net(seed) for seed in range(count + 1)]
    for k, model in enumerate(models):
        model.train()(torch.randn(9, 5) * (k + 1))  # other running statistics and counters
    return [model.state_dict() for model in models]


def test_one_vector_at_full_scale_is_the_fine_tuned_model():
    base, tuned = states(1)
    merged = TaskVector(base, tuned).apply(base)
    assert list(merged) == list(base)
    for name, value in merged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, tuned[name])
    assert torch.equal(merged['1.num_batches_tracked'], base['1.num_batches_tracked'])
    net(0).load_state_dict(merged)


def test_arithmetic_equals_the_average_and_the_written_sum():
    base, *tuned = states(3)
    vectors = [TaskVector(base, each) for each in tuned]
    average = task_arithmetic(base, vectors, 1 / 3)
    weighted = task_arithmetic(base, vectors, [0.1, -2.0, 0.7])
    for name in vectors[0]:
        torch.testing.assert_close(average[name], sum(each[name] for each in tuned) / 3)
        expected = base[name] + 0.1 * vectors[0][name] - 2.0 * vectors[1][name] + 0.7 * vectors[2][name]
        expected = expected.clamp(min=0) if 'running_var' in name else expected
        torch.testing.assert_close(weighted[name], expected)
    summed = (vectors[0] + 2 * vectors[1] - vectors[2] + -vectors[0]).apply(base)
    torch.testing.assert_close(
        summed['0.weight'], base['0.weight'] + 2 * vectors[1]['0.weight'] - vectors[2]['0.weight']
    )


def test_the_base_is_not_touched_and_not_shared():
    base, *tuned = states(2)
    kept = copy.deepcopy(base)
    vectors = [TaskVector(base, each) for each in tuned]
    for _ in range(100):
        merged = task_arithmetic(base, vectors, 0.3)
        ties_merging(base, vectors)
    for value in merged.values():
        value.zero_()
    for name, value in base.items():
        assert torch.equal(value, kept[name])


def test_ties_by_hand():
    parity = {'keep_ratio': 0.5, 'parity': True}  # three entries of four: [3, -1, 2, 0] and [-2, -4, 1, 0]
    assert ties_merging(BASE, VECTORS, reduction='sum', **parity)['w'].tolist() == [3.0, -5.0, 3.0, 0.0]
    assert ties_merging(BASE, VECTORS, reduction='mean', **parity)['w'].tolist() == [3.0, -2.5, 1.5, 0.0]
    assert ties_merging(BASE, VECTORS, reduction='max', **parity)['w'].tolist() == [3.0, -4.0, 2.0, 0.0]
    assert ties_merging(BASE, VECTORS, 2.0, 0.5)['w'].tolist() == [6.0, -8.0, 4.0, 0.0]  # two of four
    assert ties_merging(BASE, VECTORS, 1.0, 1.0, 'sum')['w'].tolist() == [3.0, -5.0, 3.0, 1.0]


def test_ties_of_one_and_of_equal_vectors():
    one = ties_merging(BASE, VECTORS[:1], keep_ratio=0.5)['w']
    assert one.tolist() == [3.0, 0.0, 2.0, 0.0]
    assert torch.equal(ties_merging(BASE, VECTORS[:1] * 3, keep_ratio=0.5)['w'], one)
    assert torch.equal(ties_merging(BASE, VECTORS[:1] * 3, keep_ratio=0.5, reduction='sum')['w'], 3 * one)


@pytest.mark.parametrize('reduction', ['mean', 'sum', 'max'])
@pytest.mark.parametrize('keep_ratio', [0.01, 0.2, 0.65, 1.0])
def test_ties_equals_a_loop_over_entries(reduction, keep_ratio):
    base, *tuned = states(3)
    vectors = [TaskVector(base, each) for each in tuned]
    names = sorted(vectors[0])
    rows = [torch.cat([vector[name].flatten() for name in names]).tolist() for vector in vectors]
    keep = max(1, -int(-len(rows[0]) * keep_ratio // 1))
    trimmed = []
    for row in rows:
        border = sorted(map(abs, row), reverse=True)[keep - 1]
        trimmed.append([each if abs(each) >= border else 0.0 for each in row])
    signs = [(s > 0) - (s < 0) for s in map(sum, zip(*trimmed, strict=True))]
    majority = (sum(signs) > 0) - (sum(signs) < 0)
    merged = []
    for entries, sign in zip(zip(*trimmed, strict=True), signs, strict=True):
        agreed = [each for each in entries if each * (sign or majority) > 0]
        total = {'sum': sum(agreed), 'mean': sum(agreed) / max(1, len(agreed))}
        total['max'] = max(agreed, key=abs, default=0.0)
        merged.append(total[reduction])
    found = ties_merging(base, vectors, 1.0, keep_ratio, reduction)
    expected = torch.tensor(merged) + torch.cat([base[name].flatten() for name in names])
    flat = torch.cat([found[name].flatten() for name in names])
    variances = torch.cat([torch.full_like(base[name], 'running_var' in name).flatten() for name in names]) > 0
    expected = torch.where(variances, expected.clamp(min=0), expected)
    torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-6)


def test_types_and_heads_of_another_size():
    base, tuned = states(1)
    half = {name: value.half() if value.is_floating_point() else value for name, value in base.items()}
    vector = TaskVector(half, tuned)
    assert vector['0.weight'].dtype == torch.float32
    assert task_arithmetic(half, [vector], 1.0)['0.weight'].dtype == torch.float16
    other = dict(tuned, **{'2.weight': torch.zeros(4, 7), '2.bias': torch.zeros(4)})
    with pytest.raises(ValueError, match=r'2\.bias: \(3,\) in the base, \(4,\) in the fine-tuned model'):
        TaskVector(base, other)
    merged = TaskVector(base, other, ignore=('2.',)).apply(base)
    assert torch.equal(merged['2.weight'], base['2.weight'])
    torch.testing.assert_close(merged['0.weight'], tuned['0.weight'])


def test_types_do_not_round_each_other():
    x = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base, vectors = {'w': x[0]}, [{'w': x[1]}, {'w': x[2]}]
    kept = ties_merging(base, vectors, keep_ratio=0.1)['w']
    assert (kept == x[0]).sum() >= 40  # what no vector changes is the base, to the last bit
    torch.testing.assert_close(ties_merging(base, vectors[:1], keep_ratio=1.0)['w'], x[0] + x[1], rtol=0, atol=1e-15)
    narrow = {'w': x[1].half()}
    expected = x[0].float() + 0.3 * narrow['w'].float()
    for merged in (
        task_arithmetic({'w': x[0].float()}, [narrow], 0.3),
        AdaMerging({'w': x[0].float()}, [narrow], init=0.3).merged_state(),
        ConcreteMerging({'w': x[0].float()}, [narrow], init=0.3).eval().merged_state(),
    ):
        torch.testing.assert_close(merged['w'], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda: ties_merging(BASE, [{'w': torch.full((4,), torch.nan)}]), ValueError, 'vector 0 must be finite'),
        (lambda: TaskVector(BASE, {'v': torch.zeros(4)}), ValueError, r'v: only in the fine-tuned model'),
        (lambda: TaskVector(BASE, {'w': torch.full((4,), torch.nan)}), ValueError, 'finite'),
        (lambda: task_arithmetic(BASE, [], 0.3), ValueError, 'at least one'),
        (lambda: task_arithmetic(BASE, VECTORS[0], 0.3), ValueError, 'list'),
        (lambda: task_arithmetic(BASE, VECTORS, [0.3]), ValueError, 'one per vector'),
        (lambda: task_arithmetic(BASE, [*VECTORS, {}], 0.3), ValueError, 'w: only in the base'),
        (lambda: task_arithmetic(None, VECTORS, 0.3), TypeError, 'state dict'),
        (lambda: ties_merging(BASE, VECTORS, keep_ratio=20), ValueError, 'keep_ratio'),
        (lambda: ties_merging(BASE, VECTORS, keep_ratio=0), ValueError, 'keep_ratio'),
        (lambda: ties_merging(BASE, VECTORS, reduction='median'), ValueError, "'mean'"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
