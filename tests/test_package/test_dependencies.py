# SPDX-License-Identifier: Apache-2.0
"""The table of versions agrees with the pins, with packaging, and reads ranges as pip does."""

import re
import runpy
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from packaging.specifiers import SpecifierSet

from clusterplug.dependencies import DEPENDENCIES, EXTRAS, fits, requirements
from clusterplug.doctor.packages import PINNED

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'setup_env'
installed = runpy.run_path(str(TOOLS / 'installed.py'))


def all_pins():
    pinned = {}
    for file in (ROOT / 'requirements').glob('*.txt'):
        if file.name != 'constraints.txt':
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


def test_core_is_torch_and_numpy():
    assert [re.split('[<>=]', line)[0] for line in requirements('core')] == ['torch', 'numpy']


def test_all_holds_every_extra_but_the_core():
    everything = requirements('all')
    for extra in EXTRAS:
        if extra != 'core':
            assert requirements(extra)
            assert set(requirements(extra)) <= set(everything)
