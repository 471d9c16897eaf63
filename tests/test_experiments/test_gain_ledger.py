# SPDX-License-Identifier: Apache-2.0
"""The ledger of benchmarks: measurements by what they compute, and the interval of paired differences."""

import sys
from pathlib import Path

import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from _gain_ledger import Ledger, content_key_of, gain_table, interval
from _seed_ledger import SeedLedger, sources, spread

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


def test_single_measurements_lie_beside_pairs(tmp_path):
    ledger = Ledger(tmp_path / 'all.json')
    ledger.add(KEY, dict(miou=0.3), dict(miou=0.32), {}, 'a machine', 'code 1')
    key = dict(part='images', method='SwAV', seed=0, content='x')
    noted = ledger.note(key, found=dict(knn=40.0))
    assert Ledger(ledger.path).find(key) == noted
    assert Ledger(ledger.path).find({**key, 'part': 'scans'}) is None


def test_key_of_a_config_is_its_content_wherever_the_files_lie():
    from mmengine.config import Config

    def key(lr, folder, kind='A'):
        data = dict(type='B', ann_file=f'{folder}/set.npz', data_root=folder)
        return content_key_of(Config(dict(lr=lr, kind=kind, data=[data], work_dir=folder, load_from=folder)))

    assert key(0.1, '/here') == key(0.1, '/there/too')
    assert len({key(0.1, '/a'), key(0.2, '/a'), key(0.1, '/a', 'C')}) == 3


def test_a_table_over_seeds_measures_what_the_ledger_lacks(tmp_path):
    calls = []

    def measure(seed):
        calls.append(seed)
        return dict(miou=10.0 * seed)

    path, key = tmp_path / 'heads.json', dict(head='linear', steps=3)
    for seed in (1, 2):
        SeedLedger(path).measured(dict(key, seed=seed), lambda seed=seed: measure(seed))
    read = SeedLedger(path, only_read=True)
    entries = [read.measured(dict(key, seed=seed), lambda: pytest.fail('measured')) for seed in (2, 1, 3)]
    assert entries[2] is None
    assert [entry['found']['miou'] for entry in entries[:2]] == [20.0, 10.0]
    assert SeedLedger(path).measured(dict(key, seed=1), lambda: measure(7)) == entries[1]
    SeedLedger(path).measured(dict(key, seed=1, steps=4), lambda: measure(8))
    assert calls == [1, 2, 8]
    assert len(sources(entries[:2])) == 1
    assert spread([1.0, None, 3.0], 1) == '2.0 (1.4)'
    assert (spread([2.0], 2), spread([None], 2)) == ('2.00', '-')
