# SPDX-License-Identifier: Apache-2.0
"""SCGC and SCGC*: blocks of a random graph, forms of edges, new nodes, resume, memory, Cora at the last epoch."""

import time

import numpy as np
import pytest
import torch

from clusterplug.estimators import GraphContrastClustering, KMeans
from clusterplug.estimators.deep.graph_contrast import largest_per_row, read_edges, symmetric_adjacency
from clusterplug.functional import adjusted_rand_index, clustering_accuracy, normalized_mutual_info

SMALL = dict(hidden=(32,), embed_dims=8, order=2, temperature=1.0, pretrain_epochs=3, warmup_epochs=40, epochs=40,
             lr=3e-3, random_state=0)  # fmt: skip


def block_model(count=150, seed=0):
    """Three blocks, of which the features alone say little."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 3
    inside = truth[:, None] == truth
    adjacency = np.triu(rng.random((count, count)) < np.where(inside, 0.2, 0.02), 1)
    means = rng.normal(size=(3, 16))
    return means[truth] + 2 * rng.normal(size=(count, 16)), np.stack(np.nonzero(adjacency)), torch.as_tensor(truth)


X, EDGES, TRUTH = block_model()


def agree(labels, truth=TRUTH):
    return float(adjusted_rand_index(torch.as_tensor(labels), truth))


@pytest.mark.parametrize('options', [{}, {'cumulative': False, 'reconstruction': True}, {'node_batch': 64}])
def test_blocks_are_found(options):
    model = GraphContrastClustering(3, **{**SMALL, **options}).fit(X, EDGES)
    assert agree(model.labels_) > agree(KMeans(3, n_init=10, random_state=0).fit_predict(X)) + 0.1
    assert model.soft_labels_.shape == (150, 3)
    assert model.embedding_.shape == (150, 8)
    assert np.array_equal(model.predict(X), model.labels_), 'no graph is needed later'
    assert np.array_equal(model.soft_labels_.argmax(1), model.labels_), 'labels are of the last epoch'
    last = model.history_[-1]
    assert {'contrast', 'clustering', 'label_change'} <= last.keys()
    assert ('reconstruction' in last) == bool(options.get('reconstruction'))


def test_new_nodes():
    x, edges, truth = block_model(240, seed=1)
    seen = (edges < 180).all(0)
    model = GraphContrastClustering(3, **SMALL).fit(x[:180], edges[:, seen])
    labels = model.predict(x)
    assert agree(labels[180:], truth[180:]) > 0.3
    assert model.transform(x[180:]).shape == (60, 8)


def test_forms_of_edges_are_one_graph():
    sparse = pytest.importorskip('scipy.sparse')
    quick = GraphContrastClustering(3, **{**SMALL, 'warmup_epochs': 2, 'epochs': 3})
    expected = quick.fit(X, EDGES).embedding_
    dense = np.zeros((150, 150))
    dense[EDGES[0], EDGES[1]] = 1
    loops = np.concatenate([EDGES, EDGES[::-1], EDGES[:, :9], np.arange(9).repeat(2).reshape(9, 2).T], 1)
    for form in (torch.from_numpy(EDGES), dense, dense + dense.T, sparse.csr_array(dense), loops, dense > 0,
                 torch.from_numpy(dense).to_sparse()):  # fmt: skip
        assert np.array_equal(quick.fit(X, form).embedding_, expected)
    with pytest.warns(UserWarning, match='directed'):
        quick.fit(X, np.concatenate([EDGES, EDGES[::-1, :4]], 1))
    assert quick.fit(torch.from_numpy(X), torch.from_numpy(EDGES)).embedding_.dtype == torch.float32


def test_graph_of_nearest_nodes_and_isolated_nodes():
    quick = {**SMALL, 'warmup_epochs': 2, 'epochs': 3}
    assert GraphContrastClustering(3, **quick).fit(X, knn=4).labels_.shape == (150,)
    by_default = GraphContrastClustering(3, **quick).fit(X).embedding_
    assert np.array_equal(by_default, GraphContrastClustering(3, **quick).fit(X, knn=5).embedding_)
    alone = GraphContrastClustering(3, **quick).fit(X, np.zeros((2, 0), dtype=int))
    assert np.isfinite(alone.embedding_).all()
    assert GraphContrastClustering(1, **quick).fit(X[:1]).labels_.tolist() == [0]


def test_pruned_powers():
    matrix = torch.tensor([[0.5, 0.3, 0.2, 0], [0, 1.0, 0, 0], [0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]).to_sparse()
    kept = largest_per_row(matrix, 2).to_dense()
    torch.testing.assert_close(kept.sum(1), torch.tensor([1.0, 1, 0, 1]))
    assert kept.count_nonzero(1).tolist() == [2, 1, 0, 2]
    assert torch.equal(largest_per_row(matrix, 9).to_dense(), matrix.to_dense())
    quick = {**SMALL, 'warmup_epochs': 2, 'epochs': 3}
    exact = GraphContrastClustering(3, **quick).fit(X, EDGES).embedding_
    unpruned = GraphContrastClustering(3, max_neighbors=150, **quick).fit(X, EDGES).embedding_
    np.testing.assert_allclose(unpruned, exact, atol=1e-4)
    assert agree(GraphContrastClustering(3, max_neighbors=10, **SMALL).fit(X, EDGES).labels_) > 0.6


def test_a_batch_of_all_nodes_is_the_full_loss():
    model = GraphContrastClustering(3, **{**SMALL, 'warmup_epochs': 0, 'epochs': 0}).fit(X, EDGES)
    x = torch.from_numpy(X)
    full = model._terms(x, torch.arange(150))[0]['contrast']
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert float(model._terms(x, order)[0]['contrast']) == pytest.approx(float(full), rel=0.2)
    from clusterplug.estimators.deep.graph_contrast import _among

    weights = model._weights.to_dense()
    torch.testing.assert_close(_among(model._weights, order[:40]).to_dense(), weights[order[:40]][:, order[:40]])


def test_resume_and_files(tmp_path):
    options = {**SMALL, 'warmup_epochs': 3, 'epochs': 4}
    expected = GraphContrastClustering(3, **options).fit(X, EDGES)
    path = str(tmp_path / 'fit.npz')
    model = GraphContrastClustering(3, checkpoint=path, checkpoint_every=1, **options)
    plain = model._make_phases

    def make_phases(x):
        phases = plain(x)
        counts, loss = iter(range(99)), phases[2].loss

        def limited(rows, generator):
            if next(counts) == 2:
                raise KeyboardInterrupt
            return loss(rows, generator)

        phases[2].loss = limited
        return phases

    model._make_phases = make_phases
    with pytest.warns(UserWarning, match='stopped in phase 3'):
        model.fit(X, EDGES)
    again = GraphContrastClustering(3, checkpoint=path, **options).fit(X, EDGES, resume=True)
    assert np.array_equal(again.embedding_, expected.embedding_)
    loaded = GraphContrastClustering.load(path)
    assert np.array_equal(loaded.predict(X), expected.labels_)
    clone = pytest.importorskip('sklearn.base').clone(expected)
    assert np.array_equal(clone.fit_predict(X, EDGES), expected.labels_)


def test_bad_input():
    model = GraphContrastClustering(3, **SMALL)
    for edges, match in [
        (EDGES + 1, r'nodes 0 \.\. 149'), (EDGES - 1, r'nodes 0 \.\. 149'), (EDGES.T, 'transpose'),
        (np.zeros((4, 4)), 'adjacency matrix'), (TRUTH, 'shape'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            model.fit(X, edges)
    with pytest.raises(ValueError, match='not both'):
        model.fit(X, EDGES, knn=3)
    with pytest.raises(ValueError, match='n_clusters=3'):
        model.fit(X[:2])
    for options in ({'order': 0}, {'temperature': 0}, {'node_batch': 0}, {'max_neighbors': 0}, {'cluster_weight': -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            GraphContrastClustering(3, **options).fit(X, EDGES)
    assert symmetric_adjacency(read_edges(EDGES, 150), 150).to_dense().diagonal().sum() == 0


def cora(folder):
    sparse = pytest.importorskip('scipy.sparse')
    file = np.load(folder / 'features' / 'planetoid_cora.npz')
    x = sparse.csr_matrix((file['x_data'], file['x_indices'], file['x_indptr']), shape=tuple(file['x_shape']))
    return x.toarray(), file['edges'].T, torch.from_numpy(file['y'])


@pytest.mark.slow
def test_cora_at_the_last_epoch(real_data):
    x, edges, truth = cora(real_data)
    begin = time.process_time()
    labels = torch.as_tensor(GraphContrastClustering(7, random_state=0).fit_predict(x, edges))
    assert time.process_time() - begin < 60
    assert clustering_accuracy(labels, truth) >= 0.54
    assert normalized_mutual_info(labels, truth) >= 0.44
