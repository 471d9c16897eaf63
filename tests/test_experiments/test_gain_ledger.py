# SPDX-License-Identifier: Apache-2.0
"""The ledger of benchmarks/point_cluster_gain.py: pairs by what they compute, and the interval of their differences."""

import sys
from pathlib import Path

import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from _gain_ledger import Ledger, gain_table, interval

KEY = dict(city=1, setting='point', seed=3, content='abc')


def test_a_pair_is_found_again_from_the_file_by_its_whole_key(tmp_path):
    ledger = Ledger(tmp_path / 'deep' / 'pairs.json')
    assert ledger.find(KEY) is None
    pair = ledger.add(KEY, dict(miou=0.3), dict(miou=0.32), dict(scans=40), 'a machine', 'code 1')
    again = Ledger(ledger.path)
    assert again.find(KEY) == pair
    for name, other in dict(city=2, setting='cell', seed=4, content='abd').items():
        assert again.find({**KEY, name: other}) is None, name


def test_interval_is_that_of_the_paired_t_test():
    differences = [1.0, 2.5, -0.5, 3.0]
    found = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert interval(differences) == pytest.approx((found.low, found.high))
    assert interval([1.0]) == (float('-inf'), float('inf'))


def test_table_by_hand():
    pairs = [dict(without=dict(miou=a), found=dict(miou=b)) for a, b in ((0.30, 0.31), (0.32, 0.35))]
    # differences 1 and 3: mean 2, deviation sqrt 2, t(0.975, 1) = 12.706, half width 12.7
    assert gain_table(pairs)[2] == '| miou | 31.0 | 33.0 | +2.0 | -10.7 to +14.7 |'
