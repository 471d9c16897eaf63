# SPDX-License-Identifier: Apache-2.0
"""Input validation: what is taken, what is refused, and the words."""

import math

import numpy as np
import pytest
import torch

from clusterplug.core.checks import check_choice, check_count, check_num_clusters, check_number, check_points


@pytest.mark.parametrize('value', [3, np.int8(3), np.uint64(3)])
def test_integers_of_numpy_are_integers(value):
    assert type(check_count(value, 'size', 1)) is int
    assert type(check_num_clusters(value, 3)) is int


@pytest.mark.parametrize('value', [3.0, '3', True, np.bool_(True), None, torch.tensor(3), np.float32(3)])
def test_other_things_are_not(value):
    with pytest.raises(TypeError, match='num_clusters must be an int, got'):
        check_num_clusters(value)


@pytest.mark.parametrize('value', [0.5, np.float16(0.5), np.float64(0.5)])
def test_numbers(value):
    assert check_number(value, 'tol', 0, 1) == 0.5
    assert type(check_number(value, 'tol')) is float


def test_numbers_outside():
    assert check_number(2, 'tol', 2, 2) == 2
    assert check_number(math.inf, 'penalty', above=0, finite=False) == math.inf
    for value in (math.nan, np.float32('nan'), math.inf, -math.inf, 10**400, -(10**400), 0):
        with pytest.raises(ValueError, match=r'epsilon must be a finite number > 0, got .*; usual values are 0\.1'):
            check_number(value, 'epsilon', above=0, hint='usual values are 0.1')
    with pytest.raises(ValueError, match=r'share must be a finite number >= 0 and <= 1, got 1\.5'):
        check_number(1.5, 'share', 0, 1)
    for value in ('1', None, True, np.bool_(False), 1j, torch.tensor(1.0)):
        with pytest.raises(TypeError, match='share must be a finite number'):
            check_number(value, 'share', 0, 1)


def test_choices_name_the_near_one():
    assert check_choice('ward', 'linkage', ('ward', 'single')) == 'ward'
    with pytest.raises(ValueError, match=r"must be one of 'ward', 'single', got 'sngle' \(did you mean 'single'"):
        check_choice('sngle', 'linkage', ('ward', 'single'))
    for value in (None, 3, ['ward'], np.zeros(2)):
        with pytest.raises(ValueError, match='linkage must be one of'):
            check_choice(value, 'linkage', ('ward', 'single'))


def test_a_batch_of_no_problems_is_fine_and_no_points_are_not():
    check_points(torch.zeros(0, 5, 2))
    check_points(torch.zeros(3, 0, 5, 2))
    for shape in ((3, 0, 2), (3, 5, 0), (0, 0, 2)):
        with pytest.raises(ValueError, match='x must hold at least one point'):
            check_points(torch.zeros(shape))
