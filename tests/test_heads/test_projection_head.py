# SPDX-License-Identifier: Apache-2.0
"""ProjectionHead: layers, independence of rows, bad widths."""

import pytest
import torch
from torch import nn

from clusterplug.heads import ProjectionHead


def test_layers_by_hand():
    head = ProjectionHead(3, 2, (4,))
    x = torch.randn(5, 3)
    hidden = x @ head[0].weight.T + head[0].bias
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), hidden.relu() @ head[3].weight.T + head[3].bias)


def test_default_widths_and_signs():
    head = ProjectionHead(96)
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [256, 128, 64]
    assert not isinstance(head[-1], nn.ReLU)
    assert (head(torch.randn(50, 96)) < 0).any()


def test_no_hidden_layer():
    assert [type(layer) for layer in ProjectionHead(4, 3, ())] == [nn.Linear]


def test_a_row_does_not_depend_on_the_others():
    head, x = ProjectionHead(6, 4, (8,)), torch.randn(10, 6)
    torch.testing.assert_close(head(x)[3:4], head(x[3:4]))
    assert head(x[:0]).shape == (0, 4)


def test_from_a_config():
    pytest.importorskip('mmengine')
    from mmengine.registry import MODELS

    head = MODELS.build(dict(type='clusterplug.ProjectionHead', in_channels=5, out_channels=2, hidden_channels=[3]))
    assert isinstance(head, ProjectionHead)
    assert (head.in_channels, head.out_channels) == (5, 2)


@pytest.mark.parametrize('arguments', [(0,), (3, 0), (3, 2, (0,)), (3.0,), ('3',), (3, 2, (4, None))])
def test_bad_widths(arguments):
    with pytest.raises(ValueError, match='channels must be integers of at least 1'):
        ProjectionHead(*arguments)
