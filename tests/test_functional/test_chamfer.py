# SPDX-License-Identifier: Apache-2.0
"""Chamfer similarity, and encodings whose inner products approximate it."""

import pytest
import torch

from clusterplug.functional import chamfer_similarity, fixed_dimensional_encoding
from clusterplug.testing import peak_bytes


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lengths(*counts, width):
    return torch.arange(width) < torch.tensor(counts)[:, None]


def plain(q, q_mask, d, d_mask):
    scores = torch.zeros(len(q), len(d), dtype=torch.float64)
    for i in range(len(q)):
        for j in range(len(d)):
            for u in q[i][q_mask[i]].double():
                scores[i, j] += max(float(u @ v) for v in d[j][d_mask[j]].double())
    return scores


def test_the_example_of_pylate():
    q = torch.tensor([[[1.0], [0.0]], [[2.0], [0.0]], [[3.0], [0.0]]])
    d = torch.tensor([[[10.0], [0.0], [1.0]], [[0.0], [100.0], [1.0]], [[1.0], [0.0], [1000.0]]])
    scores = chamfer_similarity(q, None, d, None)
    assert scores.tolist() == [[10, 100, 1000], [20, 200, 2000], [30, 300, 3000]]
    q_mask = torch.tensor([[True, True], [True, True], [False, True]])
    d_mask = torch.tensor([[True, True, True], [True, False, True], [True, True, True]])
    scores = chamfer_similarity(q, q_mask, d, d_mask)
    assert scores.tolist() == [[10, 1, 1000], [20, 2, 2000], [0, 0, 0]]


@pytest.mark.parametrize('chunk_elements', [1, 100, 1 << 22])
def test_as_a_plain_loop_and_as_pylate(chunk_elements):
    q, d = randn(4, 5, 6), randn(7, 9, 6, seed=1)
    q_mask, d_mask = randn(4, 5, seed=2) > -0.5, randn(7, 9, seed=3) > -0.5
    q[~q_mask], d[~d_mask] = torch.nan, torch.inf  # padding may hold anything
    scores = chamfer_similarity(q, q_mask, d, d_mask, chunk_elements=chunk_elements)
    torch.testing.assert_close(scores.double(), plain(q, q_mask, d, d_mask), rtol=1e-5, atol=1e-5)
    q, d = randn(4, 5, 6), randn(7, 9, 6, seed=1)
    theirs = torch.einsum('ash,bth->abst', q, d).max(axis=-1).values.sum(axis=-1)  # pylate.scores.colbert_scores
    torch.testing.assert_close(chamfer_similarity(q, None, d, None, chunk_elements=chunk_elements), theirs)


def test_as_the_installed_pylate():
    scores = pytest.importorskip('pylate.scores', reason='needs pylate, an oracle that nothing else uses')
    q, d = randn(4, 5, 6), randn(7, 9, 6, seed=1)
    torch.testing.assert_close(chamfer_similarity(q, None, d, None), scores.colbert_scores(q, d))


@pytest.mark.parametrize('many', [1, 40])
def test_padding_never_wins(many):
    q, d = randn(many, 3, 4).abs(), -randn(5, 6, 4, seed=1).abs()  # all products negative
    expected = chamfer_similarity(q, None, d, None)
    assert expected.lt(0).all()
    padded = torch.nn.functional.pad(d, (0, 0, 0, 4)), lengths(*[6] * 5, width=10)
    torch.testing.assert_close(chamfer_similarity(q, None, *padded), expected)
    padded = torch.nn.functional.pad(d, (0, 0, 0, 4), value=9.0), lengths(*[6] * 5, width=10)
    torch.testing.assert_close(chamfer_similarity(q, None, *padded), expected)
    leaf = padded[0].clone().requires_grad_()
    torch.testing.assert_close(chamfer_similarity(q, None, leaf, padded[1]), expected)


def test_without_any_vector():
    q_mask, d_mask = lengths(2, 0, width=2), lengths(3, 0, width=3)
    scores = chamfer_similarity(randn(2, 2, 4), q_mask, randn(2, 3, 4, seed=1), d_mask)
    assert scores[0, 0].isfinite()
    assert scores[0, 1] == -torch.inf
    assert scores[1].tolist() == [0, 0]
    assert chamfer_similarity(randn(0, 2, 4), None, randn(3, 2, 4), None).shape == (0, 3)
    assert chamfer_similarity(randn(2, 2, 4), None, randn(0, 2, 4), None).shape == (2, 0)


@pytest.mark.parametrize('chunk_elements', [20, 1 << 22])
def test_gradients(chunk_elements):
    q, d = randn(2, 3, 4, dtype=torch.float64), randn(3, 5, 4, seed=1, dtype=torch.float64)
    masks = lengths(3, 2, width=3), lengths(5, 4, 1, width=5)
    d[1, 4] = q[1, 2] = torch.nan
    q.requires_grad_(), d.requires_grad_()

    def fn(q, d):
        return chamfer_similarity(q, masks[0], d, masks[1], chunk_elements=chunk_elements)

    with torch.autograd.detect_anomaly():
        grads = torch.autograd.grad(fn(q, d).sum(), (q, d))
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[0][1, 2].eq(0).all()
    assert grads[1][1, 4].eq(0).all()
    clean = [torch.nan_to_num(x.detach(), 0.5).requires_grad_() for x in (q, d)]
    assert torch.autograd.gradcheck(fn, clean)


def test_half_precision_does_not_overflow():
    q, d = randn(2, 40, 64).mul(30).half(), randn(3, 50, 64, seed=1).mul(30).half()
    scores = chamfer_similarity(q, None, d, None)
    assert scores.dtype == torch.float32
    assert scores.max() > 65504
    torch.testing.assert_close(scores, chamfer_similarity(q.float(), None, d.float(), None))
    assert chamfer_similarity(q.double(), None, d, None).dtype == torch.float64


@pytest.mark.slow
def test_a_thousand_queries_and_ten_thousand_documents_fit():
    q, d = randn(1000, 4, 16), randn(10_000, 16, 16, seed=1)
    masks = lengths(*[3] * 1000, width=4), lengths(*[15] * 10_000, width=16)
    found = []
    grown = peak_bytes(lambda: found.append(chamfer_similarity(q, masks[0], d, masks[1])))
    (scores,) = found
    assert scores.shape == (1000, 10_000)
    assert 40e6 <= grown < 300e6  # all products at once would be 2.6 GB
    part = chamfer_similarity(q[:3], masks[0][:3], d[-5:], masks[1][-5:])
    torch.testing.assert_close(scores[:3, -5:], part)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(q=randn(2, 3)), ValueError, 'q must have shape'),
        (dict(d=randn(2, 3, 5)), ValueError, 'same width, got 4 and 5'),
        (dict(d=randn(2, 0, 4)), ValueError, 'd must hold at least one'),
        (dict(q_mask=torch.ones(2, 4, dtype=torch.bool)), ValueError, 'q_mask must have shape'),
        (dict(d_mask=torch.ones(2, 3)), TypeError, 'd_mask must be a bool'),
        (dict(q=torch.ones(2, 3, 4).int()), TypeError, 'q must have a floating'),
        (dict(chunk_elements=0), ValueError, 'chunk_elements must be at least 1'),
    ],
)
def test_bad_input(change, error, message):
    given = dict(q=randn(2, 3, 4), q_mask=None, d=randn(2, 3, 4), d_mask=None) | change
    with pytest.raises(error, match=message):
        chamfer_similarity(**given)


def encode(x, mask=None, **options):
    return fixed_dimensional_encoding(x, mask, **options)


def test_one_bucket_is_sum_and_mean():
    q, d = randn(3, 4, 5), randn(2, 6, 5, seed=1)
    q_mask, d_mask = lengths(4, 2, 1, width=4), lengths(6, 3, width=6)
    left = encode(q, q_mask, num_repetitions=1, num_bits=0, is_query=True)
    right = encode(d, d_mask, num_repetitions=1, num_bits=0, is_query=False)
    sums = torch.stack([x[m].sum(0) for x, m in zip(q, q_mask)])
    means = torch.stack([x[m].mean(0) for x, m in zip(d, d_mask)])
    torch.testing.assert_close(left @ right.mT, sums @ means.mT)


@pytest.mark.parametrize('num_bits', [0, 1, 3, 6])
def test_documents_of_one_vector_are_exact_when_filled(num_bits):
    q, d = randn(3, 4, 5).abs(), randn(4, 3, 5, seed=1).abs()
    d_mask = torch.tensor([False, True, False]).expand(4, -1)
    options = dict(num_repetitions=7, num_bits=num_bits)
    left = encode(q, is_query=True, **options)
    filled = left @ encode(d, d_mask, is_query=False, fill_empty=True, **options).mT
    exact = 7 * chamfer_similarity(q, None, d, d_mask)
    torch.testing.assert_close(filled, exact)
    empty = left @ encode(d, d_mask, is_query=False, **options).mT
    assert (empty <= exact + 1e-4).all()  # products are positive here: it can only lose
    assert left.shape == (3, 7 * 2**num_bits * 5)


def test_buckets_by_hand():
    generator = torch.Generator().manual_seed(3)
    planes = torch.randn(4, 3, generator=generator, dtype=torch.float64).float()
    x = randn(1, 6, 4, seed=5)
    found = encode(x, num_repetitions=1, num_bits=3, is_query=False, fill_empty=True, seed=3).view(8, 4)
    signs = (x[0] @ planes > 0).int()
    for bucket in range(8):
        gray = bucket ^ (bucket >> 1)
        pattern = torch.tensor([gray >> 2 & 1, gray >> 1 & 1, gray & 1])
        apart = (signs - pattern).abs().sum(1)
        expected = x[0][apart == 0].mean(0) if (apart == 0).any() else x[0][apart.argmin()]
        torch.testing.assert_close(found[bucket], expected)


def test_projections_keep_products_on_average_and_seeds_count():
    q, d = randn(4, 6, 32), randn(5, 8, 32, seed=1)
    exact = (
        encode(q, num_repetitions=1, num_bits=0, is_query=True)
        @ encode(d, num_repetitions=1, num_bits=0, is_query=False).mT
    )
    options = dict(num_repetitions=600, num_bits=0, projection_dim=8)
    found = encode(q, is_query=True, **options) @ encode(d, is_query=False, **options).mT / 600
    assert (found - exact).abs().max() < 0.15 * exact.abs().max()
    one, two = (encode(q, num_repetitions=2, num_bits=2, is_query=True, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(one, encode(q, num_repetitions=2, num_bits=2, is_query=True))
    state = torch.get_rng_state()
    encode(q, num_repetitions=2, num_bits=2, is_query=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_candidates_are_near():
    d = torch.nn.functional.normalize(randn(200, 8, 16), dim=-1)
    q = torch.nn.functional.normalize(d[:30, :3] + 0.1 * randn(30, 3, 16, seed=2), dim=-1)
    options = dict(num_repetitions=20, num_bits=3)
    scores = encode(q, is_query=True, **options) @ encode(d, is_query=False, fill_empty=True, **options).mT
    best = chamfer_similarity(q, None, d, None).argmax(1)
    found = (scores.topk(10, dim=1).indices == best[:, None]).any(1).float().mean()
    assert found >= 0.9


def test_encodings_of_nothing_and_their_gradient():
    x = torch.full((2, 3, 4), torch.nan)
    for query in (True, False):
        found = encode(x, lengths(0, 0, width=3), num_repetitions=2, num_bits=2, is_query=query, fill_empty=not query)
        assert found.eq(0).all()
    assert encode(x[:0], num_repetitions=2, num_bits=2, is_query=True).shape == (0, 2 * 4 * 4)
    x = randn(1, 3, 4, dtype=torch.float64).requires_grad_()
    options = dict(num_repetitions=2, num_bits=2, projection_dim=3, is_query=False, fill_empty=True)
    assert torch.autograd.gradcheck(lambda t: encode(t, **options), (x,))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_repetitions=0), 'num_repetitions must be at least 1'),
        (dict(num_bits=17), 'num_bits must be between 0 and 16'),
        (dict(num_bits=-1), 'num_bits must be between'),
        (dict(projection_dim=0), 'projection_dim must be at least 1'),
        (dict(is_query=True, fill_empty=True), 'fill_empty must be False for queries'),
        (dict(is_query='yes'), 'is_query must be True or False'),
        (dict(seed=-1), 'seed must be at least 0'),
    ],
)
def test_bad_options_of_encodings(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        encode(randn(2, 3, 4), **(dict(num_repetitions=2, num_bits=2, is_query=False) | options))
