# SPDX-License-Identifier: Apache-2.0
"""Estimators: kinds of arrays, agreement with the functions and with scikit-learn, files, life without scikit-learn."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clusterplug
from clusterplug.estimators import (
    AgglomerativeClustering,
    KMeans,
    KMedoids,
    MiniBatchKMeans,
    SpectralClustering,
)
from clusterplug.functional.kmedoids import kmedoids

ALL = [
    KMeans(4, random_state=0),
    MiniBatchKMeans(4, random_state=0, batch_size=32),
    KMedoids(4),
    SpectralClustering(4),
    AgglomerativeClustering(4),
]
WITH_CENTERS = ALL[:3]
NAMES = [type(estimator).__name__ for estimator in ALL]


def fresh(estimator):
    return type(estimator)(**estimator.get_params())


def data(num_samples=120, seed=0):
    generator = np.random.default_rng(seed)
    truth = np.arange(num_samples) % 4
    return 10 * generator.normal(size=(4, 5))[truth] + generator.normal(size=(num_samples, 5)), truth


def same_partition(first, second):
    pairs = set(zip(np.asarray(first).tolist(), np.asarray(second).tolist()))
    return len(pairs) == len(set(np.asarray(first).tolist())) == len(set(np.asarray(second).tolist()))


@pytest.mark.parametrize('estimator', ALL, ids=NAMES)
@pytest.mark.parametrize('kind', ['float64', 'float32', 'list', 'int', 'torch', 'bfloat16', 'fortran', 'reversed'])
def test_every_kind_of_array(estimator, kind):
    X, truth = data()
    X = {
        'float64': lambda: X, 'float32': lambda: X.astype(np.float32), 'list': X.tolist,
        'int': lambda: (X * 10).astype(int), 'torch': lambda: torch.from_numpy(X).float(),
        'bfloat16': lambda: torch.from_numpy(X).bfloat16(), 'fortran': lambda: np.asfortranarray(X),
        'reversed': lambda: X[::-1][:, ::-1],
    }[kind]()  # fmt: skip
    truth = truth[::-1] if kind == 'reversed' else truth
    model = fresh(estimator)
    labels = model.fit_predict(X)
    assert same_partition(labels, truth)
    expected = torch.Tensor if kind in ('torch', 'bfloat16') else np.ndarray
    for name, value in vars(model).items():
        if name.endswith('_') and not np.isscalar(value):
            assert isinstance(value, expected), name
    assert model.n_features_in_ == 5


@pytest.mark.parametrize('estimator', WITH_CENTERS, ids=NAMES[:3])
def test_predict_and_transform(estimator):
    X, _ = data()
    model = fresh(estimator).fit(X)
    assert np.array_equal(model.predict(X), model.labels_)
    distances = np.linalg.norm(X[:, None] - model.cluster_centers_[None], axis=-1)
    np.testing.assert_allclose(model.transform(X), distances, rtol=1e-6, atol=1e-5)
    # A model of arrays serves tensors, and the other way round.
    tensor = torch.from_numpy(X)
    assert torch.equal(model.predict(tensor), torch.from_numpy(model.labels_))
    other = fresh(estimator).fit(tensor)
    assert np.array_equal(other.predict(X), other.labels_.numpy())


def test_kmeans_equals_scikit_learn_from_given_centers():
    sklearn_cluster = pytest.importorskip('sklearn.cluster')
    X = np.random.default_rng(1).normal(size=(300, 6))
    start = X[:7]
    ours = KMeans(7, init=start, tol=0, max_iter=300).fit(X)
    theirs = sklearn_cluster.KMeans(7, init=start, n_init=1, tol=0, max_iter=300).fit(X)
    assert np.array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-9)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-9)


def test_weights_equal_repetition_from_given_centers():
    X, _ = data(60)
    weights = np.random.default_rng(2).integers(1, 4, 60)
    repeated = KMeans(4, init=X[:4]).fit(np.repeat(X, weights, axis=0))
    weighted = KMeans(4, init=X[:4]).fit(X, sample_weight=weights)
    np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, rtol=1e-9)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_)


def test_more_starts_are_never_worse():
    X = np.random.default_rng(3).normal(size=(200, 2))
    one = KMeans(12, random_state=5).fit(X).inertia_
    assert KMeans(12, random_state=5, n_init=8).fit(X).inertia_ <= one


def test_random_state():
    X = np.random.default_rng(4).normal(size=(200, 3))
    for seed in (7, np.int64(7)):
        assert np.array_equal(KMeans(9, random_state=seed).fit(X).labels_, KMeans(9, random_state=7).fit(X).labels_)
    draws = np.random.RandomState(0)
    first = KMeans(9, random_state=draws).fit(X).inertia_
    assert first == KMeans(9, random_state=np.random.RandomState(0)).fit(X).inertia_
    KMeans(9, random_state=torch.Generator().manual_seed(1)).fit(X)
    before = torch.random.get_rng_state()
    KMeans(9, random_state=1).fit(X)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match='random_state'):
        KMeans(3, random_state='seed').fit(X)


def test_minibatch_partial_fit_by_hand():
    model = MiniBatchKMeans(2, init=np.array([[0.0], [10.0]]))
    model.partial_fit(np.array([[1.0], [3.0], [9.0]]))
    assert model.cluster_centers_.tolist() == [[2.0], [9.0]]
    model.partial_fit(np.array([[5.0], [5.0]]))  # the two so far had mean 2 and count 2
    assert model.cluster_centers_.tolist() == [[3.5], [9.0]]
    assert model.counts_.tolist() == [4, 1]
    assert model.n_steps_ == 2
    assert model.labels_.tolist() == [0, 0]


def test_minibatch_sums_bfloat16_batches_in_float32():
    X = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).bfloat16() + 8
    model = MiniBatchKMeans(2, init=X[:2].float().numpy(), batch_size=20, max_iter=1, random_state=0).fit(X)
    full = MiniBatchKMeans(2, init=X[:2].float().numpy(), batch_size=20, max_iter=1, random_state=0).fit(X.float())
    assert model.cluster_centers_.dtype == torch.bfloat16
    torch.testing.assert_close(model.cluster_centers_, full.cluster_centers_.bfloat16())


def test_minibatch_comes_close_to_kmeans():
    X = np.random.default_rng(5).normal(size=(3000, 4))
    full = KMeans(10, random_state=0, n_init=3).fit(X).inertia_
    batches = MiniBatchKMeans(10, random_state=0, batch_size=256, max_iter=20).fit(X).inertia_
    assert batches < 1.1 * full


def test_partial_fit_needs_enough_samples_at_first_only():
    model = MiniBatchKMeans(5, random_state=0)
    with pytest.raises(ValueError, match='n_samples=3'):
        model.partial_fit(np.zeros((3, 2)))
    model.partial_fit(np.random.default_rng(0).normal(size=(20, 2)))
    model.partial_fit(np.zeros((1, 2)))
    with pytest.raises(ValueError, match='features'):
        model.partial_fit(np.zeros((4, 3)))


def test_kmedoids_equals_the_function():
    X, _ = data()
    result, model = kmedoids(torch.from_numpy(X), 6), KMedoids(6).fit(X)
    assert model.medoid_indices_.tolist() == result.medoids.tolist()
    assert np.array_equal(model.cluster_centers_, X[model.medoid_indices_])
    assert model.inertia_ == pytest.approx(result.cost.item())
    swapped = KMedoids(6, method='swap').fit(X)
    assert swapped.inertia_ <= model.inertia_ * (1 + 1e-9)


def test_kmedoids_precomputed():
    X, _ = data(40)
    distances = np.linalg.norm(X[:, None] - X[None], axis=-1)
    model = KMedoids(4, metric='precomputed').fit(distances)
    assert model.cluster_centers_ is None
    assert np.array_equal(model.predict(distances), model.labels_)
    assert np.array_equal(model.transform(distances[:7]), distances[:7][:, model.medoid_indices_])


def test_agglomerative_equals_scikit_learn():
    sklearn_cluster = pytest.importorskip('sklearn.cluster')
    X = np.random.default_rng(6).normal(size=(70, 3))
    for linkage in ('ward', 'average', 'complete', 'single'):
        ours = AgglomerativeClustering(6, linkage=linkage).fit(X)
        theirs = sklearn_cluster.AgglomerativeClustering(6, linkage=linkage, compute_distances=True).fit(X)
        assert same_partition(ours.labels_, theirs.labels_)
        np.testing.assert_allclose(ours.distances_, theirs.distances_, rtol=1e-9)
        height = float(ours.distances_[40:42].mean())
        ours = AgglomerativeClustering(None, linkage=linkage, distance_threshold=height).fit(X)
        theirs = sklearn_cluster.AgglomerativeClustering(None, linkage=linkage, distance_threshold=height).fit(X)
        assert ours.n_clusters_ == theirs.n_clusters_
        assert same_partition(ours.labels_, theirs.labels_)


@pytest.mark.parametrize('estimator', ALL, ids=NAMES)
@pytest.mark.parametrize('convert', [np.asarray, torch.as_tensor, lambda X: torch.as_tensor(X).bfloat16()])
def test_save_load_and_pickle(estimator, convert, tmp_path):
    X = convert(data()[0])
    model = fresh(estimator).fit(X)
    path = tmp_path / 'model.npz'
    model.save(path)
    for copy in (type(model).load(path), pickle.loads(pickle.dumps(model))):
        assert copy.get_params() == model.get_params()
        assert vars(copy).keys() == vars(model).keys()
        for name, value in vars(model).items():
            other = getattr(copy, name)
            assert type(other) is type(value)
            if isinstance(value, torch.Tensor):
                assert torch.equal(other, value)
                assert other.dtype == value.dtype
            else:
                assert np.array_equal(other, value)
    assert [file.name for file in tmp_path.iterdir()] == ['model.npz']


def test_save_keeps_array_arguments_and_refuses_what_it_cannot_write(tmp_path):
    X, _ = data()
    model = KMeans(4, init=X[:4]).fit(X)
    model.save(tmp_path / 'a.npz')
    assert np.array_equal(KMeans.load(tmp_path / 'a.npz').init, X[:4])
    with pytest.raises(ValueError, match='random_state'):
        KMeans(4, random_state=torch.Generator()).fit(X).save(tmp_path / 'b.npz')
    assert not (tmp_path / 'b.npz').exists()
    with pytest.raises(ValueError, match='holds a KMeans'):
        KMedoids.load(tmp_path / 'a.npz')
    cut = (tmp_path / 'a.npz').read_bytes()[:-100]
    (tmp_path / 'cut.npz').write_bytes(cut)
    with pytest.raises(ValueError, match='cut off'):
        KMeans.load(tmp_path / 'cut.npz')
    with pytest.raises(FileNotFoundError):
        KMeans.load(tmp_path / 'missing.npz')


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    X, _ = data()
    path = tmp_path / 'model.npz'
    KMeans(4, random_state=0).fit(X).save(path)
    before = path.read_bytes()

    def full_disk(file, array, **options):
        file.write(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(np.lib.format, 'write_array', full_disk)
    with pytest.raises(OSError, match='No space'):
        KMeans(3, random_state=0).fit(X).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ['model.npz']


@pytest.mark.parametrize('estimator', ALL, ids=NAMES)
def test_verbose_prints_and_default_is_silent(estimator, capsys):
    X, _ = data()
    fresh(estimator).fit(X)
    assert capsys.readouterr().out == ''
    fresh(estimator).set_params(verbose=1).fit(X)
    assert type(estimator).__name__ in capsys.readouterr().out


@pytest.mark.parametrize('estimator', ALL, ids=NAMES)
def test_bad_input(estimator):
    X = torch.from_numpy(data()[0])
    bad = [
        (X[0], 'Reshape'), (X[:0], 'at least one'), (X[:, :0], 'at least one'), (X[:2], 'n_samples=2'),
        (torch.full_like(X, float('nan')), 'NaN'), (torch.full((9, 2), 1j), 'real'),
    ]  # fmt: skip
    for value, words in bad:
        with pytest.raises(ValueError, match=words):
            fresh(estimator).fit(value)
    for count in (0, 2.5, True, 'two'):
        with pytest.raises(ValueError, match='n_clusters'):
            fresh(estimator).set_params(n_clusters=count).fit(X)
    if hasattr(estimator, 'predict'):
        with pytest.raises((ValueError, AttributeError), match='not fitted'):
            fresh(estimator).predict(X)
        with pytest.raises(ValueError, match='5 features'):
            fresh(estimator).fit(X).predict(X[:, :3])


WITHOUT_SCIKIT_LEARN = """
import sys
sys.modules['sklearn'] = None
import numpy as np, pickle, torch
from clusterplug.estimators import *
from clusterplug import estimators
X = np.repeat(np.eye(4), 6, axis=0) * 10 + np.linspace(0, 1, 24)[:, None]
for name in ('AgglomerativeClustering', 'KMeans', 'KMedoids', 'MiniBatchKMeans', 'SpectralClustering'):
    model = getattr(estimators, name)(4)
    labels = model.fit_predict(X)
    assert len(set(labels.tolist())) == 4, name
    assert 'n_clusters=4' in repr(model) or name == 'x', repr(model)
    assert model.get_params()['n_clusters'] == 4
    assert type(model.fit_predict(torch.from_numpy(X))) is torch.Tensor
    if hasattr(model, 'transform'):
        assert model.fit_transform(X).shape == (24, 4)
        try:
            getattr(estimators, name)(4).predict(X)
        except ValueError as error:
            assert 'not fitted' in str(error)
        else:
            raise SystemExit('predict before fit passed')
    for bad, words in ((X[0], 'Reshape'), (X * np.nan, 'NaN'), (X.astype(str), 'real'), (X[:0], 'at least one')):
        try:
            getattr(estimators, name)(4).fit(bad)
        except ValueError as error:
            assert words in str(error), error
        else:
            raise SystemExit(f'{name} took {words}')
    try:
        model.set_params(k=3)
    except ValueError as error:
        assert 'Invalid parameter' in str(error)
    pickle.loads(pickle.dumps(model)).set_params(n_clusters=2).fit(X)
print('fine')
"""


def test_without_scikit_learn():
    root = Path(clusterplug.__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', WITHOUT_SCIKIT_LEARN], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == 'fine', done.stderr


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_half_precision_medoids_predict_their_labels(dtype, metric):
    X = torch.randn(300, 24, generator=torch.Generator().manual_seed(3)).to(dtype) + 2
    model = KMedoids(12, metric=metric).fit(X)
    assert torch.equal(model.predict(X), model.labels_)
    assert model.inertia_ == pytest.approx(float(model.transform(X).min(1).values.double().sum()))


def test_contracts_of_scikit_learn():
    pandas = pytest.importorskip('pandas')
    X, _ = data()
    model = KMeans(3, random_state=0).fit(pandas.DataFrame(X, columns=list('abcde')))
    assert not hasattr(model.fit(torch.from_numpy(X[:, :2])), 'feature_names_in_')
    runs = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        runs.append(KMeans(9).fit(X).cluster_centers_)
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    with pytest.raises(ValueError, match='sample_weight'):
        KMeans(3).fit(X, sample_weight=0.0)
    for threshold, expected in ((2.0, 3), (np.nextafter(2.0, 3), 2), (0.0, 4)):
        model = AgglomerativeClustering(None, distance_threshold=threshold, linkage='single')
        model.fit(np.array([[0.0], [1.0], [3.0], [6.0]]))
        assert model.n_clusters_ == expected
