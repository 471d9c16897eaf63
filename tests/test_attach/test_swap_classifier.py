# SPDX-License-Identifier: Apache-2.0
"""swap_classifier: every branch of mmdet3d's models, and MinkUNet in a real Runner: train, stop, resume."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug.attach import classification_layers, swap_classifier
from clusterplug.heads import GrassmannHead
from clusterplug.testing import build_tiny_runner, tiny_config, write_tiny_semantickitti

HEAD = dict(type='clusterplug.GrassmannHead', subspace_dim=2)
OPTIM = dict(
    type='OptimWrapper',
    constructor='clusterplug.GrassmannOptimWrapperConstructor',
    optimizer=dict(type='clusterplug.RiemannianSGD', lr=0.1, momentum=0.9, reorthonormalize_every=2),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_tiny_semantickitti(tmp_path_factory.mktemp('data'), num_points=1500)


def swapped(model, **options):
    return dict(type='clusterplug.SwapClassifier', model=model, head=HEAD, **options)


def train(work_dir, data, max_epochs=3, **options):
    config = tiny_config(work_dir, data, wrap=swapped, max_epochs=max_epochs, **options)
    config.optim_wrapper = OPTIM
    from mmengine.runner import Runner

    from clusterplug import compat

    compat.apply_all()
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def build(config):
    from mmengine.config import Config

    from clusterplug import compat
    from clusterplug.registry import MODELS

    compat.apply_all()
    model = Config.fromfile(_path(config)).model
    for name in ('backbone', 'img_backbone'):
        if name in model:
            model[name].pop('init_cfg', None)
    return MODELS.build({**model, '_scope_': 'mmdet3d'})


def _path(name):
    import mmdet3d

    return f'{mmdet3d.__path__[0]}/.mim/configs/{name}'


@pytest.mark.parametrize(
    ('config', 'layers', 'bias'),
    [
        ('pointnet2/pointnet2_ssg_2xb16-cosine-50e_s3dis-seg.py', ['decode_head.conv_seg'], None),
        ('pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py', ['bbox_head.conv_cls'], -4.595),
        ('votenet/votenet_8xb8_scannet-3d.py', ['bbox_head.conv_pred.conv_cls'], 0.0),
        ('point_rcnn/point-rcnn_8xb2_kitti-3d-3class.py', ['rpn_head.cls_layers.6'], 0.0),
        (
            'centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py',
            [f'pts_bbox_head.task_heads.{task}.heatmap.1' for task in range(6)],
            0.0,
        ),
    ],
)
@pytest.mark.filterwarnings('ignore')
def test_every_branch_of_a_host_and_its_prior(config, layers, bias, monkeypatch):
    model = build(config)
    before = {name: value.shape for name, value in model.state_dict().items()}
    assert classification_layers(model) == layers
    outputs = [model.get_submodule(name).weight.shape[0] for name in layers]
    assert swap_classifier(model, HEAD) is model
    monkeypatch.setattr('mmengine.model.base_module.BaseModule._dump_init_info', lambda self: None)
    model.init_weights()
    for name, count in zip(layers, outputs, strict=True):
        head = model.get_submodule(name)
        assert isinstance(head, GrassmannHead)
        assert head.num_classes == count
        rows = head.bases.detach()
        assert (rows.mT @ rows - torch.eye(2)).abs().max() < 1e-5
        assert (head.bias is None) == (bias is None)
        if bias is not None:
            assert (head.bias.mean() - bias).abs() < 0.2
    gone = {f'{name}.weight' for name in layers} | ({f'{name}.bias' for name in layers} if bias is None else set())
    after = model.state_dict()
    assert {name for name in before if name not in after} == gone
    with pytest.raises(ValueError, match='no classification layer'):
        swap_classifier(model, HEAD)


def test_logits_keep_their_shape_and_dense_branches_their_layout():
    model = nn.ModuleDict(dict(a=nn.Module(), b=nn.Module()))
    model['a'].conv_cls = nn.Conv2d(16, 6, 1)
    model['b'].conv_seg = nn.Conv1d(16, 5, 1)
    x = torch.randn(2, 16, 4, 3)
    old = model['a'].conv_cls
    swap_classifier(model, HEAD)
    assert model['a'].conv_cls(x).shape == (2, 6, 4, 3)
    assert torch.equal(model['a'].conv_cls.bias, old.bias)
    assert model['b'].conv_seg(x[..., 0]).shape == (2, 5, 4)
    model['a'].conv_cls = nn.Conv2d(16, 6, 3, padding=1)
    with pytest.warns(UserWarning, match='3x3 positions'):
        swap_classifier(model, HEAD, layer='a.conv_cls')
    assert model['a'].conv_cls(x).shape == (2, 6, 4, 3)


def test_minkunet_trains_stops_and_resumes_bit_for_bit(data, tmp_path):
    straight = train(tmp_path / 'straight', data)
    head = straight.model.decode_head.conv_seg
    assert isinstance(head, GrassmannHead)
    rows = head.bases.detach()
    assert (rows.mT @ rows - torch.eye(2)).abs().max() < 1e-5
    train(tmp_path / 'stopped', data, max_epochs=2)
    resumed = train(tmp_path / 'stopped', data, resume=True)
    assert resumed.iter == straight.iter == 6
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    saved = [torch.load(tmp_path / each / 'epoch_3.pth', weights_only=False) for each in ('straight', 'stopped')]
    states = [each['optimizer']['state'] for each in saved]
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        assert torch.equal(one['momentum_buffer'], other['momentum_buffer'])
        assert one.get('step') == other.get('step')


def test_together_with_a_clustering_loss(data, tmp_path):
    def wrap(model):
        loss = dict(type='clusterplug.PointClusterLoss', num_clusters=2, embed_dims=8, queue_len=8)
        return dict(type='clusterplug.WithClustering', model=swapped(model), loss=loss)

    runner = build_tiny_runner(tmp_path, data, wrap=wrap)
    assert runner.model.clustering.loss.in_channels == 8
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    losses = runner.model(**runner.model.data_preprocessor(batch, training=True), mode='loss')
    assert {'loss_sem_seg', 'loss_cluster_point'} <= set(losses) | {name.removeprefix('decode.') for name in losses}


def test_cylinder3d_keeps_a_sparse_tensor():
    spconv = pytest.importorskip('spconv.pytorch')
    host = nn.Module()
    host.decode_head = nn.Module()
    host.decode_head.conv_seg = spconv.SubMConv3d(16, 5, 3, padding=1, indice_key='logit')
    with pytest.warns(UserWarning, match='3x3x3'):
        swap_classifier(host, HEAD)
    indices = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3]], dtype=torch.int32)
    logits = host.decode_head.conv_seg(spconv.SparseConvTensor(torch.randn(2, 16), indices, (4, 4, 4), 1))
    assert logits.features.shape == (2, 5)


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda model: swap_classifier(model, HEAD, layer='head'), ValueError, "'head', none"),
        (lambda model: swap_classifier(model, HEAD, layer='norm'), ValueError, 'a BatchNorm1d'),
        (lambda model: swap_classifier(model, nn.Linear(3, 3)), TypeError, 'config with a type'),
        (lambda model: swap_classifier(model, dict(HEAD, subspace_dim=9)), ValueError, 'at most in_channels'),
        (lambda model: swap_classifier(nn.Linear(3, 3), HEAD), ValueError, 'name it in layer'),
    ],
)
def test_bad_input(call, error, match):
    model = nn.Module()
    model.norm, model.conv_seg = nn.BatchNorm1d(8), nn.Conv1d(8, 3, 1)
    with pytest.raises(error, match=match):
        call(model)
