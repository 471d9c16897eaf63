# SPDX-License-Identifier: Apache-2.0
"""pairwise_distances: by hand, against a float64 loop and scipy, offsets, blocks, gradients, bad input."""

import pytest
import torch

from clusterplug.functional.distance import pairwise_distances
from clusterplug.functional.distance.distances import METRICS

SCIPY = {'manhattan': 'cityblock'}


def points(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_by_hand():
    x, y = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[3.0, 4.0, 1.0], [0.0, 0.0, 2.0]])
    expected = {
        'euclidean': [5.0, 1.0],
        'sqeuclidean': [25.0, 1.0],
        'manhattan': [7.0, 1.0],
        'chebyshev': [4.0, 1.0],
        'cosine': [1 - 1 / 26**0.5, 0.0],
    }
    for metric in METRICS:
        torch.testing.assert_close(pairwise_distances(x, y, metric=metric), torch.tensor([expected[metric]]))


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('dim', [1, 3, 40])
def test_equals_scipy(metric, dim):
    distance = pytest.importorskip('scipy.spatial.distance')
    x, y = points(23, dim, dtype=torch.float64), points(11, dim, seed=1, dtype=torch.float64)
    oracle = torch.from_numpy(distance.cdist(x.numpy(), y.numpy(), SCIPY.get(metric, metric)))
    torch.testing.assert_close(pairwise_distances(x, y, metric=metric), oracle, rtol=1e-10, atol=1e-12)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        result = pairwise_distances(x.to(dtype), y.to(dtype), metric=metric)
        assert result.dtype == dtype
        oracle = distance.cdist(x.to(dtype).double().numpy(), y.to(dtype).double().numpy(), SCIPY.get(metric, metric))
        torch.testing.assert_close(result.double(), torch.from_numpy(oracle), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dim', [3, 64])
@pytest.mark.parametrize('metric', ['euclidean', 'sqeuclidean'])
def test_offset_costs_no_digits(dim, metric):
    grid = torch.randint(-64, 64, (50, dim), generator=torch.Generator().manual_seed(0)).float() / 8
    far = grid + 65536.0  # representable without rounding
    torch.testing.assert_close(
        pairwise_distances(far, metric=metric), pairwise_distances(grid, metric=metric), rtol=1e-5, atol=1e-3
    )
    exact = torch.cdist(grid.double(), grid.double())
    exact = exact if metric == 'euclidean' else exact.square()
    torch.testing.assert_close(pairwise_distances(far, metric=metric).double(), exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize('metric', METRICS)
def test_blocks_batches_and_broadcast(metric):
    x, y = points(3, 17, 6), points(3, 5, 6, seed=1)
    whole = pairwise_distances(x, y, metric=metric)
    torch.testing.assert_close(pairwise_distances(x, y, metric=metric, max_bytes=1), whole)
    own = pairwise_distances(x, metric=metric)
    torch.testing.assert_close(pairwise_distances(x, metric=metric, max_bytes=900), own)
    for index in range(3):
        single = pairwise_distances(x[index], y[index], metric=metric)
        torch.testing.assert_close(whole[index], single, rtol=1e-5, atol=1e-5)
    shared = pairwise_distances(x, y[0], metric=metric)
    torch.testing.assert_close(shared[2], pairwise_distances(x[2], y[0], metric=metric), rtol=1e-5, atol=1e-5)
    turned = pairwise_distances(x.mT.contiguous().mT, y, metric=metric)
    torch.testing.assert_close(turned, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('metric', METRICS)
def test_self_distances(metric):
    x = points(2, 30, 20) * 100
    x[0, 5] = x[0, 9]
    distances = pairwise_distances(x, metric=metric, max_bytes=1000)
    assert (distances.diagonal(dim1=-2, dim2=-1) == 0).all()
    assert (distances >= 0).all()
    torch.testing.assert_close(distances, distances.mT, rtol=1e-5, atol=1e-4)


def test_rotation_invariance():
    x = points(30, 8, dtype=torch.float64)
    rotation = torch.linalg.qr(points(8, 8, seed=5, dtype=torch.float64)).Q
    for metric in ('euclidean', 'sqeuclidean', 'cosine'):
        turned = pairwise_distances(x @ rotation, metric=metric)
        torch.testing.assert_close(turned, pairwise_distances(x, metric=metric), rtol=1e-8, atol=1e-10)


def test_cosine_of_zero_huge_and_tiny_vectors():
    x = torch.tensor([[0.0, 0.0], [1e30, 1e30], [1e-30, 0.0], [-3.0, -3.0]])
    expected = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    distances = pairwise_distances(x, x.clone(), metric='cosine')
    assert distances.isfinite().all()
    torch.testing.assert_close(distances[0], torch.ones(4))
    torch.testing.assert_close(distances[1, [1, 3]], expected[1], atol=1e-6, rtol=0)
    assert distances[1, 2].item() == pytest.approx(1 - 0.5**0.5, abs=1e-6)


@pytest.mark.parametrize('metric', METRICS)
def test_gradients(metric):
    x = points(4, 6, dtype=torch.float64).requires_grad_()
    y = points(3, 6, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: pairwise_distances(a, b, metric=metric), (x, y))
    same = torch.ones(3, 6).requires_grad_()
    pairwise_distances(same, metric=metric).sum().backward()
    assert same.grad.isfinite().all()


def test_bad_input():
    x = points(4, 3)
    with pytest.raises(ValueError, match='metric must be one of'):
        pairwise_distances(x, metric='hamming')
    with pytest.raises(ValueError, match='y must have the dimension of x, 3'):
        pairwise_distances(x, points(4, 2))
    with pytest.raises(ValueError, match='max_bytes'):
        pairwise_distances(x, max_bytes=0)
    with pytest.raises(TypeError, match='floating'):
        pairwise_distances(x.long())
    with pytest.raises(ValueError, match='device'):
        pairwise_distances(x, x.to('meta'))
    with pytest.raises(ValueError, match='at least one point'):
        pairwise_distances(x[:0])
