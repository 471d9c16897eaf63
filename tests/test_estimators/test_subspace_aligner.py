# SPDX-License-Identifier: Apache-2.0
"""SubspaceAligner: planted subspaces, digits halves, invariants of CCA, and what it says of bad anchors."""

import warnings

import numpy as np
import pytest
import torch

from clusterplug.estimators import SubspaceAligner
from clusterplug.functional import cca, linear_cka


def planted(seed=0, anchors=3000, queries=200, shared=10, private=60, noise=1.0):
    g = np.random.default_rng(seed)
    common = g.standard_normal((anchors + queries, shared))
    sides = []
    for width in (128, 96):
        own = noise * g.standard_normal((anchors + queries, private))
        mix = g.standard_normal((shared + private, width)) / np.sqrt(shared + private)
        sides.append(np.concatenate([common, own], 1) @ mix + 0.01 * g.standard_normal((anchors + queries, width)))
    (x, y) = sides
    return x[:anchors], y[:anchors], x[anchors:], y[anchors:]


@pytest.fixture(scope='module')
def data():
    return planted()


def test_unbiased_cka_of_noise():
    """Check 1 of the method: 100 draws at n = 32, 8 and 512 dimensions."""
    for width, biased in ((8, 0.21), (512, 0.94)):
        g = torch.Generator().manual_seed(0)
        pairs = [torch.randn(2, 32, width, generator=g, dtype=torch.float64) for _ in range(100)]
        assert abs(np.mean([float(linear_cka(*pair)) for pair in pairs])) <= 0.02
        assert np.mean([float(linear_cka(*pair, biased=True)) for pair in pairs]) == pytest.approx(biased, abs=0.02)
    x = pairs[0][0][:, :6]
    q = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    center = torch.eye(32, dtype=torch.float64) - 1 / 32
    y = pairs[0][1][:, :5]
    k, l = center @ x @ x.T @ center, center @ y @ y.T @ center  # noqa: E741
    assert float(linear_cka(x, 3 * x @ q)) == pytest.approx(1, abs=1e-10)
    gram = (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()
    assert float(linear_cka(x, y, biased=True)) == pytest.approx(float(gram), abs=1e-10)


def test_correlations_equal_cca_and_do_not_change_with_the_basis():
    """Check 2: the same as functional.cca on the rows themselves; all 1 for Y = X M; X -> X M changes nothing."""
    g = np.random.default_rng(0)
    x = g.standard_normal((400, 8)) + 5
    y = np.concatenate([x[:, :3] + g.standard_normal((400, 3)), g.standard_normal((400, 3))], 1)
    plain = SubspaceAligner(4, ridge=0).fit(x, y)
    exact = cca(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(plain.canonical_correlations_, exact.correlations, atol=1e-10)
    np.testing.assert_allclose(plain.x_weights_, exact.x_weights[:, :4], atol=1e-7)
    mixed = SubspaceAligner(4, ridge=0).fit(x @ g.standard_normal((8, 8)), y)
    np.testing.assert_allclose(mixed.canonical_correlations_, plain.canonical_correlations_, atol=1e-9)
    same = SubspaceAligner(4, ridge=0).fit(x, x @ g.standard_normal((8, 8)))
    np.testing.assert_allclose(same.canonical_correlations_, 1, atol=1e-9)
    np.testing.assert_allclose(same.held_out_correlations_, 1, atol=1e-9)


def test_projected_anchors_are_white():
    """Check 3: W_x^T C_x W_x = I and W_x^T C_xy W_y = diag(S)."""
    x, y, *_ = planted(anchors=600)
    found = SubspaceAligner(12, ridge=0).fit(x, y)
    a, b = found.transform_x(x), found.transform_y(y)
    np.testing.assert_allclose(a.T @ a / len(x), np.eye(12), atol=1e-8)
    np.testing.assert_allclose(a.T @ b / len(x), np.diag(found.canonical_correlations_[:12]), atol=1e-8)


def test_affine_map_of_the_whole_space_is_exact():
    """Check 5: data related by an affine map match without error, in both directions."""
    g = np.random.default_rng(0)
    x = g.standard_normal((300, 12))
    y = x @ g.standard_normal((12, 12)) + 7
    for direction in ('y->x', 'x->y'):
        found = SubspaceAligner('full', direction=direction).fit(x[:200], y[:200])
        assert (found.match(x[200:], y[200:]) == np.arange(100)).all()
        assert (found.retrieve(x[200:], y[200:], 1)[:, 0] == np.arange(100)).all()


@pytest.mark.parametrize('method', ['affine', 'local_cka', 'cosine'])
def test_planted_subspace(data, method):
    """Check 6: ten shared latents among sixty private ones are found, and matched without error."""
    a, b, x, y = data
    found = SubspaceAligner('auto', method).fit(a, b)
    assert found.n_components_ == 10
    assert (found.canonical_correlations_[:10] > 0.98).all()
    assert found.canonical_correlations_[10] < 0.35
    assert found.held_out_correlations_[10] < 0.2
    numbers = found.evaluate(x, y)
    assert numbers['match'] == numbers['top5'] == 1
    assert numbers['chance_match'] == pytest.approx(1 / 200)
    assert numbers['chance_top5'] == pytest.approx(5 / 200)
    if method != 'cosine':
        raw = SubspaceAligner('full', method, cv=0).fit(a, b).evaluate(x, y)
        wide = SubspaceAligner(50, method, cv=0).fit(a, b).evaluate(x, y)
        assert raw['match'] < 0.6 < wide['match'] < 1
    else:
        weighted = SubspaceAligner(50, 'cosine', weight='corr', cv=0).fit(a, b).evaluate(x, y)
        assert weighted['match'] > SubspaceAligner(50, 'cosine', cv=0).fit(a, b).evaluate(x, y)['match']


def test_three_times_the_private_noise():
    a, b, x, y = planted(noise=3.0)
    assert SubspaceAligner(10).fit(a, b).evaluate(x, y)['match'] > 0.98
    assert SubspaceAligner('full', cv=0).fit(a, b).evaluate(x, y)['match'] < 0.2


def test_halves_of_digits():
    """Check 7: top halves against bottom halves; the subspace helps local CKA and the first five of both."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order][:, :4].reshape(-1, 32), images[order][:, 4:].reshape(-1, 32)
    fit, query = slice(0, 1500), slice(1500, 1700)
    found = {}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*constant features')
        for method in ('affine', 'local_cka'):
            for number in ('full', 12):
                aligner = SubspaceAligner(number, method, cv=0).fit(x[fit], y[fit])
                found[method, number] = aligner.evaluate(x[query], y[query])
    for method in ('affine', 'local_cka'):
        assert found[method, 12]['top5'] > found[method, 'full']['top5'] + 0.05
        assert found[method, 12]['match'] > 0.1
    assert found['local_cka', 12]['match'] > 2 * found['local_cka', 'full']['match']


def test_few_anchors_over_fit_and_are_warned_of():
    g = np.random.default_rng(0)
    x, y = g.standard_normal((60, 25)), g.standard_normal((60, 25))
    with pytest.warns(UserWarning, match='are few') as caught:
        found = SubspaceAligner(5, ridge=0).fit(x, y)
    words = ' '.join(str(each.message) for each in caught)
    assert '60 anchors are few for 25 + 25 features' in words
    assert found.canonical_correlations_[0] > 0.9
    assert abs(found.held_out_correlations_).max() < 0.4
    with pytest.warns(UserWarning, match='no component correlates on held-out anchors'):
        SubspaceAligner(2).fit(g.standard_normal((4000, 3)), g.standard_normal((4000, 3)))


def test_constant_features_take_no_part(data):
    a, b, x, y = data
    plain = SubspaceAligner(10, cv=0).fit(a, b)
    wide = np.insert(a, [3, 100], 7.0, axis=1), np.insert(x, [3, 100], [9.0, -1e6], axis=1)
    with pytest.warns(UserWarning, match='2 constant features of X are ignored'):
        found = SubspaceAligner(10, cv=0).fit(wide[0], b)
    np.testing.assert_allclose(found.score_matrix(wide[1], y), plain.score_matrix(x, y), atol=1e-9)
    assert found.x_weights_.shape == (130, 10)


def test_repeated_captions_are_reported_and_counted(data):
    a, b, x, y = data
    found = SubspaceAligner(10, cv=0).fit(a, b)
    y, x = y[:40].copy(), x[:40].copy()
    y[20:], x[20:] = y[:20], x[:20] + 1e-3
    with pytest.warns(UserWarning, match='Y holds 40 rows, of which only 20 are different'):
        pairs = found.match(x, y)
    assert (pairs % 20 == np.arange(40) % 20).all()
    numbers = found.evaluate(x, y)
    assert numbers['match'] == 1
    assert numbers['repeated'] == 40
    assert numbers['chance_match'] == pytest.approx(2 / 40)


def test_ties_do_not_favor_the_order():
    a, b, *_ = planted(anchors=400)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = SubspaceAligner(5, cv=0).fit(a, b)
        blind = np.repeat(a[:1], 100, 0), np.repeat(b[:1], 100, 0)
        assert (found.match(*blind) == np.arange(100)).mean() < 0.1
        assert (found.retrieve(*blind, 1)[:, 0] == np.arange(100)).mean() < 0.1


def test_tensors_sizes_and_files(data, tmp_path):
    a, b, x, y = data
    found = SubspaceAligner(10, 'local_cka').fit(a, b)
    tensors = SubspaceAligner(10, 'local_cka').fit(*(torch.from_numpy(each).float() for each in (a, b)))
    scores = tensors.score_matrix(torch.from_numpy(x[:5]), torch.from_numpy(y[:7]))
    assert isinstance(scores, torch.Tensor)
    np.testing.assert_allclose(scores, found.score_matrix(x[:5], y[:7]), atol=1e-6)
    assert sorted(found.match(x[:9], y[:5]).tolist())[:4] == [-1] * 4
    found.save(tmp_path / 'aligner.npz')
    again = SubspaceAligner.load(tmp_path / 'aligner.npz')
    assert np.array_equal(again.score_matrix(x, y), found.score_matrix(x, y))
    assert again.n_components_ == 10
    cut = SubspaceAligner(10).fit(a.astype(np.float16), b.T.copy().T)
    assert cut.canonical_correlations_.dtype == np.float64


def test_order_of_blocks_and_seed(data):
    a, b, x, y = data
    one = SubspaceAligner(10, random_state=0).fit(a, b)
    other = SubspaceAligner(10, random_state=5, cv=3).fit(a[::-1], b[::-1])
    np.testing.assert_allclose(one.canonical_correlations_, other.canonical_correlations_, atol=1e-10)
    np.testing.assert_allclose(one.score_matrix(x, y), other.score_matrix(x, y), atol=1e-8)


@pytest.mark.parametrize(
    ('options', 'rows', 'words'),
    [
        ({}, (10, 9), 'Y must hold the partners of X, 10 rows, got 9'),
        ({}, (3, 3), 'at least 4 anchors'),
        ({'n_components': 0}, (50, 50), 'n_components'),
        ({'n_components': 'gap'}, (50, 50), 'n_components'),
        ({'n_components': 9}, (50, 50), 'n_components must be at most 4'),
        ({'method': 'procrustes'}, (50, 50), 'method'),
        ({'ridge': -1.0}, (50, 50), 'ridge'),
        ({'cv': 1}, (50, 50), 'cv must be 0 or at least 2'),
        ({'direction': 'both'}, (50, 50), 'direction'),
        ({'weight': 'rank'}, (50, 50), 'weight'),
        ({'n_components': 'full', 'method': 'cosine'}, (50, 50), 'no common space'),
    ],
)
def test_bad_input(options, rows, words):
    g = np.random.default_rng(0)
    with pytest.raises(ValueError) as caught:
        SubspaceAligner(**{'n_components': 2, **options}).fit(
            g.standard_normal((rows[0], 4)), g.standard_normal((rows[1], 5))
        )
    assert words in str(caught.value)


def test_bad_arrays(data):
    a, b, x, y = data
    with pytest.raises(ValueError, match='not fitted yet'):
        SubspaceAligner().match(x, y)
    found = SubspaceAligner(5, cv=0).fit(a, b)
    for call, words in (
        (lambda: found.match(y, x), 'X has 96 features'),
        (lambda: found.match(x * np.nan, y), 'X must be finite'),
        (lambda: found.retrieve(x, y[:3]), 'k must be between 1 and 3'),
        (lambda: found.evaluate(x, y[:3]), 'partners'),
        (lambda: SubspaceAligner(2).fit(np.ones((20, 2)), np.arange(40.0).reshape(20, 2)), 'a feature that varies'),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert words in str(caught.value)
