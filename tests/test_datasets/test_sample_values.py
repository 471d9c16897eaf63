# SPDX-License-Identifier: Apache-2.0
"""Values of samples in a pipeline, ids, the sampler that draws by likelihood."""

import numpy as np
import pytest
import torch

from clusterplug.datasets.samplers import LikelihoodSampler
from clusterplug.datasets.transforms import SampleValues, sample_id
from clusterplug.estimators import SampleLikelihood
from clusterplug.memory import SampleTable
from clusterplug.registry import DATA_SAMPLERS, TRANSFORMS

PATHS = [f'/somewhere/else/sequences/{s:02}/velodyne/{i:06}.bin' for s in (8, 9) for i in range(3)]


class Scans:
    def __len__(self):
        return len(PATHS)

    def get_data_info(self, index):
        return dict(lidar_points=dict(lidar_path=PATHS[index]), sample_idx=index)


@pytest.fixture
def likelihoods(tmp_path):
    ids = ['/'.join(path.split('/')[-3:]) for path in PATHS]
    SampleLikelihood.from_labels([0, 0, 0, 0, 1, -1], ids=ids).save(tmp_path / 'p.json', key='lidar_path')
    return str(tmp_path / 'p.json')


def test_from_a_file(likelihoods):
    transform = TRANSFORMS.build(dict(type='clusterplug.SampleValues', values=likelihoods))
    results = transform(dict(lidar_path='/moved/' + PATHS[4], points=None))
    assert results['sample_likelihood'] == 0.25
    assert 'lidar_path' in repr(transform)
    with pytest.raises(ValueError, match='is not among the 6'):
        transform(dict(lidar_path='/data/sequences/10/velodyne/000000.bin'))
    with pytest.raises(ValueError, match='has no'):
        transform(dict(points=None))


def test_from_a_table():
    table = SampleTable(3, dict(likelihood=torch.tensor([0.1, 0.2, 0.3]), label=-1))
    transform = SampleValues(table, name='likelihood')
    results = transform(dict(sample_idx=1))
    assert results['likelihood'] == pytest.approx(0.2)
    assert 'label' not in results
    assert SampleValues(table)(dict(sample_idx=np.int64(2)))['label'] == -1
    table.write([2], label=[7])
    assert SampleValues(table)(dict(sample_idx=2))['label'] == 7
    for unknown in (3, -1):
        with pytest.raises(ValueError, match='is not in the table'):
            transform(dict(sample_idx=unknown))
    with pytest.raises(ValueError, match='columns'):
        SampleValues(table, name='weight')
    built = SampleValues(dict(type='clusterplug.SampleTable', num_samples=2, columns=dict(weight=[1.0, 2.0])))
    assert built(dict(sample_idx=1))['weight'] == 2.0


def test_ids():
    assert sample_id(dict(img_path='a/b/c/d.png'), 'img_path') == 'b/c/d.png'
    assert sample_id(dict(images=dict(CAM2=dict(img_path='c/d.png'))), 'img_path') == 'c/d.png'
    assert sample_id(dict(token='x/y'), 'token') == 'x/y'
    assert sample_id(dict(sample_idx=0), 'sample_idx') == 0


def test_sampler_draws_by_weight(likelihoods):
    sampler = DATA_SAMPLERS.build(
        dict(type='clusterplug.LikelihoodSampler', dataset=Scans(), likelihood=likelihoods, eta=0.5, gamma=5.0)
    )
    assert len(sampler) == len(list(sampler)) == 6  # the epoch is as long as before
    first = list(sampler)
    assert list(sampler) == first
    counts = np.zeros(6)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        counts += np.bincount(list(sampler), minlength=6)
    expected = np.r_[np.full(4, 1 / 3), np.full(2, (0.5 + 0.75**5) / 1.5)]
    assert np.allclose(counts / counts.sum(), expected / expected.sum(), atol=0.01)
    sampler.set_epoch(0)
    parts = []
    for rank in range(4):
        sampler.rank, sampler.world_size = rank, 4
        parts.append(list(sampler))
    assert [len(part) for part in parts] == [2] * 4
    assert [x for pair in zip(*parts) for x in pair][:6] == first


def test_sampler_bad_input(likelihoods):
    class Other(Scans):
        def get_data_info(self, index):
            return dict(lidar_path='x/y/z.bin')

    with pytest.raises(ValueError, match='not among'):
        LikelihoodSampler(Other(), likelihoods)
    with pytest.raises(ValueError, match='eta'):
        LikelihoodSampler(Scans(), dict.fromkeys(range(6), 1.0), eta=0)
    with pytest.raises(TypeError, match='values'):
        LikelihoodSampler(Scans(), 3)
