# SPDX-License-Identifier: Apache-2.0
"""ClusterDiscriminationModel and BatchEnhancedModel: labels of a file, order of look-up and push, resume, bad input."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mmdet3d]')

from mmengine.structures import BaseDataElement

from clusterplug.pretraining import BatchEnhancedModel, ClusterDiscriminationModel

KINDS = 6


def backbone():
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 16))


def images(seed, batch=12):
    """Two noisy looks at pictures of 6 kinds."""
    kinds = torch.randn(KINDS, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(batch) % KINDS
    return [kinds[labels] + 0.3 * torch.randn(batch, 3, 8, 8, generator=generator) for _ in range(2)], labels


def samples(batch=12):
    found = [BaseDataElement() for _ in range(batch)]
    for number, sample in enumerate(found):
        sample.set_metainfo(dict(sample_idx=number))
    return found


def discriminate(path, **options):
    torch.manual_seed(0)
    head = dict(type='clusterplug.MultiLabelClusterHead', num_classes=20, embed_dims=16, sample_rate=0.5, scale=8.0)
    return ClusterDiscriminationModel(backbone(), head, path, **options)


def train(model, steps, rate=0.05, start=0, optimizer=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9) if optimizer is None else optimizer
    values = []
    for step in range(start, start + steps):
        result = model({'views': images(step)[0]}, samples(), mode='loss')
        value = sum(result.values())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values, optimizer


@pytest.fixture
def labels(tmp_path):
    # rows 0 .. 11 are of kinds 0 .. 5: two clusters each, the second row of a kind has one only
    table = np.array([[k % KINDS, KINDS + k % KINDS if k < KINDS else -1] for k in range(12)], dtype=np.int32)
    np.save(tmp_path / 'labels.npy', table)
    return tmp_path / 'labels.npy'


def test_learns_the_labels_of_the_file(labels):
    model = discriminate(labels)
    values, _ = train(model, 40, rate=0.2)
    assert values[-1] < 0.6 * values[0]
    assert model._labels(samples()).tolist()[:2] == [[0, 6], [1, 7]]
    found = model({'views': images(0)[0][:1]}, samples(), mode='predict')
    assert found[0].features.shape == (1, 16)


def test_samples_without_a_row_of_labels_are_refused(labels):
    model = discriminate(labels)
    with pytest.raises(ValueError, match='needs sample_idx'):
        model({'views': images(0)[0]}, None, mode='loss')
    with pytest.raises(ValueError, match=r'sample_idx must be 0 \.\. 11'):
        model({'views': images(0, 13)[0]}, samples(13), mode='loss')


def enhanced(**options):
    torch.manual_seed(0)
    layer = dict(type='clusterplug.ProjectionHead', in_channels=16, out_channels=16, hidden_channels=[16])
    memory = dict(type='clusterplug.ClusteredMemory', length=48, embed_dims=16, num_clusters=KINDS)
    return BatchEnhancedModel(backbone(), layer, layer, memory, num_neighbors=3, **options)


def test_neighbors_join_once_the_memory_is_full_and_never_are_the_sample_itself():
    model = enhanced()
    seen = []
    plain = model.loss_function.forward

    def spy(predictions, projections, targets, **more):
        for view in range(2):
            for name, rows in (('neighbors', targets), ('negatives', projections)):
                if name in more:
                    assert (more[name][view] - rows[view].detach()[:, None]).norm(dim=-1).min() > 1e-6
        seen.append(sorted(more))
        return plain(predictions, projections, targets, **more)

    model.loss_function.forward = spy
    train(model, 6)
    assert seen == [[]] * 2 + [['negatives', 'neighbors', 'valid']] * 4  # 2 pushes of 24 fill 48 slots
    model.queue_enabled = False
    train(model, 1)
    assert seen[-1] == []


def test_neighbors_are_of_the_same_kind_after_training():
    model = enhanced()
    train(model, 30)
    views, labels = images(100)
    with torch.no_grad():
        targets = model._of_teacher({'views': views})['teacher_embeddings'][0]
    slots = model.queues[0].query(targets, 3).indices
    kinds = torch.arange(48) % 12 % KINDS  # every push is two views of 12 samples, of kinds 0 .. 5 in turn
    assert (kinds[slots] == labels[:, None]).float().mean() > 0.9


def test_resumed_training_repeats_the_numbers(labels):
    for make in (enhanced, lambda: discriminate(labels)):
        model = make()
        _, optimizer = train(model, 4)
        other = make()
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        again = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        first, _ = train(model, 3, start=4, optimizer=optimizer)
        second, _ = train(other, 3, start=4, optimizer=again)
        assert first == second


def test_other_numbers_of_views_are_refused():
    with pytest.raises(ValueError, match='at least 2 views'):
        enhanced()({'views': images(0)[0][:1]}, mode='loss')
    with pytest.raises(ValueError, match='compares 2 views'):
        enhanced()({'views': [*images(0)[0], images(1)[0][0]]}, mode='loss')
