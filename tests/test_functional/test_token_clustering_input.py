# SPDX-License-Identifier: Apache-2.0
"""Token clustering and reconstruction at the limits of their input, and wrong input."""

import pytest
import torch

from clusterplug.functional import cluster_tokens, reconstruct_tokens, token_neighbors


def test_batch_of_no_image():
    for num_iters in (0, 5):
        clusters = cluster_tokens(torch.zeros(0, 6, 6, 3), (3, 3), num_iters=num_iters)
        assert clusters.centers.shape == (0, 3, 3, 3)
        assert reconstruct_tokens(clusters.centers, clusters).shape == (0, 6, 6, 3)


def test_without_iterations_the_averages_remain():
    x = torch.randn(2, 8, 8, 3, dtype=torch.float64)
    clusters = cluster_tokens(x, (4, 4), num_iters=0)
    torch.testing.assert_close(clusters.centers, x.view(2, 4, 2, 4, 2, 3).mean((2, 4)))
    assert (clusters.mass == 4).all()


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(grid=(7, 3)), ValueError, r'grid must lie between \(1, 1\) and the size of the map, \(6, 6\)'),
        (dict(grid=(0, 3)), ValueError, 'grid must lie between'),
        (dict(grid=9), TypeError, r'grid must be \(height, width\)'),
        (dict(grid=(2.0, 3)), TypeError, 'grid must hold two ints'),
        (dict(window=4), ValueError, 'window must be odd and at least 1, got 4'),
        (dict(window=-1), ValueError, 'window must be odd'),
        (dict(window=2.5), TypeError, 'window must be an odd int'),
        (dict(temperature=0.0), ValueError, 'temperature must be above 0'),
        (dict(temperature=float('nan')), ValueError, 'temperature must be above 0'),
        (dict(temperature='hot'), TypeError, 'temperature must be a number'),
        (dict(temperature=torch.ones(1, 1)), ValueError, 'temperature must be a number or a floating tensor'),
        (dict(num_iters=-1), ValueError, 'num_iters must be at least 0'),
        (dict(num_iters=True), TypeError, 'num_iters must be an int'),
        (dict(mask=torch.ones(1, 6, 6)), TypeError, 'mask must be a bool tensor'),
        (dict(mask=torch.ones(1, 36, dtype=torch.bool)), ValueError, r'mask must have shape \(1, 6, 6\)'),
        (dict(x=torch.zeros(1, 36, 3)), ValueError, r'x must have shape \(batch, height, width, channels\)'),
        (dict(x=torch.zeros(1, 6, 6, 3, dtype=torch.int64)), TypeError, 'x must have a floating dtype'),
        (dict(x=[[1.0]]), TypeError, r'x must be a torch.Tensor'),
        (dict(x=torch.full((1, 6, 6, 3), torch.nan)), ValueError, 'x must be finite, got NaN or inf in 36 points'),
        (dict(x=torch.full((1, 6, 6, 3), 7e4).half()), ValueError, 'x must be finite'),
    ],
)
def test_bad_input_of_clustering(change, error, message):
    arguments = dict(x=torch.zeros(1, 6, 6, 3), grid=(3, 3)) | change
    with pytest.raises(error, match=message):
        cluster_tokens(arguments.pop('x'), arguments.pop('grid'), **arguments)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(clustered=torch.zeros(1, 3, 4, 3)), ValueError, r'clustered must have shape .* \(1, 3, 3'),
        (dict(clustered=torch.zeros(2, 3, 3, 3)), ValueError, 'clustered must have shape'),
        (dict(clustered=torch.zeros(1, 9, 3)), ValueError, 'clustered must have shape'),
        (dict(num_neighbors=0), ValueError, 'num_neighbors must be at least 1'),
        (dict(norm='l3'), ValueError, "norm must be 'l1'"),
        (dict(window=2), ValueError, 'window must be odd'),
    ],
)
def test_bad_input_of_reconstruction(change, error, message):
    state = cluster_tokens(torch.zeros(1, 6, 6, 3), (3, 3))
    arguments = dict(clustered=state.centers) | change
    with pytest.raises(error, match=message):
        reconstruct_tokens(arguments.pop('clustered'), state, **arguments)


def test_more_neighbors_than_clusters_means_all():
    state = cluster_tokens(torch.randn(1, 6, 6, 3), (2, 2))
    assert token_neighbors(state, num_neighbors=1000).weights.shape == (1, 36, 4)
