# SPDX-License-Identifier: Apache-2.0
"""ViewDynamicsLoss: the terms of both losses, what is handed on, and a MultiViewModel that does not collapse."""

import copy

import pytest
import torch
from torch import nn

from clusterplug.functional import spectral_entropy
from clusterplug.heads import PrototypeHead
from clusterplug.losses import KoopmanLoss, NTXentLoss, SwAVLoss, ViewDynamicsLoss

ENTROPY = dict(type='KoopmanLoss', embed_dims=6, contrast_weight=0, consistency_weight=0, entropy_weight=1.0)


def views(number=3, samples=5, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, width, generator=generator) for _ in range(number)]


def test_terms_are_those_of_both():
    koopman, other = KoopmanLoss(6, num_neighbors=1), NTXentLoss()
    found = ViewDynamicsLoss(koopman, other)(embeddings=views())
    assert set(found) == {'loss_ntxent', 'loss_contrast', 'loss_consistency', 'loss_entropy'}
    torch.testing.assert_close(found['loss_ntxent'], other(views()))
    for name, value in koopman(torch.stack(views(), 1)).items():
        torch.testing.assert_close(found[name], value)
    assert set(ViewDynamicsLoss(koopman)(views())) == set(found) - {'loss_ntxent'}


def test_arguments_of_the_other_loss_are_handed_on():
    class Other(nn.Module):
        assign_views, all_sets = (1,), True

        def forward(self, scores, labels, queue_scores=None):
            return dict(loss_other=scores[0].sum() + labels.sum(), none=torch.tensor(queue_scores is None))

        def log_values(self):
            return {'used': torch.tensor(1.0)}

    loss = ViewDynamicsLoss(ENTROPY, Other())
    assert (loss.assign_views, loss.all_sets, loss.log_values()) == ((1,), True, {'used': torch.tensor(1.0)})
    labels = torch.tensor([1, 2])
    found = loss(views(2, 2), scores=[torch.ones(2)], labels=labels, features=None)
    assert float(found['loss_other']) == 5.0
    assert bool(found['none'])
    assert ViewDynamicsLoss(ENTROPY).log_values() == {}


class Invariance(nn.Module):
    """What views differ by, relative to what samples differ by: least on the one direction that views share best."""

    def forward(self, embeddings):
        spread = embeddings[0] - embeddings[0].mean(0)
        return (embeddings[0] - embeddings[1]).square().mean() / spread.square().mean()


def train(loss, steps=150):
    pytest.importorskip('mmengine')
    from clusterplug.pretraining import MultiViewModel

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 12))

        def forward(self, x):
            return self.layers(x)

    torch.manual_seed(0)
    model = MultiViewModel(Backbone(), nn.Linear(12, 6), loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    noise = torch.linspace(0.02, 3, 48).view(3, 4, 4)
    for _ in range(steps):
        x = torch.randn(32, 3, 4, 4, generator=generator)
        inputs = dict(views=[x, x + noise * torch.randn(x.shape, generator=generator)])
        losses = model(inputs, mode='loss')
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
    with torch.no_grad():
        return float(spectral_entropy(model.head(model(dict(views=[x]))[0])).exp())


def test_entropy_keeps_a_multi_view_model_from_collapse():
    alone, together = train(Invariance()), train(ViewDynamicsLoss(ENTROPY, Invariance()))
    assert together > 5.0  # of 6 dimensions
    assert alone < 3.5, alone


def test_next_to_swav_with_prototypes():
    pytest.importorskip('mmengine')
    from clusterplug.pretraining import MultiViewModel

    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 12))
    model = MultiViewModel(backbone, PrototypeHead(12, 4, nn.Linear(12, 6)), ViewDynamicsLoss(ENTROPY, SwAVLoss()))
    losses = copy.deepcopy(model)(dict(views=[torch.randn(4, 3, 4, 4) for _ in range(2)]), mode='loss')
    assert {'loss_swav', 'loss_entropy', 'prototypes_used'} <= set(losses)


def test_bad_input():
    with pytest.raises(TypeError, match='koopman must be a KoopmanLoss'):
        ViewDynamicsLoss(NTXentLoss())
    with pytest.raises(ValueError, match='same samples'):
        ViewDynamicsLoss(ENTROPY)([torch.zeros(2, 6), torch.zeros(3, 6)])
    with pytest.raises(ValueError, match='num_neighbors'):
        ViewDynamicsLoss(KoopmanLoss(6))(views(2))
