# SPDX-License-Identifier: Apache-2.0
"""align_by_transport: identity, batches, POT, convex hull, limits, invariances, uneven queries, bad input."""

import math

import pytest
import torch

from clusterplug.functional import align_by_transport, linear_assignment, sinkhorn


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SUPPORT, QUERIES = randn(3, 4, 6), randn(3, 20, 6, seed=1)


def test_no_pass_and_no_share_are_the_identity():
    assert torch.equal(align_by_transport(SUPPORT, QUERIES, num_passes=0, mix=0.3), SUPPORT)
    torch.testing.assert_close(align_by_transport(SUPPORT, QUERIES, num_passes=2, mix=0.0), SUPPORT)
    whole = align_by_transport(SUPPORT, QUERIES, num_passes=2)
    mixed = align_by_transport(SUPPORT, QUERIES, num_passes=2, mix=0.7)
    torch.testing.assert_close(mixed, 0.7 * whole + 0.3 * SUPPORT)


def test_equals_pot():
    ot = pytest.importorskip('ot')
    import numpy as np

    prototypes = SUPPORT[0].numpy()
    for _ in range(3):
        cost = ((prototypes[:, None] - QUERIES[0].numpy()[None]) ** 2).sum(-1)
        plan = ot.sinkhorn(np.full(4, 1 / 4), np.full(20, 1 / 20), cost / cost.max(), 0.05, stopThr=1e-9)
        prototypes = plan @ QUERIES[0].numpy() / plan.sum(1, keepdims=True)
    found = align_by_transport(SUPPORT[0], QUERIES[0], num_passes=3, num_iters=2000)
    torch.testing.assert_close(found, torch.from_numpy(prototypes), atol=1e-6, rtol=0)
    usual = align_by_transport(SUPPORT[0], QUERIES[0], num_passes=3)
    torch.testing.assert_close(usual, found, atol=1e-3, rtol=0)
    scores = torch.from_numpy(-cost / cost.max()).T
    masses = sinkhorn(scores, epsilon=0.05, num_iters=200)
    torch.testing.assert_close(masses.sum(0), torch.full((4,), 0.25, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(masses.sum(1), torch.full((20,), 0.05, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize('penalty', [math.inf, 0.05])
def test_a_batch_is_its_episodes_whatever_is_in_the_others(penalty):
    far = SUPPORT.clone()
    far[2] *= 1e6
    together = align_by_transport(far, QUERIES, num_passes=3, penalty=penalty)
    for number in range(2):
        alone = align_by_transport(SUPPORT[number], QUERIES[number], num_passes=3, penalty=penalty)
        torch.testing.assert_close(together[number], alone, atol=1e-9, rtol=1e-9)


def test_moved_prototypes_lie_among_the_queries():
    moved = align_by_transport(50 + SUPPORT, QUERIES, num_passes=1)
    low, high = QUERIES.amin(1, keepdim=True), QUERIES.amax(1, keepdim=True)
    assert ((moved >= low) & (moved <= high)).all()


def test_small_epsilon_is_the_balanced_assignment():
    support, queries = randn(3, 2), randn(12, 2, seed=3)
    cost = torch.cdist(support, queries).square().repeat_interleave(4, 0)
    owner = torch.empty(12, dtype=torch.int64)
    rows, cols = linear_assignment(cost)
    owner[cols] = rows // 4
    expected = torch.stack([queries[owner == way].mean(0) for way in range(3)])
    found = align_by_transport(support, queries, num_passes=1, epsilon=0.002)  # the default iterates until it settles
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_moves_scale_and_turn_with_the_features():
    turn = torch.linalg.qr(randn(6, 6, seed=5)).Q
    plain = align_by_transport(SUPPORT, QUERIES, num_passes=3)
    changed = align_by_transport(7 * SUPPORT @ turn + 3, 7 * QUERIES @ turn + 3, num_passes=3)
    torch.testing.assert_close(changed, 7 * plain @ turn + 3, atol=1e-8, rtol=0)


def test_uneven_queries_hurt_equal_masses_and_not_the_soft_ones():
    generator = torch.Generator().manual_seed(0)
    sizes, centers = torch.tensor([40, 15, 10, 5, 5]), 1.2 * randn(60, 5, 16, seed=2)
    labels = torch.arange(5).repeat_interleave(sizes)
    support = centers + torch.randn(60, 5, 16, generator=generator).double()
    queries = centers[:, labels] + torch.randn(60, 75, 16, generator=generator).double()

    def accuracy(prototypes):
        return float((torch.cdist(queries, prototypes).argmin(-1) == labels).double().mean())

    plain = accuracy(support)
    equal = accuracy(align_by_transport(support, queries, num_passes=1))
    soft = accuracy(align_by_transport(support, queries, num_passes=1, epsilon=0.02, penalty=0.003))
    assert equal < plain - 0.05
    assert soft > plain


def test_masked_queries_play_no_part():
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0, 12:], mask[2] = False, False
    given = QUERIES.masked_fill(~mask.unsqueeze(-1), math.nan)
    found = align_by_transport(SUPPORT, given, num_passes=2, mask=mask)
    torch.testing.assert_close(found[0], align_by_transport(SUPPORT[0], QUERIES[0, :12], num_passes=2))
    assert torch.equal(found[2], SUPPORT[2])


def test_types_equal_points_and_empty_batch():
    with torch.autocast('cpu', torch.bfloat16):
        narrow = align_by_transport(SUPPORT.half(), QUERIES.half(), num_passes=2)
    assert narrow.dtype == torch.float16
    wide = align_by_transport(SUPPORT.half().double(), QUERIES.half().double(), num_passes=2)
    torch.testing.assert_close(narrow.double(), wide, atol=2e-3, rtol=0)
    same = torch.ones(2, 3)
    torch.testing.assert_close(align_by_transport(same, same.repeat(2, 1), num_passes=2), same)
    assert align_by_transport(torch.zeros(0, 2, 3), torch.zeros(0, 4, 3), num_passes=1).shape == (0, 2, 3)


@pytest.mark.parametrize(('change', 'message'), [
    ({'queries': randn(3, 6)}, 'queries must be at least as many'), ({'queries': randn(9, 5)}, 'queries must have'),
    ({'num_passes': -1}, 'num_passes must be'), ({'epsilon': 0.0}, 'epsilon must be'), ({'mix': 1.2}, 'mix must be'),
    ({'penalty': 0.0}, 'penalty must be'), ({'support': randn(4, 6) * math.nan}, 'support must be finite'),
    ({'queries': randn(9, 6) * math.inf}, 'queries must be finite'),
])  # fmt: skip
def test_bad_input(change, message):
    options = {'support': randn(4, 6), 'queries': randn(9, 6), 'num_passes': 1, **change}
    with pytest.raises(ValueError, match=message):
        align_by_transport(options.pop('support'), options.pop('queries'), **options)
