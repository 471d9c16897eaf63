# SPDX-License-Identifier: Apache-2.0
"""Segment token clustering: the card's checks, plain loops, masks, ragged segments, gradients, bad input."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from clusterplug.functional.kmedoids import kmedoids
from clusterplug.functional.tokens.segment_tokens import (
    segment_bounds,
    segment_mean,
    shift_channels,
    sparse_token_index,
    split_segments,
)
from clusterplug.layers import SegmentTokenClustering
from clusterplug.testing import count_host_syncs

REDUCING = ('kmedoids', 'spectral', 'sparse')


def video(batch=2, frames=6, patches=9, channels=16, seed=0, dtype=torch.float32):
    """Tokens as those of a video: every frame a noisy copy of the same scene."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(batch, 1, 1 + patches, channels, generator=generator)
    noise = torch.randn(batch, frames, 1 + patches, channels, generator=generator)
    return (scene + 0.1 * noise).to(dtype)


def test_by_hand():
    """Two frames of three patches on a line: 0, 1, 10 and 0.5, 9, 11; medoids 0.5 and 10, class tokens 1 and 3."""
    tokens = torch.tensor([[[[1.0], [0.0], [1.0], [10.0]], [[3.0], [0.5], [9.0], [11.0]]]])
    result = SegmentTokenClustering(1, 2).select(tokens)
    assert result.tokens.flatten().tolist() == [2.0, 10.0, 0.5]
    assert result.places.tolist() == [[[2, 3]]]
    assert result.segment_mask.tolist() == [[True]]
    means = SegmentTokenClustering(1, 2, aggregation='mean')(tokens)
    assert means.flatten().tolist() == [2.0, 10.0, 0.5]


@pytest.mark.parametrize('method', REDUCING)
@pytest.mark.parametrize('frames', [6, 7])
def test_against_a_loop_over_segments(method, frames):
    tokens = video(frames=frames)
    # the default number of neighbors follows the longest segment
    options = dict(method=method, options=dict(num_neighbors=8) if method == 'spectral' else None)
    layer = SegmentTokenClustering(3, 4, **options).eval()
    result = layer.select(tokens)
    for b in range(len(tokens)):
        for s, (first, stop) in enumerate(segment_bounds(frames, 3)):
            part = tokens[b, first:stop]
            alone = SegmentTokenClustering(1, 4, **options).eval().select(part[None])
            assert torch.equal(result.places[b, s], alone.places[0, 0] + first * 9)
            torch.testing.assert_close(result.tokens[b, s, 0], part[:, 0].mean(0))
            assert torch.equal(result.tokens[b, s, 1:], part[:, 1:].flatten(0, 1)[alone.places[0, 0]])


@pytest.mark.parametrize('method', REDUCING)
def test_identity_when_nothing_is_reduced(method):
    tokens = video()
    result = SegmentTokenClustering(6, 9, method=method).eval().select(tokens)
    assert torch.equal(result.tokens, tokens)
    assert torch.equal(result.places.flatten(1), torch.arange(54).expand(2, -1))


@pytest.mark.parametrize(('patches', 'kept'), [(49, 49), (196, 160)])
def test_shapes_of_the_paper(patches, kept):
    tokens = video(1, 12, patches, 8)
    assert SegmentTokenClustering(4, kept)(tokens).shape == (1, 4, 1 + kept, 8)


def test_medoids_are_distinct_members_in_order_and_nothing_is_random():
    tokens = video(patches=16)
    layer = SegmentTokenClustering(2, 10)
    first, second = layer.select(tokens), layer.select(tokens)
    assert torch.equal(first.tokens, second.tokens)
    assert (first.places.diff(dim=-1) > 0).all()
    flat = tokens[:, :, 1:].flatten(1, 2)
    taken = flat.gather(1, first.places.flatten(1)[..., None].expand(-1, -1, 16))
    assert torch.equal(first.tokens[:, :, 1:].flatten(1, 2), taken)


def test_permuted_patches_give_permuted_medoids():
    tokens = video(patches=16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    permuted = torch.cat([tokens[:, :, :1], tokens[:, :, 1:][:, :, order]], 2)
    layer = SegmentTokenClustering(2, 5)
    plain, other = layer.select(tokens).places, layer.select(permuted).places
    back = other // 16 * 16 + order[other % 16]
    assert torch.equal(back.sort(-1).values, plain)


def test_cost_is_far_below_that_of_sampling_on_noisy_copies():
    """The card's third check: three noisy copies of 49 base tokens; 0.45 to 0.7 of the cost of random sampling."""
    tokens = video(4, 3, 49, 64)
    places = SegmentTokenClustering(1, 49).select(tokens).places[:, 0]
    points = tokens[:, :, 1:].flatten(1, 2)
    distances = torch.cdist(points, points)

    def cost(index):
        return distances.gather(1, index[..., None].expand(-1, -1, 147)).amin(1).sum(-1)

    generator = torch.Generator().manual_seed(2)
    drawn = torch.stack([torch.randperm(147, generator=generator)[:49] for _ in range(4)])
    assert (cost(places) < 0.7 * cost(drawn)).all()
    start = kmedoids(points, 49, num_iters=0)
    assert (cost(places) <= start.cost + 1e-4).all()


def test_gradient_reaches_kept_and_class_tokens_only():
    tokens = video().requires_grad_()
    result = SegmentTokenClustering(2, 4).select(tokens)
    result.tokens.sum().backward()
    gradient = tokens.grad
    torch.testing.assert_close(gradient[:, :, 0], torch.full_like(gradient[:, :, 0], 1 / 3))
    kept = torch.zeros(2, 54).scatter(1, result.places.flatten(1), 1.0)
    assert torch.equal(gradient[:, :, 1:].flatten(1, 2), kept[..., None].expand(-1, -1, 16))


def test_gradcheck_of_means():
    tokens = video(1, 2, 4, 3, dtype=torch.float64).requires_grad_()
    layer = SegmentTokenClustering(1, 2, aggregation='mean')
    assert torch.autograd.gradcheck(layer, (tokens,))


def test_mean_is_the_mean_of_each_cluster():
    tokens = video()
    points = tokens[:, :3, 1:].flatten(1, 2)
    labels = kmedoids(points, 4, num_iters=10).labels
    means = SegmentTokenClustering(2, 4, aggregation='mean')(tokens)[:, 0, 1:]
    for b in range(2):
        for k in range(4):
            torch.testing.assert_close(means[b, k], points[b][labels[b] == k].mean(0))


class TestMask:
    def test_masked_frames_are_as_if_they_were_not_there(self):
        tokens = video(1, 6)
        mask = torch.tensor([[True, True, True, True, True, False]])
        result = SegmentTokenClustering(2, 4).select(tokens, mask)
        alone = SegmentTokenClustering(1, 4).select(tokens[:, 3:5])
        assert torch.equal(result.places[:, 1], alone.places[:, 0] + 27)
        torch.testing.assert_close(result.tokens[:, 1], alone.tokens[:, 0])
        assert result.segment_mask.all()

    def test_masked_values_do_not_matter(self):
        tokens = video(1, 6)
        mask = torch.tensor([[True, True, False, True, True, False]])
        spoiled = tokens.masked_fill(~mask[..., None, None], torch.nan)
        for options in (dict(), dict(aggregation='mean'), dict(method='spectral')):
            layer = SegmentTokenClustering(2, 4, **options)
            torch.testing.assert_close(layer(tokens, mask), layer(spoiled, mask))
        pooled = SegmentTokenClustering(2, method='pooling')
        torch.testing.assert_close(pooled(tokens, mask), pooled(spoiled, mask))

    def test_a_segment_without_a_valid_frame_keeps_its_shape_and_is_told(self):
        tokens = video(1, 6)
        mask = torch.tensor([[True, True, True, False, False, False]])
        result = SegmentTokenClustering(2, 4).select(tokens, mask)
        assert result.segment_mask.tolist() == [[True, False]]
        plain = SegmentTokenClustering(2, 4).select(tokens)
        assert torch.equal(result.places, plain.places)
        torch.testing.assert_close(result.tokens, plain.tokens)

    def test_a_segment_with_fewer_valid_tokens_than_clusters_uses_all_frames(self):
        tokens = video(1, 6)
        mask = torch.tensor([[True, True, True, True, False, False]])
        result = SegmentTokenClustering(2, 12).select(tokens, mask)
        plain = SegmentTokenClustering(2, 12).select(tokens)
        assert torch.equal(result.places, plain.places)
        torch.testing.assert_close(result.tokens, plain.tokens)
        assert result.segment_mask.all()

    @pytest.mark.parametrize('training', [True, False])
    def test_sparse_sampling_takes_valid_tokens(self, training):
        tokens = video(3, 6)
        mask = torch.tensor([[True, False, True, True, True, False]]).expand(3, -1)
        layer = SegmentTokenClustering(2, 8, method='sparse').train(training)
        places = layer.select(tokens, mask).places
        assert mask[0][places // 9].all()
        assert (places.diff(dim=-1) > 0).all()


@hypothesis.given(st.integers(1, 40), st.integers(1, 40))
@hypothesis.settings(deadline=None, max_examples=60)
def test_segments_cover_all_frames_once(frames, segments):
    if segments > frames:
        with pytest.raises(ValueError, match='num_segments'):
            segment_bounds(frames, segments)
        return
    bounds = segment_bounds(frames, segments)
    assert [index for first, stop in bounds for index in range(first, stop)] == list(range(frames))
    lengths = [stop - first for first, stop in bounds]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
    parts, real = split_segments(torch.arange(frames).view(1, frames), segments)
    real = torch.ones_like(parts[0], dtype=torch.bool) if real is None else real
    assert parts[0][real].tolist() == list(range(frames))


def test_pooling_averages_places_and_class():
    tokens = video(frames=5)
    pooled = SegmentTokenClustering(2, method='pooling')(tokens)
    torch.testing.assert_close(pooled[:, 0], tokens[:, :3].mean(1))
    torch.testing.assert_close(pooled[:, 1], tokens[:, 3:].mean(1))
    assert segment_mean(torch.ones(1, 1, 2, dtype=torch.bfloat16), None).dtype == torch.bfloat16


def test_shifts_by_a_loop():
    tokens = video(1, 4, 3, 16)
    plain = tokens.numpy()
    expected = np.array(plain)
    for t in range(4):
        expected[0, t, :, :2] = plain[0, t + 1, :, :2] if t < 3 else 0
        expected[0, t, :, 2:4] = plain[0, t - 1, :, 2:4] if t else 0
    assert np.array_equal(shift_channels(tokens).numpy(), expected)
    token = SegmentTokenClustering(method='token_shift')(tokens).numpy()
    temporal = SegmentTokenClustering(method='temporal_shift')(tokens).numpy()
    assert np.array_equal(token[:, :, 0], expected[:, :, 0])
    assert np.array_equal(token[:, :, 1:], plain[:, :, 1:])
    assert np.array_equal(temporal[:, :, 0], plain[:, :, 0])
    assert np.array_equal(temporal[:, :, 1:], expected[:, :, 1:])


def test_sparse_sampling_draws_one_of_each_chunk():
    drawn = sparse_token_index(10, 4, 500, True, torch.device('cpu'))
    edges = [0, 2, 5, 7, 10]
    for k in range(4):
        assert set(drawn[:, k].tolist()) == set(range(edges[k], edges[k + 1]))
    assert sparse_token_index(10, 4, 1, False, drawn.device).tolist() == [[1, 3, 6, 8]]


@pytest.mark.parametrize('kept', [7, 9, 13])
def test_sparse_sampling_of_masked_frames_is_that_of_the_frames_alone(kept):
    tokens = video(2, 6)
    mask = torch.tensor([True, False, True, True, False, True])
    layer = SegmentTokenClustering(1, kept, method='sparse').eval()
    alone = layer.select(tokens[:, mask]).places
    frames = mask.nonzero().flatten()
    expected = frames[alone // 9] * 9 + alone % 9
    assert torch.equal(layer.select(tokens, mask.expand(2, -1)).places, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_clusters_in_fp32(dtype):
    tokens = video(dtype=dtype)
    half, full = SegmentTokenClustering(2, 4).select(tokens), SegmentTokenClustering(2, 4).select(tokens.float())
    assert half.tokens.dtype == dtype
    assert torch.equal(half.places, full.places)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(SegmentTokenClustering(2, 4).select(tokens.float()).places, full.places)


def test_without_tokens_in_front_and_cosine_and_pre_norm():
    tokens = video()
    layer = SegmentTokenClustering(2, 4, num_prefix=0, metric='cosine')
    assert layer(tokens[:, :, 1:]).shape == (2, 2, 4, 16)
    scaled = SegmentTokenClustering(2, 4, pre_norm=True)
    factors = 1 + torch.arange(9.0).view(1, 1, 9, 1)
    stretched = torch.cat([tokens[:, :, :1], tokens[:, :, 1:] * factors], 2)
    assert torch.equal(scaled.select(tokens).places, scaled.select(stretched).places)


@pytest.mark.slow
def test_compiles_without_a_break_and_equals_eager():
    tokens = video()
    layer = SegmentTokenClustering(2, 4)
    compiled = torch.compile(layer, fullgraph=True, backend='eager')
    assert torch.equal(compiled(tokens), layer(tokens))


def test_no_wait_for_the_device_with_fixed_rounds(monkeypatch):
    """On a GPU the layer takes tol=None; the same path is taken here by pretending that the host may not look."""
    from clusterplug.functional.distance import _self_distances
    from clusterplug.layers import segment_token_clustering

    for module in (segment_token_clustering, _self_distances):
        monkeypatch.setattr(module, 'host_checks_allowed', lambda tensor: False)
    tokens, mask = video(), torch.ones(2, 6, dtype=torch.bool)
    layer = SegmentTokenClustering(2, 4)
    for arguments in ((tokens,), (tokens, mask)):
        assert not count_host_syncs(lambda arguments=arguments: layer(*arguments))


def test_registered():
    pytest.importorskip('mmengine', reason='needs mmengine')
    from clusterplug.registry import MODELS

    layer = MODELS.build(dict(type='clusterplug.SegmentTokenClustering', num_segments=2, num_clusters=4))
    assert layer(video()).shape == (2, 2, 5, 16)
    assert not list(layer.parameters())


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(num_segments=2, num_clusters=4, method='magic'), ValueError, 'method must be one of'),
        (dict(num_segments=0, num_clusters=4), ValueError, 'num_segments must be at least 1'),
        (dict(num_segments=2), TypeError, 'num_clusters must be an int'),
        (dict(num_segments=2, num_clusters=4.0), TypeError, 'num_clusters must be an int'),
        (dict(num_segments=2, num_clusters=4, method='pooling'), ValueError, 'does not belong'),
        (dict(num_segments=2, method='token_shift'), ValueError, 'does not belong'),
        (dict(num_segments=2, num_clusters=4, aggregation='max'), ValueError, 'aggregation'),
        (dict(num_segments=2, num_clusters=4, method='sparse', aggregation='mean'), ValueError, 'aggregation'),
        (dict(num_segments=2, num_clusters=4, metric='manhattan'), ValueError, 'metric'),
        (dict(num_segments=2, num_clusters=4, num_prefix=-1), ValueError, 'num_prefix'),
        (dict(num_segments=2, num_clusters=4, options=dict(sigma=1)), ValueError, 'options of method'),
    ],
)
def test_bad_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        SegmentTokenClustering(**arguments)


def test_bad_input():
    layer = SegmentTokenClustering(2, 4)
    with pytest.raises(ValueError, match='num_clusters must not exceed the number of points'):
        SegmentTokenClustering(2, 28)(video())
    with pytest.raises(ValueError, match='num_clusters must not exceed'):
        SegmentTokenClustering(2, 19)(video(frames=5))  # the shorter segment has 18 tokens
    with pytest.raises(ValueError, match='num_segments must lie between 1 and the number of frames, 6'):
        SegmentTokenClustering(7, 4)(video())
    with pytest.raises(ValueError, match='tokens must have shape'):
        layer(video()[0])
    with pytest.raises(ValueError, match='tokens must be finite'):
        layer(video().index_fill(1, torch.tensor(2), torch.nan))
    with pytest.raises(TypeError, match='mask must be a bool'):
        layer(video(), torch.ones(2, 6))
    with pytest.raises(ValueError, match='mask must have shape'):
        layer(video(), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match='floating'):
        layer(torch.ones(1, 6, 10, 4, dtype=torch.int64))
