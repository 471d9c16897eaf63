# SPDX-License-Identifier: Apache-2.0
"""Every segmentation host of mmdet3d with the loss, from its config: it trains, tests, and labels meet their rows."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.compat.mmdet3d import spvcnn_spconv
from clusterplug.testing import tiny_host_config, write_tiny_layouts

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'point_cluster'
TAPS = {
    'minkunet18_w16_spconv_8xb2-amp-15e_semantickitti': 'decode_head.conv_seg:input',
    'minkunet34v2_w32_spconv_8xb2-amp-laser-polar-mix-3x_semantickitti': 'decode_head.conv_seg:input',
    'spvcnn_w32_spconv_8xb2-amp-15e_semantickitti': 'backbone.point_transforms.1:input',
    'cylinder3d_4xb4-3x_semantickitti': 'decode_head.conv_seg:input',
    'pointnet2_ssg_2xb16-cosine-50e_s3dis-seg': 'decode_head.pre_seg_conv',
    'pointnet2_msg_2xb16-cosine-80e_s3dis-seg': 'decode_head.pre_seg_conv',
    'pointnet2_ssg_2xb16-cosine-200e_scannet-seg': 'decode_head.pre_seg_conv',
    'paconv_ssg_8xb8-cosine-150e_s3dis-seg': 'decode_head.pre_seg_conv',
    'paconv_ssg-cuda_8xb8-cosine-200e_s3dis-seg': 'decode_head.pre_seg_conv',
    'dgcnn_4xb32-cosine-100e_s3dis-seg_test-area5': 'decode_head.pre_seg_conv',
}
WIDTHS = {'spvcnn': 32, 'cylinder3d': 16, 'minkunet34v2': 72, 'minkunet18': 48}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_tiny_layouts(tmp_path_factory.mktemp('data'))


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()


def config_of(name, root, work_dir, wrapped=True, **options):
    config = load_config(str(CONFIGS / f'{"point-cluster_" * wrapped}{name}.py'), work_dir=str(work_dir))
    config.experiment_name = f'{name}_{wrapped}_{work_dir.name}'
    config.merge_from_dict(options)
    return tiny_host_config(config, root)


def runner_of(*args, **options):
    from mmengine.runner import Runner

    return Runner.from_cfg(config_of(*args, **options))


def train_batch(runner):
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    return runner.model.data_preprocessor(batch, training=True)


# one host with sparse convolutions, one with points and one with cylinders on every run
FAST = ('spvcnn_w32', 'pointnet2_ssg_2xb16-cosine-50e', 'cylinder3d')
HOSTS = [pytest.param(name, marks=[] if name.startswith(FAST) else pytest.mark.slow) for name in TAPS]


@pytest.mark.parametrize('name', HOSTS)
def test_host_trains_and_tests(name, root, tmp_path):
    runner = runner_of(name, root, tmp_path)
    branch = runner.model.clustering
    assert branch.embedding.path == TAPS[name]
    assert branch.embedding.channels == WIDTHS.get(name.partition('_')[0], branch.embedding.channels)
    weight = branch.loss.projector
    before = [parameter.detach().clone() for parameter in weight.parameters()]
    runner.train()
    for term in ('queue', 'point', 'center'):
        assert np.isfinite(runner.message_hub.get_scalar(f'train/loss_cluster_{term}').data[0]).all()
    assert runner.message_hub.get_scalar('train/loss_cluster_center').data[0][-1] > 0
    assert branch.loss.memory.num_seeded.any()
    assert any(not torch.equal(a, b) for a, b in zip(before, weight.parameters(), strict=True))
    assert 0 <= runner.test()['acc'] <= 1


@pytest.mark.parametrize('name', HOSTS)
def test_plain_and_wrapped_host_predict_the_same_bits(name, root, tmp_path):
    plain, wrapped = (runner_of(name, root, tmp_path / str(which), which).model.eval() for which in (False, True))
    state = plain.state_dict()
    assert [key for key in wrapped.state_dict() if not key.startswith('clustering.')] == list(state)
    wrapped.load_state_dict(state, strict=False)
    assert type(wrapped) is type(plain)
    data = config_of(name, root, tmp_path).test_dataloader
    from mmengine.runner import Runner

    batch = next(iter(Runner.build_dataloader(data)))
    results = []
    for model in (plain, wrapped):
        torch.manual_seed(0)  # rooms are cut into patches at random
        np.random.seed(0)
        results.append(model.test_step(copy.deepcopy(batch))[0])
    one, other = results
    assert torch.equal(one.pts_seg_logits.pts_seg_logits, other.pts_seg_logits.pts_seg_logits)
    assert torch.equal(one.pred_pts_seg.pts_semantic_mask, other.pred_pts_seg.pts_semantic_mask)
    assert wrapped.clustering.embedding.value is None


def passing(layer, function):
    """Replace what a layer gives by ``function`` of what it gets; the taps see that."""
    layer.register_forward_hook(lambda _, inputs, output: function(*inputs, output), prepend=True)


def loss_inputs(runner, data):
    """Features of each label, and the labels, as the clustering loss gets them."""
    seen = []
    loss = runner.model.clustering.loss
    loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    runner.model.train()(**data, mode='loss')
    features, labels, _, rows = seen[0]
    return features if rows is None else features[rows], labels


def first_columns(values, template):
    """``values`` (..., 3) in front, and zeros behind, in the shape of ``template``."""
    result = torch.zeros_like(template)
    result[..., :3] = values.detach().to(template.dtype)
    return result.requires_grad_()


def points_by_place(data):
    """{place of a point: its label}; sampled points may occur twice."""
    samples = [sample.gt_pts_seg.pts_semantic_mask for sample in data['data_samples']]
    table = {}
    for points, labels in zip(data['inputs']['points'], samples, strict=True):
        table.update(zip(map(tuple, points[:, :3].tolist()), labels.tolist(), strict=True))
    return table


@pytest.mark.parametrize('name', [name for name in TAPS if name.startswith(('pointnet2', 'paconv'))])
def test_labels_of_points_after_feature_propagation(name, root, tmp_path):
    """The last propagation gives each of its target points its own place, and so does the layer after it."""
    runner = runner_of(name, root, tmp_path)
    head, data = runner.model.decode_head, train_batch(runner)
    places = points_by_place(data)
    passing(head.FP_modules[-1], lambda target, source, a, b, out: first_columns(target, out.mT).mT)
    passing(head.pre_seg_conv, lambda x, out: first_columns(x.mT[..., :3], out.mT).mT)
    features, labels = loss_inputs(runner, data)
    assert len(features) == len(labels) == 2 * 256
    assert len(labels.unique()) > 2
    assert [places[tuple(place)] for place in features[:, :3].tolist()] == labels.tolist()


def test_labels_of_points_in_dgcnn(root, tmp_path):
    """Every layer hands on the place of a point in its first columns."""
    runner = runner_of('dgcnn_4xb32-cosine-100e_s3dis-seg_test-area5', root, tmp_path)
    model, data = runner.model, train_batch(runner)
    places = points_by_place(data)
    for module in model.backbone.GF_modules:
        passing(module, lambda x, out: first_columns(x[..., :3], out))
    model.backbone.FA_module.register_forward_hook(
        lambda _, inputs, out: first_columns(inputs[0][1][..., :3], out), prepend=True
    )
    passing(model.decode_head.FP_module, lambda x, out: first_columns(x[..., :3], out))
    passing(model.decode_head.pre_seg_conv, lambda x, out: first_columns(x.mT[..., :3], out.mT).mT)
    features, labels = loss_inputs(runner, data)
    assert [places[tuple(place)] for place in features[:, :3].tolist()] == labels.tolist()


def test_labels_of_voxels_in_the_point_branch_of_spvcnn(root, tmp_path, monkeypatch):
    runner = runner_of('spvcnn_w32_spconv_8xb2-amp-15e_semantickitti', root, tmp_path)
    model, data = runner.model, train_batch(runner)

    def place(cells, features):
        assert cells.to_cells(torch.ones(len(cells.cells), 1)).min() == 1  # every cell has a point
        scale = 16 if not place.calls else 4
        place.calls.append(scale)
        values = torch.cat([cells.batch, (cells.cells + cells.inside) * scale], 1)
        return torch.nn.functional.pad(values, (0, features.shape[1] - 4)).to(features.dtype).requires_grad_()

    place.calls = []
    monkeypatch.setattr(spvcnn_spconv.CoarseCells, 'to_points', place)
    passing(model.backbone.point_transforms[0], lambda x, out: torch.zeros_like(out))
    features, labels = loss_inputs(runner, data)
    voxels = data['inputs']['voxels']['coors'].tolist()
    masks = torch.cat([sample.gt_pts_seg.voxel_semantic_mask for sample in data['data_samples']])
    table = dict(zip(map(tuple, voxels), masks.tolist(), strict=True))
    assert [table[tuple(map(int, row))] for row in features[:, :4].tolist()] == labels.tolist()
    assert len(labels.unique()) > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['minkunet18_w16', 'spvcnn_w32', 'cylinder3d', 'pointnet2_ssg_2xb16-cosine-50e', 'dgcnn']
)
def test_regions_of_labels(name, root, tmp_path):
    """Connected cells of one class and scan on every kind of host: voxels, points at voxels, cylinders, points."""
    name = next(host for host in TAPS if host.startswith(name))
    runner, seen = runner_of(name, root, tmp_path, **{'model.loss.regions': 'cell'}), []
    loss = runner.model.clustering.loss
    loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    data = train_batch(runner)
    runner.model.train()(**data, mode='loss')
    _, labels, _, _, regions = seen[0]
    known = (labels >= 0) & (labels < loss.num_classes)
    assert regions.shape == labels.shape
    assert (regions[known] >= 0).all()
    counts = [
        len(getattr(sample.gt_pts_seg, 'voxel_semantic_mask', sample.gt_pts_seg.get('pts_semantic_mask')))
        for sample in data['data_samples']
    ]
    scan = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for region in regions[known].unique():
        inside = regions == region
        assert len(labels[inside].unique()) == 1
        assert len(scan[inside].unique()) == 1
    assert 1 < len(regions[known].unique()) < known.sum() / 2


def cylinder_cells(points):
    """(rho, phi, z) cell of each point in mmdet3d's grid of 480 x 360 x 32."""
    polar = np.stack([np.hypot(points[:, 0], points[:, 1]), np.arctan2(points[:, 1], points[:, 0]), points[:, 2]], 1)
    low = np.array([0, -3.14159265359, -4], dtype=np.float32)
    high = np.array([50, 3.14159265359, 2], dtype=np.float32)
    size = (high - low) / (np.array([480, 360, 32], dtype=np.float32) - 1)
    return np.floor((np.clip(polar, low, high) - low) / size).astype(int)


def majority(data):
    """{(scene, *cell): label of most of its points, the smallest of several}."""
    votes = {}
    for scene, (points, sample) in enumerate(zip(data['inputs']['points'], data['data_samples'], strict=True)):
        labels = sample.gt_pts_seg.pts_semantic_mask.tolist()
        for cell, label in zip(cylinder_cells(points.numpy()).tolist(), labels, strict=True):
            votes.setdefault((scene, *cell), []).append(label)
    return {cell: max(sorted(set(labels)), key=labels.count) for cell, labels in votes.items()}


def test_labels_of_voxels_in_cylinder3d(root, tmp_path):
    runner = runner_of('cylinder3d_4xb4-3x_semantickitti', root, tmp_path)
    model, data = runner.model, train_batch(runner)
    assert (model.clustering.loss.num_classes, model.clustering.loss.ignore_index) == (19, 19)

    def encode(_, inputs):
        x = inputs[0]
        x.features = torch.nn.functional.pad(x.indices.float(), (0, x.features.shape[1] - 4)).requires_grad_()

    hooks = model.decode_head.conv_seg._forward_pre_hooks
    model.decode_head.conv_seg.register_forward_pre_hook(encode)
    assert len(hooks) == 1
    features, labels = loss_inputs(runner, data)
    expected = majority(data)
    found = {tuple(map(int, row)): label for row, label in zip(features[:, :4].tolist(), labels.tolist(), strict=True)}
    assert len(found) == len(features)
    # a point on the border of two cells may fall into either, by the last bit of its angle
    assert sum(expected.get(cell) == label for cell, label in found.items()) > 0.995 * len(expected)
    assert len(set(found.values())) > 2


@pytest.mark.parametrize(('level', 'stride'), [(0, (2, 2, 2)), (3, (16, 16, 4))])
def test_coarse_tap_of_cylinder3d_in_a_grid_that_the_scans_do_not_fill(root, tmp_path, level, stride):
    """Its grid reaches 50 m and the points 20 m: the strides follow from the grid."""
    tap = f'backbone.down_block_list.{level}.pool'
    runner = runner_of('cylinder3d_4xb4-3x_semantickitti', root, tmp_path, **{'model.embedding': tap})
    model, data = runner.model, train_batch(runner)
    assert data['inputs']['voxels']['coors'][:, 1].max() < 250
    layer = model.get_submodule(tap)

    def encode(x, out):
        out.features = torch.nn.functional.pad(out.indices.float(), (0, out.features.shape[1] - 4)).requires_grad_()
        return out

    passing(layer, encode)
    features, labels = loss_inputs(runner, data)
    fine = data['inputs']['voxels']['voxel_coors']
    voxels = torch.cat([sample.gt_pts_seg.voxel_semantic_mask for sample in data['data_samples']])
    assert len(features) == len(labels) == len(fine) == len(voxels)
    known = labels != 19
    assert known.float().mean() > 0.9
    assert torch.equal(labels[known], voxels[known])
    expected = torch.cat([fine[:, :1], fine[:, 1:] // torch.tensor(stride)], 1)
    assert torch.equal(features[known][:, :4].int(), expected[known].int())


def test_default_tap_of_an_unknown_model():
    from clusterplug.attach.hosts import default_tap

    with pytest.raises(ValueError, match=r'embedding must name a layer: Linear has none of backbone\.point_transforms'):
        default_tap(torch.nn.Linear(2, 2))
