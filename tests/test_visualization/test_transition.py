# SPDX-License-Identifier: Apache-2.0
"""save_phase_transition: each curve over its own places."""

import pytest

from clusterplug.visualization import save_phase_transition
from clusterplug.visualization.transition import _draw


def test_each_curve_has_its_own_axis(tmp_path):
    curves = [0.5, 1.0, 8.0], [2.8, 1.5, 0.0], [0.05, 10.0], [6, 12]
    left, right = _draw(*curves).axes
    assert [label.get_text() for label in left.get_xticklabels()] == ['0.5', '1', '8']
    assert [label.get_text() for label in right.get_xticklabels()] == ['0.05', '10']
    assert left.lines[0].get_xdata().tolist() == curves[0]
    assert right.lines[0].get_ydata().tolist() == curves[3]
    save_phase_transition(tmp_path / 'a' / 'transition.png', *curves)
    assert (tmp_path / 'a' / 'transition.png').stat().st_size > 1000


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match='one value for each N / d, got 1 for 2'):
        save_phase_transition(tmp_path / 'x.png', [1, 2], [1], [1], [1])
    with pytest.raises(ValueError, match='noise / signal must be above 0'):
        save_phase_transition(tmp_path / 'x.png', [1], [1], [0.0], [1])
