# SPDX-License-Identifier: Apache-2.0
"""The table of versions agrees with the pins, with packaging, and reads ranges as pip does."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from packaging.specifiers import SpecifierSet

from clusterplug.dependencies import DEPENDENCIES, EXTRAS, fits, requirements
from clusterplug.doctor.packages import PINNED

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'setup_env'
installed = runpy.run_path(str(TOOLS / 'installed.py'))
sys.path.insert(0, str(TOOLS))
hashes = runpy.run_path(str(TOOLS / 'hashes.py'))
sys.path.remove(str(TOOLS))


def all_pins():
    pinned = {}
    for file in (ROOT / 'requirements').glob('*.txt'):
        if file.name not in ('constraints.txt', 'hashes.txt'):
            pinned.update(installed['pins'](file))
    return pinned


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.sampled_from([d.allowed for d in DEPENDENCIES]))
def test_fits_agrees_with_packaging(numbers, allowed):
    version = '.'.join(map(str, numbers))
    assert fits(version, allowed) == (version in SpecifierSet(allowed))


@pytest.mark.parametrize(
    ('version', 'allowed', 'expected'),
    [
        ('2.11.0+cu130', '>=2.1', True),
        ('2.11.0', '>=2.1,<2.11', False),
        ('2.11', '>=2.11.0', True),
        ('2.2.0rc1', '<2.2', False),
        ('0.9.7.post1', '>=0.9.7', True),
        ('9', '<10', True),
    ],
)
def test_fits_by_hand(version, allowed, expected):
    assert fits(version, allowed) is expected


def test_fits_refuses_other_forms():
    with pytest.raises(ValueError, match=r"allowed must be conditions such as .* got '~=2.0'"):
        fits('2.0', '~=2.0')


def test_every_pin_lies_in_its_range():
    pinned = all_pins()
    named = [d for d in DEPENDENCIES if d.package in pinned]
    assert len(named) >= 20
    for dependency in named:
        assert fits(pinned[dependency.package], dependency.allowed), dependency


def test_the_doctor_recommends_the_pinned_versions():
    pinned = all_pins()
    assert {package: pinned[package] for package in PINNED} == PINNED


def test_constraints_hold_every_pin_once():
    constraints = installed['pins'](ROOT / 'requirements' / 'constraints.txt')
    apart = {'setuptools', 'wheel', 'mmcv', 'spconv-cu126', 'timm', 'transformers', 'av', 'decord2'}
    for package, version in all_pins().items():
        if package not in apart:
            assert constraints[package] == version, package


def test_every_constraint_has_its_sum():
    requirements = ROOT / 'requirements'
    constraints = installed['pins'](requirements / 'constraints.txt')
    found = hashes['read_hashes'](requirements / 'hashes.txt')
    assert {name: version for name, (version, _) in found.items()} == constraints
    assert all(re.fullmatch('[0-9a-f]{64}', value) for _, value in found.values())
    assert len({value for _, value in found.values()}) == len(found)
    assert installed['pins'](requirements / 'mmcv-source.txt') == installed['pins'](requirements / 'mmcv.txt')
    assert re.search(r' --hash=sha256:[0-9a-f]{64}$', (requirements / 'mmcv-source.txt').read_text().strip())


def test_sums_of_new_pins_alone_are_asked_for(tmp_path):
    constraints, path, write = tmp_path / 'constraints.txt', tmp_path / 'hashes.txt', hashes['write_hashes']
    asked = []

    def ask(requirements):
        asked.append(requirements)
        pairs = (each.split('==') for each in requirements if 'unknown' not in each)
        archive = {'hashes': {'sha256': f'{len(asked)}' * 64}}
        return {
            'install': [
                {'metadata': {'name': name.upper(), 'version': version}, 'download_info': {'archive_info': archive}}
                for name, version in pairs
            ]
        }

    constraints.write_text('# why\nb_b==2\na==1\n')
    assert write(constraints, path, ask) == ['b-b==2', 'a==1']
    assert hashes['read_hashes'](path) == {'a': ('1', '1' * 64), 'b-b': ('2', '1' * 64)}
    constraints.write_text('b_b==3\na==1\n')
    assert write(constraints, path, ask) == ['b-b==3']
    assert hashes['read_hashes'](path) == {'a': ('1', '1' * 64), 'b-b': ('3', '2' * 64)}
    before = path.read_text()
    constraints.write_text('a==1\nunknown==4\n')
    with pytest.raises(ValueError, match='no sha256 of unknown==4'):
        write(constraints, path, ask)
    assert path.read_text() == before


def test_core_is_torch_and_numpy():
    assert [re.split('[<>=]', line)[0] for line in requirements('core')] == ['torch', 'numpy']


def test_all_holds_every_extra_but_the_core():
    everything = requirements('all')
    for extra in EXTRAS:
        if extra != 'core':
            assert requirements(extra)
            assert set(requirements(extra)) <= set(everything)
