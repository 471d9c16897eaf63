# SPDX-License-Identifier: Apache-2.0
"""WithClustering on a small dense model: taps, labels, what it refuses, and that nothing changes outside training."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clusterplug.attach import WithClustering
from clusterplug.attach.taps import Tap, to_rows
from clusterplug.losses import PointClusterLoss

TERMS = {'loss_cluster_queue', 'loss_cluster_point', 'loss_cluster_center'}


class Segmentor(nn.Module):
    """Called as mmdet3d's segmentors are: ``model(inputs, data_samples, mode)``."""

    class Head(nn.Module):
        def __init__(self, num_classes, ignore_index):
            super().__init__()
            self.num_classes, self.ignore_index = num_classes, ignore_index
            self.conv_seg = nn.Linear(6, num_classes)

    def __init__(self, num_classes=3, ignore_index=3):
        super().__init__()
        self.backbone = nn.ModuleDict(dict(stem=nn.Linear(4, 5), neck=nn.Linear(5, 6)))
        self.decode_head = self.Head(num_classes, ignore_index)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = inputs['points'] if isinstance(inputs, dict) else inputs
        logits = self.decode_head.conv_seg(self.backbone['neck'](self.backbone['stem'](x).relu()).relu())
        if mode != 'loss':
            return logits
        labels = torch.cat([sample.gt_pts_seg.pts_semantic_mask for sample in data_samples])
        return dict(loss_ce=nn.functional.cross_entropy(logits, labels, ignore_index=self.decode_head.ignore_index))


def _samples(*labels):
    return [SimpleNamespace(gt_pts_seg=SimpleNamespace(pts_semantic_mask=values)) for values in labels]


def _data(seed=0, num_points=60):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (num_points,), generator=g)
    return torch.randn(num_points, 4, generator=g), _samples(labels[:20], labels[20:])


def _wrapped(seed=0, embedding='auto', **options):
    torch.manual_seed(seed)
    loss = dict(type='clusterplug.PointClusterLoss', num_clusters=2, embed_dims=4)
    loss.update(options.pop('loss', {}))
    return WithClustering(Segmentor(), loss, embedding=embedding, **options)


def test_class_names_and_predictions_stay():
    torch.manual_seed(0)
    plain = Segmentor()
    model = _wrapped()
    assert type(model) is Segmentor
    state = model.state_dict()
    assert [name for name in state if not name.startswith('clustering.')] == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value), name
    inputs, samples = _data()
    for mode in ('tensor', 'predict'):
        for training in (True, False):
            assert torch.equal(model.train(training)(inputs, samples, mode=mode), plain(inputs, samples, mode=mode))
    assert list(model.eval()(inputs, samples, mode='loss')) == ['loss_ce']


def test_the_clustering_part_draws_no_global_random_numbers():
    """With the same seed a model is initialized and trained the same with and without the loss."""
    model = Segmentor()
    before = torch.get_rng_state()
    model = WithClustering(model, dict(type='clusterplug.PointClusterLoss', num_clusters=2))
    assert torch.equal(torch.get_rng_state(), before)
    inputs, samples = _data()
    before = torch.get_rng_state()
    model(inputs, samples, mode='loss')
    assert torch.equal(torch.get_rng_state(), before)


def test_terms_join_the_losses_in_training():
    model = _wrapped()
    inputs, samples = _data()
    for call in (
        lambda: model(inputs, samples, 'loss'),
        lambda: model(inputs, data_samples=samples, mode='loss'),
        lambda: model(inputs=inputs, data_samples=samples, mode='loss'),
    ):
        assert set(call()) == {'loss_ce', *TERMS}
    sum(model(inputs, samples, 'loss').values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_embedding_is_the_input_of_the_classifier_and_the_predictions_its_output():
    seen = []

    class Spy(nn.Module):
        ignore_index = 3

        def forward(self, *inputs):
            seen.append(inputs)
            return {}

    torch.manual_seed(0)
    model = WithClustering(Segmentor(), Spy())
    inputs, samples = _data()
    logits = model(inputs, samples, mode='tensor')
    model(inputs, samples, mode='loss')
    features, labels, predictions, rows = seen[0]
    assert torch.equal(model.decode_head.conv_seg(features), logits)
    assert torch.equal(predictions, logits)
    assert torch.equal(labels, torch.cat([sample.gt_pts_seg.pts_semantic_mask for sample in samples]))
    assert rows is None
    for embedding, width in (('backbone.stem', 5), ('backbone.neck:input', 5), ('backbone.neck:output', 6)):
        model = WithClustering(Segmentor(), Spy(), embedding=embedding, predictions=None)
        model(inputs, samples, mode='loss')
        assert seen[-1][0].shape == (60, width)
        assert seen[-1][2] is None


def test_sizes_are_taken_from_the_model():
    loss = _wrapped(embedding='backbone.stem').clustering.loss
    assert (loss.num_classes, loss.ignore_index, loss.in_channels) == (3, 3, 5)


def test_nothing_is_kept_outside_a_training_step():
    model = _wrapped()
    inputs, samples = _data()
    taps = (model.clustering.embedding, model.clustering.predictions)

    def kept():
        return [tap.value for tap in taps] + [tap.open for tap in taps if tap.open]

    for training, mode in ((False, 'predict'), (True, 'predict'), (True, 'tensor'), (False, 'loss')):
        model.train(training)(inputs, samples, mode=mode)
        assert kept() == [None, None]
    model.train()(inputs, samples, mode='loss')
    assert kept() == [None, None]
    model.decode_head.conv_seg(torch.zeros(3, 6))  # a call past the model
    assert kept() == [None, None]
    model.backbone['stem'] = nn.Identity()
    with pytest.raises(RuntimeError):
        model(inputs, samples, mode='loss')
    model.eval()(torch.randn(3, 4) @ torch.randn(4, 5), samples, mode='predict')
    assert kept() == [None, None]


def test_a_copy_has_its_own_taps():
    model = _wrapped()
    inputs, samples = _data()
    model(inputs, samples, mode='loss')
    twin = copy.deepcopy(model)
    expected = model(inputs, samples, mode='loss')
    before = model.clustering.loss.memory.step.clone()
    losses = twin(inputs, samples, mode='loss')
    assert losses == expected
    assert model.clustering.loss.memory.step == before
    assert twin.clustering.embedding is not model.clustering.embedding


def test_a_step_after_one_that_failed():
    model = _wrapped()
    inputs, samples = _data()
    with pytest.raises(ValueError, match='cannot be aligned with 20 point labels'):
        WithClustering(_Lenient(), dict(type='clusterplug.PointClusterLoss', num_clusters=2))(
            inputs, samples[:1], mode='loss'
        )
    with pytest.raises(RuntimeError):
        model(torch.zeros(3, 9), samples, mode='loss')
    assert set(model(inputs, samples, mode='loss')) == {'loss_ce', *TERMS}


@pytest.mark.parametrize('error', [MemoryError, KeyboardInterrupt])
def test_a_step_that_failed_leaves_a_model_that_can_be_copied(error):
    model, data = _wrapped(), _data()

    def fail(*_):
        raise error

    handle = model.decode_head.conv_seg.register_forward_hook(fail)
    with pytest.raises(error):
        model(*data, mode='loss')
    handle.remove()
    taps = model.clustering.embedding, model.clustering.predictions
    if error is not KeyboardInterrupt:  # of which torch tells no hook
        assert not any(tap.open or tap.value is not None for tap in taps)
    with io.BytesIO() as file:
        torch.save(model, file)
    twin = copy.deepcopy(model)
    losses, others = (each(*data, mode='loss') for each in (model, twin))
    assert all(torch.equal(losses[name], others[name]) for name in losses)


def test_labels_that_do_not_fit_leave_nothing():
    model, (inputs, _) = _wrapped(), _data()
    with pytest.raises(IndexError):
        model(inputs, _samples(torch.full((60,), 77)), mode='loss')
    assert model.clustering.embedding.value is model.clustering.predictions.value is None
    copy.deepcopy(model)


def test_watching_inside_of_watching():
    model, data = _wrapped(), _data()
    with model.clustering.watch():
        with model.clustering.watch():
            pass
        model(*data, mode='tensor')
        assert len(model.clustering.embedding.take().features) == 60
        model(*data, mode='tensor')
    assert model.clustering.embedding.value is None


class _Lenient(Segmentor):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss_ce=super().forward(inputs).sum())


def test_wrapping_twice_is_refused():
    model = _wrapped()
    with pytest.raises(ValueError, match='Segmentor has a clustering loss already; wrap it once'):
        WithClustering(model, dict(type='clusterplug.PointClusterLoss'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(embedding='backbone.nek'), r"has no layer 'backbone.nek'; near matches: backbone.neck"),
        (dict(embedding='decodehead.conv_seg:input'), 'near matches: decode_head.conv_seg'),
        (dict(embedding='qqqq'), 'near matches: backbone, decode_head'),
        (dict(embedding='backbone.neck:inputs'), "'layer', 'layer:input' or 'layer:output'"),
        (dict(predictions='conv_seg'), "has no layer 'conv_seg'"),
        (dict(labels='voxels'), "labels must be 'auto', 'voxel' or 'point', got 'voxels'"),
        (dict(loss=dict(num_classes=4)), 'num_classes of the clustering loss is 4 but that of the decode head is 3'),
        (dict(loss=dict(ignore_index=255)), 'ignore_index of the clustering loss is 255 but .* is 3'),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        _wrapped(**options)


def test_a_model_that_tells_nothing():
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(
        ValueError, match=r'embedding must name a layer: Sequential has none of .*decode_head\.conv_seg'
    ):
        WithClustering(model, dict(type='clusterplug.PointClusterLoss'))
    with pytest.raises(ValueError, match='num_classes must be given in the loss: Sequential has no decode_head'):
        WithClustering(model, dict(type='clusterplug.PointClusterLoss'), embedding='0')
    with pytest.raises(ValueError, match="in_channels must be given in the loss: the layer '0' does not tell"):
        WithClustering(model, dict(type='clusterplug.PointClusterLoss', num_classes=2), embedding='0')
    assert not hasattr(model, 'clustering')


def test_a_layer_that_does_not_run():
    model = Segmentor()
    model.unused = nn.Linear(6, 6)
    model = WithClustering(model, dict(type='clusterplug.PointClusterLoss', num_clusters=2), embedding='unused')
    with pytest.raises(RuntimeError, match="the layer 'unused' did not run in this training step"):
        model(*_data(), mode='loss')


def test_labels_of_the_other_kind():
    model = _wrapped(labels='voxel')
    with pytest.raises(ValueError, match='60 rows, which cannot be aligned with no labels'):
        model(*_data(), mode='loss')


def test_dense_batches_of_points():
    """(B, C, N), as PointNet++ has them: rows in the order of the stacked labels."""
    value = torch.arange(24.0).view(2, 3, 4)
    rows = to_rows(value, 'x').features
    assert torch.equal(rows[:4], value[0].T)
    assert torch.equal(rows[4:], value[1].T)
    assert to_rows([torch.zeros(5, 2)], 'x').features.shape == (5, 2)


@pytest.mark.parametrize(
    ('value', 'error', 'message'),
    [
        (torch.zeros(2, 3, 4, 5, 6), ValueError, r'shape \(2, 3, 4, 5, 6\); a tap needs rows'),
        (torch.zeros(3), ValueError, 'a tap needs rows'),
        (dict(x=1), TypeError, 'gives a dict; a tap needs a tensor'),
        ((torch.zeros(2, 2), torch.zeros(2, 2)), TypeError, 'gives a tuple'),
    ],
)
def test_what_is_no_rows(value, error, message):
    with pytest.raises(error, match=message):
        to_rows(value, 'x')


@pytest.mark.parametrize(
    ('layer', 'path', 'width'),
    [
        (nn.Sequential(nn.Linear(3, 7), nn.ReLU()), 'x', 7),
        (nn.Sequential(nn.Linear(3, 7), nn.ReLU()), 'x:input', 3),
        (nn.Sequential(nn.Conv1d(4, 9, 1), nn.BatchNorm1d(9)), 'x', 9),
        (nn.ReLU(), 'x', None),
    ],
)
def test_width_of_a_layer(layer, path, width):
    assert Tap(nn.ModuleDict(dict(x=layer)), path).channels == width


def test_checkpoint_of_the_plain_model_and_back():
    torch.manual_seed(3)
    plain, model = Segmentor(), _wrapped()
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith('clustering.loss.') for name in missing.missing_keys)
    assert not missing.unexpected_keys
    back = plain.load_state_dict(model.state_dict(), strict=False)
    assert not back.missing_keys


def test_a_loss_module_is_taken_as_it_is():
    loss = PointClusterLoss(3, 6, num_clusters=2, ignore_index=3)
    assert WithClustering(Segmentor(), loss).clustering.loss is loss
