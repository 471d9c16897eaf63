# SPDX-License-Identifier: Apache-2.0
"""Data sets of the deep clustering table, read from the folder of real data, and the synthetic ones of its checks."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Data(NamedTuple):
    """One data set; what a method needs and the set has not is None."""

    name: str
    truth: np.ndarray  # (N,) int64
    rows: np.ndarray | None = None  # (N, D)
    images: np.ndarray | None = None  # (N, 1, H, W), at most 16 x 16, so that a CPU trains on them in minutes
    edges: np.ndarray | None = None  # (2, E)
    views: dict[str, np.ndarray] | None = None

    @property
    def num_clusters(self) -> int:
        """True number of classes, which all methods are given."""
        return len(np.unique(self.truth))


def _numbered(labels: np.ndarray) -> np.ndarray:
    return np.unique(np.asarray(labels).reshape(-1), return_inverse=True)[1].astype(np.int64)


def digits(_: Path | None) -> Data:
    """1,797 digits of scikit-learn, 8 x 8."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Data('digits', _numbered(y), x, x.reshape(-1, 1, 8, 8))


def _pictures(name: str, file: str, folder: Path) -> Data:
    from scipy.io import loadmat

    content = loadmat(folder / 'features' / file)
    rows = np.asarray(content['fea'], np.float64)
    rows = rows / rows.max()
    images = rows.reshape(-1, 1, 16, 2, 16, 2).mean((3, 5))
    return Data(name, _numbered(content['gnd']), rows, images)


def coil20(folder: Path) -> Data:
    """1,440 pictures of 20 objects, 32 x 32."""
    return _pictures('COIL20', 'COIL20.mat', folder)


def orl(folder: Path) -> Data:
    """400 faces of 40 people, 32 x 32."""
    return _pictures('ORL', 'ORL_32x32.mat', folder)


def pie(folder: Path) -> Data:
    """2,856 faces of 68 people under many lights, 32 x 32."""
    return _pictures('PIE', 'PIE_pose27.mat', folder)


def mnist(folder: Path) -> Data:
    """The first 2,000 test digits of MNIST, 28 x 28."""
    file = np.load(folder / 'images' / 'mnist_t10k.npz')
    x = file['X'][:2000].astype(np.float64) / 255
    return Data('MNIST, 2,000', _numbered(file['y'][:2000]), x.reshape(2000, -1),
                x.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)))  # fmt: skip


def _graph(name: str, file: str, folder: Path) -> Data:
    from scipy.sparse import csr_matrix

    content = np.load(folder / 'features' / file)
    parts = (content['x_data'], content['x_indices'], content['x_indptr'])
    rows = csr_matrix(parts, shape=tuple(content['x_shape'])).toarray()
    return Data(name, _numbered(content['y']), rows, edges=content['edges'].T)


def cora(folder: Path) -> Data:
    """2,708 papers with words and citations, 7 topics."""
    return _graph('Cora', 'planetoid_cora.npz', folder)


def citeseer(folder: Path) -> Data:
    """3,327 papers with words and citations, 6 topics."""
    return _graph('Citeseer', 'planetoid_citeseer.npz', folder)


def objects(folder: Path) -> Data:
    """20 objects of COIL-100 by four frozen extractors."""
    file = np.load(folder / 'features' / 'coil100_20obj_4views.npz')
    views = {name: file[name] for name in file.files if name != 'y' and file[name].ndim == 2}
    return Data('COIL-100, 20 objects', _numbered(file['y']), views=views)


def complementary(_: Path | None) -> Data:
    """Three views of six classes, each blind to one pair of them."""
    return _complementary('complementary views', 1.0, False)


def noisy_views(_: Path | None) -> Data:
    """The same with twice the noise, and a fourth view of noise alone."""
    return _complementary('noisy views and one of noise', 2.0, True)


def _complementary(name: str, noise: float, more: bool) -> Data:
    rng = np.random.default_rng(0)
    truth, views = np.arange(6).repeat(60), {}
    for number in range(3):
        means = 1.1 * rng.standard_normal((6, 20))
        means[2 * number + 1] = means[2 * number]
        views[f'view {number}'] = means[truth] + noise * rng.standard_normal((360, 20))
    if more:
        views['noise'] = rng.standard_normal((360, 20))
    return Data(name, truth, views=views)


SETS: dict[str, Any] = {
    each.__name__: each
    for each in (digits, mnist, coil20, orl, pie, objects, complementary, noisy_views, cora, citeseer)
}
