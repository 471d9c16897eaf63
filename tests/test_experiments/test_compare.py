# SPDX-License-Identifier: Apache-2.0
"""Mean, spread and paired test of a baseline and a method."""

import math

import pytest

from clusterplug.experiments import compare, comparison_table


def test_hand_computed():
    found = compare([1.0, 2.0, 3.0], [2.0, 4.0, 3.0])
    assert found.baseline == (2.0, 1.0)
    assert found.method == pytest.approx((3.0, 1.0))
    assert found.difference == pytest.approx((1.0, 1.0))
    # t = 1 / (1 / sqrt 3) at 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    pytest.importorskip('scipy')
    assert found.p_value == pytest.approx(1 - math.sqrt(3) / math.sqrt(5))


def test_pairs_are_kept_together():
    pytest.importorskip('scipy')
    seeds = [10.0, 20.0, 30.0, 40.0]
    steady = compare(seeds, [value + gain for value, gain in zip(seeds, (1.0, 1.1, 0.9, 1.0))])
    mixed = compare(seeds, [21.0, 11.1, 40.9, 31.0])
    assert steady.difference[0] == pytest.approx(mixed.difference[0])
    assert steady.p_value < 0.001 < 0.5 < mixed.p_value


def test_one_seed_has_no_spread():
    found = compare([1.0], [3.0])
    assert found.difference[0] == 2
    assert math.isnan(found.difference[1])
    assert math.isnan(found.p_value)


def test_differences_without_spread():
    assert compare([1.0, 2.0], [1.0, 2.0]).p_value == 1
    assert compare([1.0, 2.0], [2.0, 3.0]).p_value == 0


def test_numbers_of_seeds_differ():
    with pytest.raises(ValueError, match='1 and 2'):
        compare([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match='0 and 0'):
        compare([], [])


def test_table():
    pytest.importorskip('scipy')
    baseline = [dict(miou=0.40, car=0.9, bus=float('nan')), dict(miou=0.42, car=0.9, bus=0.1)]
    method = [dict(miou=0.43, car=0.9, bus=0.1), dict(miou=0.46, car=0.9, bus=0.1)]
    lines = comparison_table(baseline, {'ours': method}).split('\n')
    assert lines[0] == '| | baseline | ours | gain | p |'
    assert lines[2] == '| miou | 41.0 ± 1.4 | 44.5 ± 2.1 | +3.5 ± 0.7 | 0.09 |'
    assert lines[3] == '| car | 90.0 ± 0.0 | 90.0 ± 0.0 | +0.0 ± 0.0 | 1.00 |'
    # a class without a value in one run is shown, with the number of seeds that count
    assert lines[4:] == ['| bus | 10.0 (1 of 2) | 10.0 ± 0.0 | +0.0 (1 of 2) | - |']
    nowhere = comparison_table([dict(a=1.0, b=math.nan)], {'ours': [dict(a=2.0)]})
    assert nowhere.endswith('| b | no value | no value | - | - |')
    assert comparison_table(baseline[:1], {'ours': method[:1]}, ['miou']).endswith('| miou | 40.0 | 43.0 | +3.0 | - |')


@pytest.mark.parametrize(('name', 'near'), [('mIoU', "'miou'"), ('ca', "'car'"), ('xyz', 'miou, car')])
def test_unknown_metrics_are_named(name, near):
    with pytest.raises(ValueError, match=near):
        comparison_table([dict(miou=0.1, car=0.2)], {'m': [dict(miou=0.1, car=0.2)]}, ['car', name])


def test_a_method_with_fewer_seeds_is_refused():
    with pytest.raises(ValueError, match='ours must have a run for each of the 2 seeds, got 1'):
        comparison_table([dict(a=1.0)] * 2, {'ours': [dict(a=1.0)]})
