# SPDX-License-Identifier: Apache-2.0
"""One rule for all kernels: no problems give empty results of the right shape; a problem without points is refused."""

import pytest
import torch

from clusterplug import functional as F

RESULTS = {
    'kmeans': (lambda x: F.kmeans(x, 3), [(9,), (3, 2), (), ()]),
    'kmeans_static': (lambda x: F.kmeans(x, 3, init='kkz', tol=0), [(9,), (3, 2), (), ()]),
    'kmeans_plus_plus': (lambda x: (F.kmeans_plus_plus(x, 3),), [(3,)]),
    'kkz': (lambda x: (F.kkz(x, 3),), [(3,)]),
    'nearest_center': (lambda x: F.nearest_center(x, x[..., :3, :]), [(9,), (9,)]),
    'kmedoids': (lambda x: F.kmedoids(x, 3), [(9,), (3,), (), ()]),
    'kmedoids_swap': (lambda x: F.kmedoids_swap(x, 3), [(9,), (3,), (), ()]),
    'spectral_clustering': (lambda x: F.spectral_clustering(x, 3), [(9,), (3,), (), ()]),
    'linkage': (lambda x: F.linkage(x), [(8, 2), (8,), (8,), (9,)]),
    'cut_linkage': (lambda x: (F.cut_linkage(F.linkage(x), 3),), [(9,)]),
    'pairwise_distances': (lambda x: (F.pairwise_distances(x),), [(9, 9)]),
    'sinkhorn': (lambda x: (F.sinkhorn(x, epsilon=0.1, num_iters=2),), [(9, 2)]),
    'partial_transport': (lambda x: (F.partial_transport(x, epsilon=0.1, num_iters=2, mass=0.5),), [(9, 2)]),
    'unbalanced_transport': (lambda x: (F.unbalanced_transport(x, epsilon=0.1, num_iters=2),), [(9, 2)]),
    'minibatch_kmeans_start': (lambda x: F.minibatch_kmeans_start(x, 3)[:2], [(3, 2), (3,)]),
    'minibatch_kmeans_update': (
        lambda x: F.minibatch_kmeans_update(F.minibatch_kmeans_start(x, 3), x)[1:], [(9,), ()],
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', RESULTS)
@pytest.mark.parametrize('batch', [(0,), (2, 0)])
def test_no_problems(name, batch):
    call, shapes = RESULTS[name]
    found = [tuple(each.shape) for each in call(torch.zeros(*batch, 9, 2))]
    assert found == [(*batch, *shape) for shape in shapes]


@pytest.mark.parametrize('name', RESULTS)
def test_no_points(name):
    with pytest.raises(ValueError, match=r'(x|scores) must h'):
        RESULTS[name][0](torch.zeros(2, 0, 2))
