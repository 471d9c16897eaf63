# SPDX-License-Identifier: Apache-2.0
"""One network over several views: JULE, DEC and IDEC on views that complement each other; banks; resume."""

import numpy as np
import pytest
import torch

from clusterplug.estimators import MultiViewClustering
from clusterplug.estimators.deep.multi_view import merge_schedule
from clusterplug.functional import adjusted_rand_index, normalized_mutual_info


def views_of(seed=0, classes=6, each=30, dims=20):
    """View v shows classes 2v and 2v + 1 as one."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(classes), each)
    views = []
    for view in range(classes // 2):
        means = 1.3 * rng.normal(size=(classes, dims))
        means[2 * view + 1] = means[2 * view]
        views.append(means[truth] + rng.normal(size=(len(truth), dims)))
    return views, torch.as_tensor(truth)


VIEWS, TRUTH = views_of()
QUICK = dict(normalize=None, random_state=0, period_epochs=8, pretrain_epochs=20, epochs=10, lr=3e-3, batch_size=60)


def score(labels):
    return float(normalized_mutual_info(torch.as_tensor(labels), TRUTH))


@pytest.mark.parametrize('objective', ['jule', 'dec', 'idec'])
def test_what_no_view_shows_alone(objective):
    model = MultiViewClustering(6, objective, **QUICK).fit(VIEWS)
    assert score(model.labels_) >= 0.95
    assert max(model.view_agreement_) < 0.95
    assert score(model.predict(VIEWS)) >= 0.95
    assert model.transform(VIEWS).shape == (180, 32)
    assert model.predict_proba(VIEWS).shape == (180, 6)
    assert model.cluster_centers_.shape == (6, 32)


def test_order_of_samples_plays_no_part_and_noise_does_little():
    order = np.random.default_rng(1).permutation(180)
    labels = MultiViewClustering(6, **QUICK).fit_predict([view[order] for view in VIEWS])
    assert float(normalized_mutual_info(torch.as_tensor(labels), TRUTH[order])) >= 0.95
    noise = np.random.default_rng(2).normal(size=(180, 20))
    best = max(MultiViewClustering(6, **QUICK).fit(VIEWS).view_agreement_)
    assert score(MultiViewClustering(6, **QUICK).fit_predict([*VIEWS, noise])) > best - 0.05


def test_gradient_reaches_every_branch():
    model = MultiViewClustering(6, **{**QUICK, 'period_epochs': 0}).fit(VIEWS)
    x = model._read(VIEWS, reset=False).tensor
    model._state.tensors['labels'] = model._state.tensors['chains']
    generator = torch.Generator().manual_seed(0)
    model._triplets(x, torch.arange(180), generator).backward()
    for branch in model.network_.encoder.branches:
        assert branch[0].weight.grad.norm() > 0


def test_triplets_by_plain_loops():
    model = MultiViewClustering(6, **{**QUICK, 'period_epochs': 0, 'n_negatives': 999}).fit(VIEWS)
    x = model._read(VIEWS, reset=False).tensor
    model._state.tensors['labels'] = TRUTH // 2
    rows = torch.arange(0, 180, 9)
    loss = model._triplets(x, rows, torch.Generator().manual_seed(0))
    z = torch.nn.functional.normalize(model.network_.encoder(x[rows]), dim=-1).detach()
    labels, terms = (TRUTH // 2)[rows], []
    for a in range(20):
        for p in range(20):
            for n in range(20):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    terms.append((2 * (z[a] - z[p]).square().sum() - (z[a] - z[n]).square().sum() + 0.5).clamp_min(0))
    torch.testing.assert_close(loss.detach(), torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_schedule():
    assert merge_schedule(50, 6, 0.9) == [50, 6]
    for rate in (0.1, 0.5, 1.0):
        counts = merge_schedule(97, 7, rate)
        assert counts[-1] == 7
        assert all(after < before for before, after in zip(counts, counts[1:]))
    assert merge_schedule(7, 7, 0.9) == [7]


def test_one_view_names_and_a_mapped_bank(tmp_path):
    single = MultiViewClustering(6, **QUICK).fit(VIEWS[0])
    assert single.view_names_ == ['0']
    bank = {}
    for name, view in zip('abc', VIEWS, strict=True):
        np.save(tmp_path / f'{name}.npy', view.astype(np.float16))
        bank[name] = np.load(tmp_path / f'{name}.npy', mmap_mode='r')
    model = MultiViewClustering(6, **QUICK).fit(bank)
    assert score(model.labels_) >= 0.95
    shuffled = {name: bank[name] for name in 'cab'}
    assert np.array_equal(model.predict(shuffled), model.predict(bank)), 'views are found by name'
    model.save(tmp_path / 'model.npz')
    loaded = MultiViewClustering.load(tmp_path / 'model.npz')
    assert np.array_equal(loaded.predict(bank), model.predict(bank))
    tensors = MultiViewClustering(6, **QUICK).fit([torch.from_numpy(view) for view in VIEWS])
    assert isinstance(tensors.labels_, torch.Tensor)


@pytest.mark.parametrize('at', [3, 10])
def test_stopped_and_resumed(tmp_path, at):
    options = {**QUICK, 'unrolling_rate': 0.5}
    expected = MultiViewClustering(6, **options).fit(VIEWS)
    model = MultiViewClustering(6, **options)
    plain = model._triplets
    counts = iter(range(99))

    def limited(x, rows, generator):
        if next(counts) == at:
            raise KeyboardInterrupt
        return plain(x, rows, generator)

    model._triplets = limited
    with pytest.warns(UserWarning, match='was stopped'):
        model.fit(VIEWS)
    assert len(np.unique(model.labels_)) == 6
    model.save(tmp_path / 'part.npz')
    again = MultiViewClustering.load(tmp_path / 'part.npz').fit(VIEWS, resume=True)
    assert np.array_equal(again.transform(VIEWS), expected.transform(VIEWS))
    assert adjusted_rand_index(torch.as_tensor(again.labels_), torch.as_tensor(expected.labels_)) == 1


def test_bad_input():
    for bad, match in [
        ([VIEWS[0], VIEWS[1][:50]], 'other numbers'), ([VIEWS[0] * np.nan], 'finite'), (VIEWS[0][:4], 'n_clusters=6'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            MultiViewClustering(6, **QUICK).fit(bad)
    for options, match in [
        ({'objective': 'vade'}, 'objective'), ({'normalize': 'max'}, 'normalize'), ({'unrolling_rate': 0}, 'unrolling'),
        ({'n_negatives': 0}, 'n_negatives'), ({'margin': -1}, 'margin'), ({'hidden': 0}, 'hidden'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            MultiViewClustering(6, **{**QUICK, **options}).fit(VIEWS)
    model = MultiViewClustering(6, **{**QUICK, 'period_epochs': 1}).fit(dict(zip('abc', VIEWS, strict=True)))
    with pytest.raises(ValueError, match='must hold the views'):
        model.predict(VIEWS)
    with pytest.raises(ValueError, match='features as in fit'):
        model.predict({'a': VIEWS[0][:, :3], 'b': VIEWS[1], 'c': VIEWS[2]})
    with pytest.warns(UserWarning, match='constant'):
        MultiViewClustering(6, **{**QUICK, 'period_epochs': 1}).fit([VIEWS[0], np.ones((180, 2))])
    assert MultiViewClustering(1, **QUICK).fit(VIEWS[0][:1]).labels_.tolist() == [0]
    clone = pytest.importorskip('sklearn.base').clone(model)
    assert clone.get_params() == model.get_params()


@pytest.mark.slow
def test_pictures_of_objects(real_data):
    """Fusion is to reach the mean of the views and to stay within 0.03 of the best (Ward: mean .872, best .917)."""
    from clusterplug.functional import clustering_accuracy

    bank = np.load(real_data / 'features' / 'coil100_20obj_4views.npz')
    truth = torch.from_numpy(bank['y'].astype('int64'))
    views = {
        name: bank[name] for name in ('mobilenet_v2', 'efficientnet_lite0', 'efficientnet_lite1', 'dinov2_s14_98px')
    }
    labels = MultiViewClustering(20, random_state=0).fit_predict(views)
    assert clustering_accuracy(torch.as_tensor(labels), truth) >= 0.917 - 0.03
