# SPDX-License-Identifier: Apache-2.0
"""Token clustering and reconstruction: hand-computed cases, the dense form of the paper, the checks of its card."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional import (
    cluster_labels,
    cluster_tokens,
    combine_tokens,
    reconstruct_tokens,
    token_neighbors,
    token_spread,
)
from clusterplug.testing import count_host_syncs, count_launches


def dense_clustering(x, grid, num_iters=5, temperature=50.0, window=5):
    """All distances, those beyond the window made huge: (B, h, w, C) centers and (B, h, w) mass."""
    batch, height, width, _ = x.shape
    centers = torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid).flatten(2).mT
    tokens = x.flatten(1, 2)
    row, column = torch.arange(height) * grid[0] // height, torch.arange(width) * grid[1] // width
    near_row = (row[:, None] - torch.arange(grid[0])).abs() <= window // 2
    near_column = (column[:, None] - torch.arange(grid[1])).abs() <= window // 2
    near = (near_row[:, None, :, None] & near_column[None, :, None, :]).reshape(height * width, -1)
    for _ in range(num_iters):
        distances = torch.cdist(tokens, centers).square() + torch.where(near, 0, 1e16)
        weights = (-distances / temperature).softmax(-1)
        mass = weights.sum(1)
        centers = (weights.mT @ tokens) / mass.clamp_min(1e-16)[..., None]
    return centers.view(batch, *grid, -1), mass.view(batch, *grid)


def dense_reconstruction(clustered, tokens, centers, temperature, num_neighbors, norm):
    distances = torch.cdist(tokens.flatten(1, 2), centers.flatten(1, 2)).square()
    weights = (-distances / temperature).softmax(-1)
    kept = weights >= weights.topk(min(num_neighbors, weights.shape[-1])).values[..., -1:]
    weights = torch.nn.functional.normalize(weights * kept, p={'l1': 1, 'l2': 2}[norm], dim=-1)
    return (weights @ clustered.flatten(1, 2)).view(*tokens.shape[:3], -1)


def image(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth_image(size, channels, seed=0):
    """Values that change slowly over the map, as features of pictures do."""
    coarse = image(1, channels, 6, 6, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode='bicubic', align_corners=False)
    return smooth.permute(0, 2, 3, 1) + 0.1 * image(1, *size, channels, seed=seed + 1)


def test_hand_computed():
    # Two cells of two tokens in a row; every token may join both. Centers start at 1 and 5.
    x = torch.tensor([0.0, 2.0, 4.0, 6.0], dtype=torch.float64).view(1, 1, 4, 1)
    clusters = cluster_tokens(x, (1, 2), num_iters=1, temperature=8.0, window=3)
    # Squared distances (1, 25), (1, 9), (9, 1), (25, 1) over 8: shares of the left cluster.
    left = torch.tensor([1 / (1 + torch.tensor(-d / 8).exp()) for d in (24.0, 8.0, -8.0, -24.0)])
    right = 1 - left
    expected = torch.stack([(share * x.flatten()).sum() / share.sum() for share in (left, right)])
    torch.testing.assert_close(clusters.centers.flatten(), expected, rtol=1e-6, atol=1e-6)
    assert clusters.mass.flatten().tolist() == pytest.approx([float(left.sum()), float(right.sum())])
    rebuilt = reconstruct_tokens(torch.tensor([10.0, 20.0], dtype=torch.float64).view(1, 1, 2, 1), clusters)
    a, b = expected.tolist()
    first = 1 / (1 + torch.tensor(-(b**2 - a**2) / 8).exp())
    assert float(rebuilt[0, 0, 0, 0]) == pytest.approx(float(10 * first + 20 * (1 - first)), rel=1e-5)
    # k = 1 takes the nearest
    nearest = reconstruct_tokens(torch.tensor([10.0, 20.0]).view(1, 1, 2, 1), clusters, num_neighbors=1)
    assert nearest.flatten().tolist() == [10, 10, 20, 20]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 19), st.integers(1, 19), st.integers(1, 5), st.sampled_from([1, 3, 5, 7]),
    st.integers(1, 4), st.integers(0, 10**6), st.data(),
)  # fmt: skip
def test_equals_dense_form(batch, height, width, channels, window, num_iters, seed, data):
    grid = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    x = image(batch, height, width, channels, seed=seed)
    clusters = cluster_tokens(x, grid, num_iters=num_iters, temperature=0.7, window=window)
    centers, mass = dense_clustering(x, grid, num_iters, 0.7, window)
    torch.testing.assert_close(clusters.centers, centers, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(clusters.mass, mass, rtol=1e-8, atol=1e-8)
    clustered = image(batch, *grid, 3, seed=seed + 1)
    for norm in ('l1', 'l2'):
        expected = dense_reconstruction(clustered, x, centers, 0.7, 6, norm)
        rebuilt = reconstruct_tokens(clustered, clusters, num_neighbors=6, norm=norm)
        torch.testing.assert_close(rebuilt, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(('size', 'grid', 'channels'), [((40, 40), (28, 28), 96), ((33, 50), (20, 31), 32)])
def test_equals_dense_form_in_single_precision(size, grid, channels):
    x = smooth_image(size, channels)
    clusters = cluster_tokens(x.float(), grid, temperature=5.0)
    centers, _ = dense_clustering(x, grid, temperature=5.0)
    assert (clusters.centers - centers).abs().max() < 1e-5


@pytest.mark.parametrize('window', [3, 5, 9])
def test_window_of_reconstruction_is_a_search_among_near_cells(window):
    x = image(2, 13, 17, 4)
    clusters = cluster_tokens(x, (7, 9), temperature=2.0)
    neighbors = token_neighbors(clusters, num_neighbors=200, window=window)
    row, column = torch.arange(13) * 7 // 13, torch.arange(17) * 9 // 17
    home = torch.stack(torch.meshgrid(row, column, indexing='ij'), -1).view(-1, 1, 2)
    cell = torch.stack([torch.arange(63) // 9, torch.arange(63) % 9], -1)
    near = (home - cell).abs().amax(-1) <= window // 2
    scores = -torch.cdist(x.flatten(1, 2), clusters.centers.flatten(1, 2)).square() / 2.0
    expected = scores.masked_fill(~near, -torch.inf).softmax(-1)
    dense = torch.zeros_like(expected).scatter_add(-1, neighbors.indices, neighbors.weights)
    torch.testing.assert_close(dense, expected, rtol=1e-8, atol=1e-10)
    # as wide as the map: the same as a search over all
    wide = token_neighbors(clusters, num_neighbors=10, window=17)
    everywhere = token_neighbors(clusters, num_neighbors=10)
    torch.testing.assert_close(
        combine_tokens(clusters.centers, wide), combine_tokens(clusters.centers, everywhere), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_identity(dtype):
    x = image(2, 9, 7, 5).to(dtype)
    clusters = cluster_tokens(x, (9, 7), window=1)
    assert torch.equal(clusters.centers, x)
    assert torch.equal(clusters.mass, torch.ones_like(clusters.mass))
    assert torch.equal(cluster_labels(clusters), torch.arange(63).view(1, 9, 7).expand(2, -1, -1))
    assert torch.equal(reconstruct_tokens(clusters.centers, clusters, num_neighbors=1), x)


def test_constant_map_stays_constant():
    x = torch.tensor([3.0, -700.0, 0.02]).expand(1, 21, 15, 3)
    clusters = cluster_tokens(x, (8, 8))
    rebuilt = reconstruct_tokens(clusters.centers, clusters)
    assert ((clusters.centers - x[0, 0, 0]) / x[0, 0, 0]).abs().max() < 1e-6
    assert ((rebuilt - x) / x).abs().max() < 1e-6


def test_regions_that_coincide_with_cells_have_no_error():
    cells = 20 * image(1, 5, 4, 6)
    x = cells.repeat_interleave(3, 1).repeat_interleave(2, 2)
    clusters = cluster_tokens(x, (5, 4), temperature=1.0)
    torch.testing.assert_close(clusters.centers, cells, rtol=1e-12, atol=1e-12)
    assert (reconstruct_tokens(clusters.centers, clusters) - x).abs().max() < 1e-10


@pytest.mark.parametrize('temperature', [1e-3, 1.0, 50.0, 1e6])
def test_reconstruction_is_convex_by_default_and_inflated_in_the_authors_form(temperature):
    x = image(1, 12, 12, 8)
    clusters = cluster_tokens(x, (6, 6), temperature=temperature)
    refined = image(1, 6, 6, 8, seed=3)
    neighbors = token_neighbors(clusters)
    torch.testing.assert_close(neighbors.weights.sum(-1), torch.ones(1, 144, dtype=torch.float64))
    rebuilt = combine_tokens(refined, neighbors)
    assert (rebuilt <= refined.amax((1, 2)) + 1e-12).all()
    assert (rebuilt >= refined.amin((1, 2)) - 1e-12).all()
    inflated = reconstruct_tokens(refined, clusters, norm='l2')
    ratio = inflated.norm(dim=-1) / rebuilt.norm(dim=-1)
    assert (ratio > 1 - 1e-9).all()
    assert (ratio < 20**0.5 + 1e-9).all()
    if temperature == 1e6:  # nearly uniform weights: the full sqrt(k)
        assert (ratio > 4.47).all()


def test_limits_of_the_temperature():
    x = image(1, 10, 10, 3)
    blurred = cluster_tokens(x, (4, 4), num_iters=1, temperature=1e12, window=9).centers
    torch.testing.assert_close(blurred, x.mean((1, 2), keepdim=True).expand(1, 4, 4, 3), rtol=1e-7, atol=1e-7)
    errors = []
    for num_iters in range(1, 6):  # hard local k-means: the error within clusters never rises
        clusters = cluster_tokens(x, (4, 4), num_iters=num_iters, temperature=1e-9)
        neighbors = token_neighbors(clusters, num_neighbors=1, window=5)
        errors.append(float((combine_tokens(clusters.centers, neighbors) - x).square().sum()))
    assert all(after <= before + 1e-9 for before, after in zip(errors, errors[1:]))
    assert errors[-1] < errors[0]


def test_a_temperature_for_each_image():
    x = image(2, 11, 9, 4)
    both = cluster_tokens(x, (5, 4), temperature=torch.tensor([0.3, 4.0]))
    for window in (None, 5):
        rebuilt = reconstruct_tokens(both.centers, both, window=window)
        for index, temperature in enumerate((0.3, 4.0)):
            alone = cluster_tokens(x[index : index + 1], (5, 4), temperature=temperature)
            torch.testing.assert_close(both.centers[index], alone.centers[0], rtol=1e-6, atol=1e-6)
            expected = reconstruct_tokens(alone.centers, alone, window=window)[0]
            torch.testing.assert_close(rebuilt[index], expected, rtol=1e-5, atol=1e-5)


def test_a_temperature_from_the_spread_does_not_depend_on_the_scale():
    x = image(2, 11, 9, 4)
    results = []
    for scale in (1.0, 1e3):
        scaled = torch.stack([x[0] * scale, x[1]])
        clusters = cluster_tokens(scaled, (5, 4), temperature=0.1 * token_spread(scaled, (5, 4)))
        results.append(clusters.centers / torch.tensor([scale, 1.0]).view(2, 1, 1, 1))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_spread():
    x = torch.tensor([0.0, 2.0, 9.0, 5.0], dtype=torch.float64).view(1, 1, 4, 1)
    assert token_spread(x, (1, 2)).tolist() == [(1 + 1 + 4 + 4) / 4]
    mask = torch.tensor([True, True, True, False]).view(1, 1, 4)
    assert token_spread(x, (1, 2), mask).tolist() == pytest.approx([2 / 3])
    assert token_spread(torch.ones(2, 4, 4, 3), (2, 2)).tolist() == [1, 1]


def test_shift_and_flip():
    x, shift = image(1, 12, 8, 4), image(4, seed=5) * 100
    clusters, shifted = cluster_tokens(x, (6, 4)), cluster_tokens(x + shift, (6, 4))
    torch.testing.assert_close(shifted.centers, clusters.centers + shift, rtol=1e-9, atol=1e-9)
    flipped = cluster_tokens(x.flip(1, 2), (6, 4))
    torch.testing.assert_close(flipped.centers.flip(1, 2), clusters.centers, rtol=1e-9, atol=1e-9)


def test_permuting_channels_and_images_permutes_the_result():
    x = image(3, 11, 9, 6)
    order = torch.tensor([2, 0, 1])
    clusters = cluster_tokens(x, (5, 5), temperature=1.0)
    again = cluster_tokens(x[order].flip(-1), (5, 5), temperature=1.0)
    torch.testing.assert_close(again.centers, clusters.centers[order].flip(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('grid', [(28, 28), (20, 20)])
def test_error_is_well_below_that_of_averages(grid):
    """The card's bounds on features of pictures: 0.8 of bilinear at the default, 0.15 at a sharp temperature."""
    x = smooth_image((40, 40), 64) + (image(1, 40, 40, 1, seed=9).sign() > 0).repeat(1, 1, 1, 64) * 3
    pooled = torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid)
    bilinear = torch.nn.functional.interpolate(pooled, size=(40, 40), mode='bilinear').permute(0, 2, 3, 1)
    bilinear_error = (bilinear - x).square().mean()
    for temperature, bound in ((50.0, 0.8), (0.5, 0.15)):
        clusters = cluster_tokens(x, grid, temperature=temperature)
        error = (reconstruct_tokens(clusters.centers, clusters) - x).square().mean()
        assert error <= bound * bilinear_error


def test_masked_tokens_take_no_part():
    x = image(2, 12, 10, 4)
    mask = torch.ones(2, 12, 10, dtype=torch.bool)
    mask[0, 8:] = False
    mask[1, :, 6:] = False
    spoiled = x.masked_fill(~mask[..., None], torch.nan)
    clusters = cluster_tokens(spoiled, (6, 5), temperature=1.0, mask=mask)
    for index, (rows, columns, grid) in enumerate([(8, 10, (4, 5)), (12, 6, (6, 3))]):
        alone = cluster_tokens(x[index : index + 1, :rows, :columns], grid, temperature=1.0)
        torch.testing.assert_close(clusters.centers[index, : grid[0], : grid[1]], alone.centers[0])
        torch.testing.assert_close(clusters.mass[index, : grid[0], : grid[1]], alone.mass[0])
        assert clusters.cell_mask[index].sum() == grid[0] * grid[1]
    assert (clusters.centers[~clusters.cell_mask] == 0).all()
    assert (clusters.mass[~clusters.cell_mask] == 0).all()
    for window in (None, 5):
        # values of empty clusters must not reach any token
        refined = clusters.centers.masked_fill(~clusters.cell_mask[..., None], 1e9)
        rebuilt = reconstruct_tokens(refined, clusters, window=window)
        assert rebuilt[mask].abs().max() < 10
        assert (rebuilt[~mask] == 0).all()
    assert (cluster_labels(clusters)[~mask] == -1).all()
    assert (cluster_labels(clusters)[mask] >= 0).all()


def test_an_image_without_valid_tokens_is_zero_and_finite():
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    clusters = cluster_tokens(image(1, 6, 6, 3), (3, 3), mask=mask)
    assert (clusters.centers == 0).all()
    assert (reconstruct_tokens(clusters.centers + 1, clusters, window=3) == 0).all()


def test_a_center_without_weight_stays():
    # One token is so far away that the cluster in the middle loses every share.
    x = torch.zeros(1, 1, 6, 1)
    x[0, 0, 2:4] = torch.tensor([-1e4, 1e4])[:, None]
    clusters = cluster_tokens(x, (1, 3), num_iters=2, temperature=1e-3, window=5)
    assert torch.isfinite(clusters.centers).all()
    assert clusters.mass.sum() == 6


def test_weights_do_not_underflow():
    x = 1e3 * image(1, 8, 8, 4, dtype=torch.float32)
    clusters = cluster_tokens(x, (3, 3), temperature=1e-2)
    rebuilt = reconstruct_tokens(torch.ones(1, 3, 3, 1), clusters)
    torch.testing.assert_close(rebuilt, torch.ones_like(rebuilt))


def test_gradient_where_the_assignment_is_constant():
    """At a low temperature the shares do not change, so the gradient is exact."""
    x = (10 * image(1, 4, 5, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cluster_tokens(x, (2, 3), temperature=1e-4, window=3).centers, x)
    state = cluster_tokens(x.detach(), (2, 3))
    refined = image(1, 2, 3, 2, seed=1).requires_grad_()
    for norm in ('l1', 'l2'):
        assert torch.autograd.gradcheck(lambda r: reconstruct_tokens(r, state, num_neighbors=4, norm=norm), refined)  # noqa: B023


def test_gradient_is_that_of_weighted_means():
    x = image(1, 6, 6, 3).requires_grad_()
    clusters = cluster_tokens(x, (3, 3), num_iters=1, temperature=2.0)
    clusters.centers[0, 1, 1, 0].backward()
    _, mass = dense_clustering(x.detach(), (3, 3), 1, 2.0, 5)
    pooled = torch.nn.functional.adaptive_avg_pool2d(x.detach().permute(0, 3, 1, 2), (3, 3)).flatten(2).mT
    weights = (-torch.cdist(x.detach().flatten(1, 2), pooled).square() / 2.0).softmax(-1)[0, :, 4]
    torch.testing.assert_close(x.grad[0, :, :, 0].flatten(), weights / mass[0, 1, 1])
    assert (x.grad[..., 1:] == 0).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_narrow_types_are_clustered_in_fp32(dtype):
    x = (80 * image(1, 12, 12, 64)).to(dtype)  # squared norms of 400,000 overflow fp16
    expected = cluster_tokens(x.float(), (6, 6))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        clusters = cluster_tokens(x, (6, 6))
        rebuilt = reconstruct_tokens(clusters.centers, clusters)
    assert clusters.centers.dtype == rebuilt.dtype == dtype
    assert clusters.mass.dtype == torch.float32
    assert torch.equal(clusters.centers, expected.centers.to(dtype))
    assert torch.isfinite(rebuilt).all()


def test_autocast_changes_nothing():
    x = image(1, 10, 10, 16, dtype=torch.float32)
    plain = cluster_tokens(x, (5, 5))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = cluster_tokens(x, (5, 5))
        rebuilt = reconstruct_tokens(cast.centers, cast)
    assert torch.equal(cast.centers, plain.centers)
    assert torch.equal(rebuilt, reconstruct_tokens(plain.centers, plain))


def test_neither_waits_for_the_device_nor_launches_per_row():
    x = image(2, 40, 40, 8, dtype=torch.float32).to('meta')
    state = cluster_tokens(x, (28, 28))  # fills the cache of indices

    def run():
        reconstruct_tokens(cluster_tokens(x, (28, 28)).centers, state, window=5)

    assert not count_host_syncs(run)
    assert count_launches(run).total() <= 170


def test_compiles_in_one_graph():
    def both(x):
        state = cluster_tokens(x, (4, 5))
        return reconstruct_tokens(2 * state.centers, state, window=5)

    x = image(2, 8, 9, 6, dtype=torch.float32)
    compiled = torch.compile(both, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), both(x))
