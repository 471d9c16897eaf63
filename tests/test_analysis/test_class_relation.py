# SPDX-License-Identifier: Apache-2.0
"""How much gates of class pairs share, and the picture of it."""

import math

import pytest
import torch

from clusterplug.heads import ClassPairGate


def test_class_relation_and_its_picture(tmp_path):
    from clusterplug.analysis import class_relation, save_class_relation

    torch.manual_seed(0)
    gate = ClassPairGate(6, 16)
    for kind in ('overlap', 'share'):
        relation = class_relation(gate, kind=kind)
        assert relation.shape == (6, 6)
        torch.testing.assert_close(relation, relation.T)
        assert ((relation > 0) & (relation <= 1 + 1e-6)).all()
    assert gate.training
    torch.testing.assert_close(class_relation(gate).diagonal(), torch.ones(6))
    torch.testing.assert_close(class_relation(gate, [4, 1])[0, 1], class_relation(gate)[4, 1])
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))[[0, 3, 1, 4, 2, 5]][:, [0, 3, 1, 4, 2, 5]]

    def by_block(y1, y2):
        return torch.stack([blocks[a] * blocks[b] for a, b in zip(y1, y2)])

    relation = class_relation(by_block, range(6))
    torch.testing.assert_close(relation, blocks)
    pytest.importorskip('matplotlib')
    order = save_class_relation(tmp_path / 'map.png', relation, ['a', 'b', 'c', 'd', 'e', 'f'])
    assert {frozenset(order[:3]), frozenset(order[3:])} == {frozenset([0, 2, 4]), frozenset([1, 3, 5])}
    assert (tmp_path / 'map.png').stat().st_size > 1000
    with pytest.raises(ValueError, match='names must be one for each of the 6'):
        save_class_relation(tmp_path / 'x.png', relation, ['a'])
    with pytest.raises(ValueError, match='classes'):
        class_relation(gate, [6])
    with pytest.raises(ValueError, match='classes must be given'):
        class_relation(by_block)
    assert math.isclose(class_relation(ClassPairGate(2, 4, mode='open'), kind='share').min(), 1, rel_tol=1e-6)
