# SPDX-License-Identifier: Apache-2.0
"""ClusterRefreshHook: right labels in the right rows, ids that stay, the same after a resume and on two ranks."""

import itertools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mm]')

from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset, pseudo_collate
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from clusterplug.datasets.indexed_concat import IndexedConcatDataset
from clusterplug.datasets.samplers import ClusterDisjointBatchSampler
from clusterplug.hooks import ClusterRefreshHook
from clusterplug.memory import SampleTable
from clusterplug.testing.distributed import run_gloo

TRUE = np.arange(31) % 3
POINTS = torch.eye(3, 4)[TRUE] * 4 + 0.1 * torch.randn(31, 4, generator=torch.Generator().manual_seed(0))
KMEANS = dict(type='KMeans', n_clusters=3, n_init=5)
NAMES = itertools.count()


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.table = SampleTable(31, dict(label=-1, other=-1))
        self.layer = nn.Linear(4, 4)
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.prototypes = nn.Parameter(torch.eye(3, 4)[[2, 0, 1]])
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, index, mode='tensor'):
        z = self.dropout(self.layer(x))
        if mode == 'tensor':
            return z
        labels = self.table.read(index, 'label')
        return dict(loss=nn.functional.cross_entropy(z @ self.prototypes.detach().T, labels.clamp(min=0)))

    def embed_twice(self, x, index):
        return torch.cat([x, x], 1)


DATA = [dict(x=POINTS[i], index=torch.tensor(i)) for i in range(31)]


def fake(model=None, **loader):
    loader = torch.utils.data.DataLoader(DATA, **(loader or dict(batch_size=4)))
    return SimpleNamespace(
        model=model or Model(), train_dataloader=loader, logger=logging.getLogger('x'), epoch=0, iter=0
    )


def agrees(labels, order=None):
    """Whether labels are the true classes up to their numbers."""
    pairs = set(zip(labels.tolist(), TRUE.tolist()))
    return len(pairs) == 3


def test_labels_of_every_sample_in_its_row():
    runner = fake()
    hook = ClusterRefreshHook(KMEANS, table='table')
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    assert agrees(runner.model.table['label'])
    assert runner.model.table.written.all()
    assert runner.model.training  # modes are given back
    assert runner.model.dropout.training


def test_ids_stay():
    runner = fake()
    old = torch.tensor([7, 3, 5])[torch.as_tensor(TRUE)]
    old[:4] = 3  # not all of them right
    runner.model.table.write(torch.arange(31), label=old)
    hook = ClusterRefreshHook(KMEANS, table='table')
    hook.refresh(runner)
    assert torch.equal(runner.model.table['label'], torch.tensor([7, 3, 5])[torch.as_tensor(TRUE)])
    for number in range(4):  # other seeds number the clusters otherwise
        hook.refresh(runner, number)
        assert torch.equal(runner.model.table['label'], torch.tensor([7, 3, 5])[torch.as_tensor(TRUE)])
    free = {
        tuple(ClusterRefreshHook(KMEANS, table='table', match=False).refresh(fake(), n)[0].tolist()) for n in range(6)
    }
    assert len(free) > 1


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_permuted_labels_are_mapped_back_exactly(order):
    runner, old = fake(), torch.tensor(order)[torch.as_tensor(TRUE)]
    runner.model.table.write(torch.arange(31), label=old)
    ClusterRefreshHook(KMEANS, table='table').refresh(runner)
    assert torch.equal(runner.model.table['label'], old)


def test_a_new_cluster_gets_a_new_id():
    # one learner more: the larger part of what was cluster 0 keeps its id, the other one gets the id behind the last
    runner = fake()
    runner.model.table.write(torch.arange(31), label=torch.tensor([0, 0, 1])[torch.as_tensor(TRUE)])
    ClusterRefreshHook(KMEANS, table='table').refresh(runner)
    assert torch.equal(runner.model.table['label'], torch.tensor([0, 2, 1])[torch.as_tensor(TRUE)])


def test_prototypes_keep_their_rows():
    runner = fake()
    hook = ClusterRefreshHook(KMEANS, prototypes='prototypes')
    parameter = runner.model.prototypes
    (labels,) = hook.refresh(runner)
    assert runner.model.prototypes is parameter
    assert (parameter.detach() @ torch.eye(3, 4)[[2, 0, 1]].T).diagonal().gt(0.95).all()
    assert parameter.norm(dim=1).allclose(torch.ones(3))
    assert torch.equal(labels, torch.tensor([1, 2, 0])[torch.as_tensor(TRUE)])
    both = ClusterRefreshHook(KMEANS, table='table', prototypes='prototypes')
    both.refresh(runner)
    labels = both.refresh(runner, 1)[0]
    nearest = (nn.functional.normalize(POINTS, dim=1) @ parameter.detach().T).argmax(1)
    assert torch.equal(labels, nearest)


def test_several_heads_estimators_without_centers_and_other_features():
    cluster = pytest.importorskip('sklearn.cluster')
    runner = fake()
    hook = ClusterRefreshHook(
        [KMEANS, cluster.AgglomerativeClustering(2)], table='table', column=['label', 'other'], features='embed_twice'
    )
    labels = hook.refresh(runner)
    assert agrees(labels[0])
    assert torch.equal(runner.model.table['other'], labels[1])
    assert labels[1].unique().tolist() == [0, 1]
    given = ClusterRefreshHook(KMEANS, table='table', features=lambda model, data: data['x'])
    assert agrees(given.refresh(runner)[0])


def test_noise_and_bad_embeddings_get_no_label():
    cluster = pytest.importorskip('sklearn.cluster')
    runner = fake()

    def features(model, data):
        x = data['x'].clone()
        x[data['index'] == 5] = float('nan')
        x[data['index'] == 6] = torch.tensor([-9.0, -9, -9, -9])
        return x

    hook = ClusterRefreshHook(cluster.DBSCAN(0.5), table='table', features=features)
    with pytest.warns(UserWarning, match='1 of 31 embeddings are not finite'):
        hook.refresh(runner)
    assert (runner.model.table['label'] == -1).nonzero().flatten().tolist() == [5, 6]


def test_when_it_is_due():
    hook = ClusterRefreshHook(KMEANS, table='table', interval=3, begin=2)
    runner = fake()
    done = []
    hook.refresh = lambda runner, number: done.append(number)
    for runner.epoch in range(9):
        hook.before_train_epoch(runner)
        hook.before_train_iter(runner, 0)
    assert done == [2, 5, 8]
    hook.by_epoch = False
    for runner.iter in range(7):
        hook.before_train_iter(runner, 0)
        hook.before_train_epoch(runner)
    assert done == [2, 5, 8, 2, 5]


def test_the_batch_sampler_gets_the_labels_also_of_a_resumed_run():
    sampler = ClusterDisjointBatchSampler([-1] * 31, 3)
    runner = fake(batch_sampler=sampler)
    hook = ClusterRefreshHook(KMEANS, table='table', sampler=True)
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    assert all(len(set(TRUE[batch])) == 3 for batch in sampler)
    again = ClusterDisjointBatchSampler([-1] * 31, 3)
    saved = {}
    hook.before_save_checkpoint(runner, saved)
    resumed, fresh = fake(batch_sampler=again), ClusterRefreshHook(KMEANS, sampler=True)
    resumed._resume = False
    fresh.after_load_checkpoint(resumed, saved)
    fresh.before_train(resumed)
    assert list(again) != list(sampler)
    resumed._resume = True
    fresh.after_load_checkpoint(resumed, saved)
    fresh.before_train(resumed)
    assert list(again) == list(sampler)


def train(folder, epochs, resume=False):
    from clusterplug import compat

    compat.apply_all()  # checkpoints of mmengine need another default of torch.load
    torch.manual_seed(0)
    runner = Runner(
        Model(), str(folder), train_dataloader=dict(
            dataset=DATA, num_workers=0, collate_fn=dict(type='default_collate'), batch_size=3,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_sampler=dict(type='clusterplug.ClusterDisjointBatchSampler', labels=[-1] * 31, seed=1),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), resume=resume, log_level='ERROR',
        custom_hooks=[dict(
            type='clusterplug.ClusterRefreshHook', estimator=KMEANS, table='table', prototypes='prototypes',
            interval=2, sampler=True,
        )],
        experiment_name=f'refresh_{next(NAMES)}',
    )  # fmt: skip
    runner.model.dropout.p = 0.0
    runner.train()
    return runner.model


def test_in_a_runner_stopped_and_resumed(tmp_path):
    whole = train(tmp_path / 'a', 3).state_dict()
    train(tmp_path / 'b', 1)
    resumed = train(tmp_path / 'b', 3, resume=True).state_dict()
    assert agrees(whole['table.column_label'])
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


class Part(BaseDataset):
    """Some of the points, numbered from 0 as in every data set of mmengine."""

    def __init__(self, rows):
        self.rows = rows
        super().__init__(pipeline=[self.pack])

    def load_data_list(self):
        return [dict(row=row) for row in self.rows]

    @staticmethod
    def pack(found):
        sample = BaseDataElement(metainfo=dict(sample_idx=found['sample_idx']))
        return dict(inputs=POINTS[found['row']], data_samples=sample, sample_idx=found['sample_idx'])


def refresh_from(dataset):
    runner = fake()
    runner.train_dataloader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=pseudo_collate)
    hook = ClusterRefreshHook(KMEANS, table='table', features=lambda model, data: torch.stack(data['inputs']))
    hook.refresh(runner)
    return runner.model.table


def test_samples_of_several_data_sets_keep_their_rows():
    parts = [Part(range(20)), Part(range(20, 31))]
    with pytest.raises(ValueError, match=r'row 20 of the data set has sample_idx 0.*IndexedConcatDataset'):
        refresh_from(ConcatDataset(parts))
    whole = IndexedConcatDataset(parts)
    assert [whole[i]['data_samples'].sample_idx for i in (0, 19, 20, 30, -1)] == [0, 19, 20, 30, 30]
    assert whole[25]['sample_idx'] == 25
    assert agrees(refresh_from(whole)['label'])


def test_a_sample_in_the_place_of_another_gives_it_no_label():
    class Odd(Part):
        def __getitem__(self, idx):  # as mmengine's do where a pipeline gives None
            return super().__getitem__(7 if idx == 4 else idx)

    parts = [Part(range(20)), Odd(range(20, 31))]
    whole = IndexedConcatDataset(parts)
    assert whole[24]['data_samples'].sample_idx == whole[24]['sample_idx'] == 27
    with pytest.warns(UserWarning, match='1 of 31 embeddings'):
        labels = refresh_from(whole)['label']
    assert labels[24] == -1
    kept = torch.arange(31) != 24
    assert len(set(zip(labels[kept].tolist(), TRUE[kept].tolist()))) == 3


def test_a_repeated_data_set_is_read_by_its_first_rows():
    class Repeated(Model):
        def __init__(self):
            super().__init__()
            self.table = SampleTable(62, dict(label=-1))

    dataset = RepeatDataset(Part(range(31)), times=2)
    runner = SimpleNamespace(model=Repeated(), logger=logging.getLogger('x'), epoch=0, iter=0)
    runner.train_dataloader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=pseudo_collate)
    hook = ClusterRefreshHook(KMEANS, table='table', features=lambda model, data: torch.stack(data['inputs']))
    hook.refresh(runner)
    assert agrees(runner.model.table['label'][:31])


def refresh_on_rank(rank, world_size):
    runner = fake()
    hook = ClusterRefreshHook(KMEANS, table='table', prototypes='prototypes')
    hook.refresh(runner)
    return runner.model.table['label'], runner.model.prototypes.detach()


@pytest.mark.slow
def test_two_ranks_equal_one():
    expected = refresh_on_rank(0, 1)
    for labels, prototypes in run_gloo(refresh_on_rank, 2):
        assert torch.equal(labels, expected[0])
        torch.testing.assert_close(prototypes, expected[1])


@pytest.mark.parametrize(('options', 'error', 'match'), [
    (dict(), ValueError, 'table, prototypes or sampler must be given'),
    (dict(table='table', estimator=dict(type='KMean')), ValueError, 'estimator must have a type'),
    (dict(table='table', estimator=3), TypeError, 'method fit'),
    (dict(table='table', column=['a', 'b']), ValueError, 'column must be one for each of the 1'),
    (dict(prototypes=['a', 'b']), ValueError, 'prototypes must be one for each'),
    (dict(table='table', interval=0), ValueError, 'interval'),
])  # fmt: skip
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        ClusterRefreshHook(**{'estimator': KMEANS, **options})


@pytest.mark.parametrize(('options', 'match'), [
    (dict(table='tables'), "no 'tables'"),
    (dict(table='layer'), 'table must lead to a SampleTable, got Linear'),
    (dict(table='table', column='x'), 'columns label, other'),
    (dict(prototypes='layer.bias'), 'tensor'),
    (dict(prototypes='layer.weight'), 'must have the shape of the centers'),
    (dict(table='table', sampler=True), 'set_labels'),
    (dict(table='table', features='x'), 'features must be a method'),
    (dict(table='table', features=lambda model, data: data['x'][0]), r'features must give one tensor \(B, D\)'),
])  # fmt: skip
def test_what_the_model_does_not_have(options, match):
    runner, hook = fake(), ClusterRefreshHook(KMEANS, **options)

    def start():
        hook.before_train(runner)
        hook.refresh(runner)

    with pytest.raises(ValueError, match=match):
        start()
