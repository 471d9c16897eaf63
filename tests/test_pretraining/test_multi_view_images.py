# SPDX-License-Identifier: Apache-2.0
"""MultiViewModel over images: grouping, queue, teacher, what losses are given, ranks, what is refused."""

import copy
import functools

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from mmengine.structures import BaseDataElement

from clusterplug.heads import PrototypeHead
from clusterplug.losses import SwAVLoss
from clusterplug.pretraining import MultiViewModel, TimmBackbone, TorchvisionBackbone
from clusterplug.testing import run_gloo


class Backbone(nn.Module):
    """A convolution whose calls are counted."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return self.conv(x).relu()


def make(seed=0, num_prototypes=6, **options):
    torch.manual_seed(seed)
    options = {'head': PrototypeHead(12, num_prototypes, nn.Linear(12, 5)), 'loss': SwAVLoss(), **options}
    return MultiViewModel(Backbone(), **options)


def batch(num_samples=8, sizes=(12, 12, 8, 8), seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(views=[torch.randn(num_samples, 3, size, size, generator=g) for size in sizes])


def test_one_call_for_all_views_of_a_size():
    model, inputs = make(), batch(sizes=(12, 8, 12, 8))
    features = model(inputs)
    assert model.backbone.sizes == [(16, 3, 12, 12), (16, 3, 8, 8)]
    for view, each in zip(inputs['views'], features, strict=True):
        torch.testing.assert_close(each, model.backbone(view).mean((2, 3)))


def test_loss_is_that_of_the_parts():
    model, inputs = make(), batch()
    losses = model(inputs, mode='loss')
    scores = [model.head(each) for each in model(inputs)]
    torch.testing.assert_close(losses['loss_swav'], SwAVLoss()(scores))
    assert float(losses['ln_k']) == pytest.approx(torch.tensor(6.0).log().item())
    total, log = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss_swav'])
    assert {'ln_k', 'prototypes_used', 'code_entropy', 'largest_prototype'} <= set(log)


def test_prototypes_have_length_one_in_a_training_step_only():
    model = make()
    with torch.no_grad():
        model.head.prototypes.mul_(2)
    model.eval()(batch(), mode='loss')
    assert model.head.prototypes.norm(dim=1).min() > 1.9
    model.train()(batch(), mode='loss')
    torch.testing.assert_close(model.head.prototypes.norm(dim=1), torch.ones(6))


def test_queue_sets_in_when_it_is_full_and_is_saved():
    """Length 2 B: no effect in the first two steps; then other codes (card of SwAV)."""
    with_queue, plain = make(queue=dict(type='clusterplug.FeatureQueue', length=16, embed_dims=5)), make()
    plain.load_state_dict({n: v for n, v in with_queue.state_dict().items() if not n.startswith('queues')})
    for step in range(4):
        a, b = (model(batch(seed=step), mode='loss')['loss_swav'] for model in (with_queue, plain))
        assert torch.equal(a, b) == (step < 2)
    other = make(seed=1, queue=dict(type='clusterplug.FeatureQueue', length=16, embed_dims=5))
    other.load_state_dict(with_queue.state_dict())
    inputs = batch(seed=9)
    assert torch.equal(other(inputs, mode='loss')['loss_swav'], with_queue(inputs, mode='loss')['loss_swav'])
    # the remembered embeddings are scored with the prototypes of now
    stored = with_queue.queues[1].read().rows
    expected = with_queue.head.score(stored)
    torch.testing.assert_close(with_queue._of_queue()['queue_scores'][1], expected)
    with_queue.queue_enabled = False
    before = copy.deepcopy(with_queue.queues.state_dict())
    with_queue(inputs, mode='loss')
    assert all(torch.equal(before[name], value) for name, value in with_queue.queues.state_dict().items())


def test_several_sets_of_prototypes_are_averaged():
    model, inputs = make(num_prototypes=[6, 4]), batch()
    features = model(inputs)
    scores = [model.head(each) for each in features]
    expected = sum(SwAVLoss()([view[n] for view in scores]) for n in range(2)) / 2
    torch.testing.assert_close(model(inputs, mode='loss')['loss_swav'], expected)
    queued = make(num_prototypes=[6, 4], queue=dict(type='clusterplug.FeatureQueue', length=8, embed_dims=5))
    for _ in range(2):
        assert torch.isfinite(queued(inputs, mode='loss')['loss_swav'])


class Recorder(nn.Module):
    """A loss that keeps what it was given."""

    def forward(self, embeddings, features, teacher_embeddings=None, teacher_scores=None, labels=None, sample_idx=None):
        self.given = dict(locals())
        return dict(loss_a=embeddings[0].sum(), number=features[0].new_ones(()))


def test_losses_get_what_they_name():
    model = make(loss=Recorder(), teacher=dict(type='ExponentialMovingAverage', momentum=0.25))
    samples = [BaseDataElement(metainfo=dict(sample_idx=10 + n, gt_label=n % 3)) for n in range(8)]
    before = model.backbone.conv.weight.detach().clone()
    losses = model(batch(), samples, mode='loss')
    assert set(losses) == {'loss_a', 'number'}
    given = model.loss_function.given
    assert given['sample_idx'].tolist() == list(range(10, 18))
    assert given['labels'].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(given['embeddings']) == 4
    assert len(given['teacher_embeddings']) == len(given['teacher_scores']) == 2  # the full views
    torch.testing.assert_close(given['teacher_embeddings'][1], given['embeddings'][1].detach())
    assert not given['teacher_embeddings'][0].requires_grad
    with torch.no_grad():
        model.backbone.conv.weight.add_(1)
    model(batch(), samples, mode='loss')
    torch.testing.assert_close(model.teacher.module['backbone'].conv.weight, before + 0.25)
    names = list(model.state_dict())
    assert 'teacher.module.backbone.conv.weight' in names
    assert sum('conv.weight' in name for name in names) == 2
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not any(name.startswith('teacher') for name in trained)


def test_plain_heads_and_no_head():
    for head in (nn.Linear(12, 3), None):
        model = make(head=head, loss=Recorder())
        model(batch(), mode='loss')
        assert model.loss_function.given['embeddings'][0].shape == (8, 3 if head else 12)


def test_predict_gives_features_of_the_first_view():
    model, inputs = make().eval(), batch()
    samples = model(inputs, mode='predict')
    assert len(samples) == 8
    assert samples[0].features.shape == (1, 12)
    torch.testing.assert_close(torch.cat([each.features for each in samples]), model(inputs)[0])
    assert samples[3].prototype.shape == (1,)


@pytest.mark.parametrize('build', [
    functools.partial(TimmBackbone, 'resnet18'), functools.partial(TorchvisionBackbone, 'resnet18'),
])  # fmt: skip
def test_backbones_of_image_packages(build):
    pytest.importorskip('timm')
    model = MultiViewModel(build(), PrototypeHead(512, 6), SwAVLoss())
    assert torch.isfinite(model(batch(2, (64, 64, 32)), mode='loss')['loss_swav'])
    names = set(build().state_dict())
    assert {name.removeprefix('backbone.') for name in model.state_dict() if name.startswith('backbone.')} == names


def test_bad_input():
    model = make()
    with pytest.raises(ValueError, match='at least 2 views'):
        model(batch(sizes=(12,)), mode='loss')
    with pytest.raises(ValueError, match=r'full crops.*got views \[0, 1\]'):
        model(batch(sizes=(8, 8, 12)), mode='loss')
    with pytest.raises(ValueError, match="embed must be 'global' for images"):
        make(embed='points')(batch())
    with pytest.raises(ValueError, match='embed must be one of'):
        make(embed='pixels')
    with pytest.raises(ValueError, match='needs scores'):
        make(head=nn.Linear(12, 3))(batch(), mode='loss')
    with pytest.raises(ValueError, match='asks for input, target'):
        make(loss=nn.CrossEntropyLoss())
    broken = make()
    broken.backbone = nn.Flatten(0)
    with pytest.raises(ValueError, match=r'features \(N, C\) or maps'):
        broken(batch())
    with pytest.raises(ValueError, match='one size, got'):
        model.data_preprocessor(dict(inputs=dict(views=[[torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)]])))
    with pytest.raises(ValueError, match='at least one view'):
        model.data_preprocessor(dict(inputs=dict(views=[])))


def _train(rank, size, steps=4):
    model = make(queue=dict(type='clusterplug.FeatureQueue', length=16, embed_dims=5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(steps):
        whole = batch(seed=step)['views']
        rows = slice(0, 8) if size == 1 else (slice(0, 5), slice(5, 8))[rank]
        loss = model(dict(views=[view[rows] for view in whole]), mode='loss')['loss_swav']
        optimizer.zero_grad()
        loss.backward()
        if size > 1:  # as DistributedDataParallel does
            for parameter in model.parameters():
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= size
        optimizer.step()
    return model.state_dict()


def test_uneven_ranks_train_as_one_process():
    one = _train(0, 1)
    for state in run_gloo(_train, 2):
        for name, value in one.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6, msg=name)
