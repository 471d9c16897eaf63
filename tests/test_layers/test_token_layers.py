# SPDX-License-Identifier: Apache-2.0
"""The pair of layers: sequences with class tokens, maps, messages, registry."""

import pytest
import torch

from clusterplug.functional import cluster_tokens, reconstruct_tokens
from clusterplug.layers import TokenClustering, TokenReconstruction


def test_class_tokens_pass_untouched():
    tokens = torch.randn(2, 3 + 48, 5)
    short, state = TokenClustering((4, 3), num_prefix=3)(tokens, size=(8, 6))
    assert short.shape == (2, 3 + 12, 5)
    assert torch.equal(short[:, :3], tokens[:, :3])
    expected = cluster_tokens(tokens[:, 3:].view(2, 8, 6, 5), (4, 3))
    assert torch.equal(short[:, 3:], expected.centers.flatten(1, 2))
    long = TokenReconstruction(num_prefix=3)(2 * short, state)
    assert torch.equal(long[:, :3], 2 * tokens[:, :3])
    assert torch.equal(long[:, 3:], reconstruct_tokens(2 * expected.centers, expected).flatten(1, 2))


def test_maps_and_masks():
    x, mask = torch.randn(2, 8, 6, 5), torch.rand(2, 8, 6) > 0.3
    short, state = TokenClustering((4, 3))(x, mask=mask)
    assert torch.equal(short, cluster_tokens(x, (4, 3), mask=mask).centers)
    assert TokenReconstruction(window=5)(short, state).shape == x.shape


def test_they_hold_nothing_and_say_what_they_do():
    layers = torch.nn.Sequential(TokenClustering((4, 3)), TokenReconstruction())
    assert not layers.state_dict()
    assert 'grid=(4, 3)' in repr(layers)
    assert "norm='l1'" in repr(layers)


def test_built_from_a_config():
    registry = pytest.importorskip('mmengine.registry', reason='needs mmengine')
    layer = registry.MODELS.build(dict(type='clusterplug.TokenClustering', grid=[4, 3]))
    assert layer.grid == (4, 3)
    assert registry.MODELS.build(dict(type='clusterplug.TokenReconstruction', norm='l2')).norm == 'l2'


@pytest.mark.parametrize(
    ('make', 'error', 'message'),
    [
        (lambda: TokenClustering((4, 3), window=2), ValueError, 'window must be odd'),
        (lambda: TokenClustering(4), TypeError, 'grid must be'),
        (lambda: TokenClustering((4, 3), num_prefix=-1), ValueError, 'num_prefix must be at least 0'),
        (lambda: TokenClustering((4, 3), num_prefix=1.0), TypeError, 'num_prefix must be an int'),
        (lambda: TokenReconstruction(norm=1), ValueError, 'norm must be'),
        (lambda: TokenClustering((4, 3))(torch.zeros(1, 49, 2), size=(8, 6)), ValueError, 'check num_prefix'),
        (lambda: TokenClustering((4, 3))(torch.zeros(1, 48, 2)), ValueError, 'pass size='),
        (lambda: TokenClustering((9, 3))(torch.zeros(1, 48, 2), size=(8, 6)), ValueError, 'grid must lie between'),
        (lambda: TokenClustering((4, 3))([1.0], size=(8, 6)), TypeError, 'tokens must be a torch.Tensor'),
        (lambda: TokenReconstruction()(torch.zeros(1, 12, 2), None), TypeError, 'state must be the TokenClusters'),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
