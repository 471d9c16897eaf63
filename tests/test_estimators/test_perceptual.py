# SPDX-License-Identifier: Apache-2.0
"""PerceptualClusterer: the families it was trained on, any size of set, real plots with several raters, files."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from clusterplug.backbones import PointClusterNet
from clusterplug.core.files import load_arrays, save_arrays
from clusterplug.datasets.scatterplots import FAMILIES, make_scatterplot
from clusterplug.estimators import PerceptualClusterer, perceptual
from clusterplug.functional import adjusted_rand_index, point_agreement, williams_index


def plots(family, number, num_points=64, num_raters=0, seed=12345):
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    return [make_scatterplot(family, num_points, num_raters, rng) for _ in range(number)]


def ari(plot, labels):
    return adjusted_rand_index(torch.from_numpy(plot.labels), torch.as_tensor(labels))


@pytest.mark.parametrize('num_points', [64, 200])
def test_families_of_generated_plots(num_points):
    model = PerceptualClusterer()
    means = [
        np.mean([ari(plot, model.fit_predict(plot.points)) for plot in plots(family, 8, num_points)])
        for family in ('blobs', 'moons', 'circles')
    ]
    assert np.mean(means) >= 0.94, means


def blobs(count, number=40, spread=0.04, seed=0, dim=2):
    g = np.random.default_rng(seed)
    centers = np.stack([np.cos(np.arange(count) * 2 * np.pi / count), np.sin(np.arange(count) * 2 * np.pi / count)], 1)
    return np.concatenate([g.normal(np.pad(center, (0, dim - 2)), spread, (number, dim)) for center in centers])


def test_place_scale_order_kind_of_array():
    model, x = PerceptualClusterer(), blobs(3)
    labels = model.fit_predict(x)
    assert labels.tolist() == np.repeat([0, 1, 2], 40).tolist()
    assert model.n_clusters_ == 3
    assert model.n_features_in_ == 2
    for changed in (
        x * 1e-9,
        x * 1e9 + 1e12,
        x.astype(np.float32),
        x.copy(order='F'),
        np.ascontiguousarray(x)[:, ::-1],
    ):
        assert np.array_equal(model.fit_predict(changed), labels)
    order = np.random.default_rng(0).permutation(120)
    shuffled = model.fit_predict(x[order])
    assert ari_of(shuffled, labels[order]) == 1
    assert shuffled[0] == 0
    tensor = model.fit_predict(torch.from_numpy(x).half())
    assert isinstance(tensor, torch.Tensor)
    assert isinstance(model.agreement_, torch.Tensor)
    assert tensor.tolist() == labels.tolist()
    with torch.autocast('cpu', dtype=torch.bfloat16), torch.device('meta'):
        assert model.fit_predict(x).tolist() == labels.tolist()


def ari_of(a, b):
    return adjusted_rand_index(torch.as_tensor(a), torch.as_tensor(b))


def test_a_fit_takes_no_random_numbers_from_the_caller():
    before = torch.get_rng_state()
    PerceptualClusterer().fit(np.random.default_rng(0).random((30, 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_large_sets_follow_a_sample():
    x = blobs(3, number=4000)
    model = PerceptualClusterer(n_points=128)
    assert ari_of(model.fit_predict(x), np.repeat([0, 1, 2], 4000)) == 1
    assert model.agreement_.shape == (12000,)
    again = PerceptualClusterer(n_points=128, random_state=0).fit(x)
    assert np.array_equal(again.agreement_, model.agreement_)
    other = PerceptualClusterer(n_points=128, random_state=1).fit(x)
    assert not np.array_equal(other.agreement_, model.agreement_)


def test_a_number_of_clusters_is_kept():
    x = blobs(4)
    for count in (1, 2, 3, 4):
        labels = PerceptualClusterer(count).fit_predict(x)
        assert len(np.unique(labels)) == count
        for part in labels.reshape(4, 40):  # a blob is not torn while fewer parts are asked for
            assert len(np.unique(part)) == 1
    assert len(np.unique(PerceptualClusterer(7).fit_predict(x))) == 7
    with pytest.raises(ValueError, match='n_clusters must be between 1 and 8'):
        PerceptualClusterer(9).fit(x)


def test_degenerate_sets():
    model = PerceptualClusterer()
    assert set(model.fit_predict(np.full((20, 2), 3.0))) == {0}
    assert len(model.fit_predict(np.eye(3)[:, :2])) == 3
    line = np.stack([np.zeros(60), np.repeat([0.0, 1.0], 30) + np.random.default_rng(0).normal(0, 0.02, 60)], 1)
    labels = model.fit_predict(line)  # no range in x: scaled by the other axis
    assert np.isfinite(model.agreement_).all()
    assert ari_of(labels, np.repeat([0, 1], 30)) > 0.8
    with pytest.raises(ValueError, match='n_samples=2 is too few'):
        model.fit(np.zeros((2, 2)))
    with pytest.raises(ValueError, match='NaN'):
        model.fit(np.full((5, 2), np.nan))


def test_other_numbers_of_features():
    x = blobs(3, dim=6)
    with pytest.raises(ValueError, match=r"X must have 2 features.*projection='pca'"):
        PerceptualClusterer().fit(x)
    model = PerceptualClusterer(projection='pca')
    assert ari_of(model.fit_predict(x), np.repeat([0, 1, 2], 40)) == 1
    assert len(model.fit_predict(x[:, :1])) == 120
    with pytest.raises(ValueError, match='projection must be one of'):
        PerceptualClusterer(projection='tsne').fit(x)


def test_networks_with_noise_three_coordinates_and_without_agreement():
    net = PointClusterNet(2, 3, depth=1, num_heads=1, noise=True)
    with torch.no_grad():
        net.classifier.weight.zero_()
        net.classifier.bias.copy_(torch.tensor([0.0, -1.0, 1.0]))  # everything is noise
    model = PerceptualClusterer(weights=net).fit(np.random.default_rng(0).random((30, 3)))
    assert set(model.labels_) == {-1}
    assert model.n_clusters_ == 0
    assert model.agreement_ is None
    assert net.training
    with pytest.raises(ValueError, match='no noise, 0'):
        PerceptualClusterer(1, weights=net).fit(np.random.default_rng(0).random((30, 3)))
    with pytest.raises(ValueError, match='n_views must be 1'):
        PerceptualClusterer(weights=PointClusterNet(2, per_axis=True)).fit(np.random.default_rng(0).random((30, 2)))
    with pytest.raises(ValueError, match='weights must be'):
        PerceptualClusterer(weights=3).fit(np.random.default_rng(0).random((30, 2)))


def test_sets_that_fill_every_column_are_split_further():
    class Halves(PointClusterNet):
        """Two columns: which half of the plot."""

        def forward(self, points, mask=None):
            left = points[..., 0] - points[..., 0].mean(1, keepdim=True)
            return torch.stack([100 * left, -100 * left], -1)

    model = PerceptualClusterer(n_views=1)
    model._load_network = lambda: Halves(2, depth=1, noise=False).eval()
    x = np.stack([np.linspace(0, 1, 128), np.zeros(128)], 1)
    for depth, count in ((0, 2), (1, 4), (2, 8)):
        model.max_depth = depth
        assert len(np.unique(model.fit_predict(x))) == count
        assert (np.diff(model.labels_) >= 0).all()


def test_save_load_clone_and_files(tmp_path):
    sklearn = pytest.importorskip('sklearn.base')
    x = blobs(3)
    model = PerceptualClusterer(n_points=64, max_depth=1).fit(x)
    model.save(tmp_path / 'model.npz')
    again = PerceptualClusterer.load(tmp_path / 'model.npz')
    assert np.array_equal(again.labels_, model.labels_)
    assert again.get_params() == model.get_params()
    assert np.array_equal(again.fit_predict(x), model.labels_)
    assert sklearn.clone(model).fit(x).agreement_.tolist() == model.agreement_.tolist()
    shipped = Path(perceptual._SHIPPED)
    assert shipped.stat().st_size <= 1 << 20
    arrays, header = load_arrays(shipped)
    assert header['cpu_seconds'] <= 600
    assert header['figures']['card'] >= 0.94
    own = PerceptualClusterer.from_pretrained(shipped, n_points=64, max_depth=1)
    assert np.array_equal(own.fit_predict(x), model.labels_)
    arrays.pop('classifier.bias')
    save_arrays(tmp_path / 'cut.npz', arrays, header)
    save_arrays(tmp_path / 'other.npz', arrays, {})
    for name, message in (('cut', 'does not fit the network'), ('other', 'describes no network')):
        with pytest.raises(ValueError, match=message):
            PerceptualClusterer.from_pretrained(tmp_path / f'{name}.npz')
    with pytest.raises(FileNotFoundError):
        PerceptualClusterer.from_pretrained(tmp_path / 'none.npz')


def test_scikit_learn_convention_with_a_projection():
    checks = pytest.importorskip('sklearn.utils.estimator_checks')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        results = checks.check_estimator(PerceptualClusterer(projection='pca'), on_skip=None, on_fail=None)
    failed = {each['check_name']: each['exception'] for each in results if each['status'] == 'failed'}
    assert not failed, failed
    assert len(results) > 30


def test_agreement_is_lower_where_raters_disagree():
    model, errors, base = PerceptualClusterer(), [], []
    for plot in plots('blobs', 10, num_raters=8) + plots('many', 10, num_raters=8):
        target = point_agreement(torch.from_numpy(plot.raters)).numpy()
        errors.append(np.abs(model.fit(plot.points).agreement_ - target).mean())
        base.append(target.mean())
    base = np.abs(np.array(base) - np.mean(base)).mean()
    assert np.mean(errors) < 0.12, (np.mean(errors), base)


def test_group_score_is_the_kappa_of_the_group():
    x, raters = blobs(3), np.tile(np.repeat([0, 1, 2], 40), (3, 1))
    model = PerceptualClusterer()
    assert model.group_score(x, raters) == model.group_score(x, raters[0]) == 1
    assert not hasattr(model, 'labels_')


@pytest.mark.slow
def test_real_plots_with_several_raters(real_data):
    cluster = pytest.importorskip('sklearn.cluster')
    mixture = pytest.importorskip('sklearn.mixture')
    file = np.load(real_data / 'scatter/scatter.npz')
    scores = {}
    for name in ('fuzzyx', 'x2'):
        x, raters = file[f'X_{name}'], torch.from_numpy(file[f'L_{name}'].astype(np.int64)) - 1
        count = int(raters[0].max()) + 1
        candidates = {
            'kmeans': cluster.KMeans(count, n_init=10, random_state=0).fit_predict(x),
            'mixture': mixture.GaussianMixture(count, n_init=10, random_state=0).fit_predict(x),
            'ours': PerceptualClusterer().fit_predict(x),
        }
        scores[name] = {key: williams_index(torch.as_tensor(value).long(), raters) for key, value in candidates.items()}
        assert scores[name]['mixture'] > scores[name]['kmeans']
        assert all(np.isfinite(list(scores[name].values())))
