# SPDX-License-Identifier: Apache-2.0
"""SPVCNN and MinkUNet V2 with spconv: the point branch against plain loops, and both backbones as a whole."""

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

import spconv.pytorch as spconv
from mmdet3d.models.backbones import MinkUNetBackbone, MinkUNetBackboneV2, SPVCNNBackbone

from clusterplug import compat
from clusterplug.compat.mmdet3d import spvcnn_spconv
from clusterplug.compat.mmdet3d.spvcnn_spconv import CoarseCells


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()
    yield
    compat.apply_all()


def voxels(seed=0, num=120, extent=(37, 22, 13), batch_size=2):
    """Distinct coordinates (N, 4) in random order within each scene, batch index first."""
    generator = torch.Generator().manual_seed(seed)
    coords = torch.stack([torch.randint(0, n, (num,), generator=generator) for n in (batch_size, *extent)], 1)
    coords = coords.unique(dim=0)
    coords = coords[torch.randperm(len(coords), generator=generator)]
    return coords[coords[:, 0].argsort(stable=True)].int()


def coarse_tensor(coords, stride, seed=0, share=0.7):
    """Some of the cells that contain voxels, in random order, with random features."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cat([coords[:, :1], coords[:, 1:] // stride], 1).unique(dim=0)
    cells = cells[torch.randperm(len(cells), generator=generator)[: int(share * len(cells)) + 1]]
    shape = [int(size) // stride + 1 for size in coords[:, 1:].amax(0)]
    features = torch.randn(len(cells), 3, generator=generator, dtype=torch.float64).requires_grad_()
    return spconv.SparseConvTensor(features, cells.int().contiguous(), shape, 2)


@pytest.mark.parametrize('stride', [1, 4, 16])
def test_points_get_trilinear_features_of_the_corners_that_exist(stride):
    coords = voxels()
    tensor = coarse_tensor(coords, stride)
    table = {tuple(cell): i for i, cell in enumerate(tensor.indices.tolist())}
    found = CoarseCells(coords, tensor, stride).to_points(tensor.features)
    for (b, *point), row in zip(coords.tolist(), found, strict=True):
        total, expected = 0.0, torch.zeros(3, dtype=torch.float64)
        for corner in itertools.product((0, 1), repeat=3):
            weight = 1.0
            for position, step in zip(point, corner, strict=True):
                inside = position / stride - position // stride
                weight *= inside if step else 1 - inside
            cell = table.get((b, *(p // stride + step for p, step in zip(point, corner, strict=True))))
            if cell is not None:
                total, expected = total + weight, expected + weight * tensor.features[cell]
        torch.testing.assert_close(row, expected / (total + 1e-8), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('stride', [1, 4, 16])
def test_cells_get_the_mean_of_their_points(stride):
    coords = voxels()
    tensor = coarse_tensor(coords, stride)
    points = torch.randn(len(coords), 5, dtype=torch.float64)
    found = CoarseCells(coords, tensor, stride).to_cells(points)
    for cell, row in zip(tensor.indices.tolist(), found, strict=True):
        inside = [i for i, (b, *p) in enumerate(coords.tolist()) if [b, *(x // stride for x in p)] == cell]
        torch.testing.assert_close(row, points[inside].mean(0) if inside else torch.zeros(5, dtype=torch.float64))


def test_gradients_by_finite_differences():
    coords = voxels(num=20)
    tensor = coarse_tensor(coords, 4)
    cells = CoarseCells(coords, tensor, 4)
    points = torch.randn(len(coords), 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(cells.to_cells, points)
    weights = torch.randn(len(coords), 3)

    def total(features):  # embedding_bag has no second derivative, but the first must be right
        return (cells.to_points(features) * weights).sum()

    torch.autograd.gradcheck(total, tensor.features)


def backbone(kind=SPVCNNBackbone, **options):
    torch.manual_seed(0)
    channels = dict(encoder_channels=[4, 6, 8, 10], decoder_channels=[10, 8, 6, 6], sparseconv_backend='spconv')
    sizes = dict(in_channels=4, base_channels=4, encoder_blocks=[1] * 4, decoder_blocks=[1] * 4)
    return kind(**{**sizes, **channels, **options})


@pytest.mark.parametrize(('kind', 'width'), [(SPVCNNBackbone, 6), (MinkUNetBackboneV2, 10 + 8 + 6)])
def test_every_voxel_gets_a_feature_and_every_weight_a_gradient(kind, width):
    model, coords = backbone(kind), voxels()
    features = model(torch.randn(len(coords), 4), coords)
    assert features.shape == (len(coords), width)
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize('kind', [SPVCNNBackbone, MinkUNetBackboneV2])
def test_order_of_voxels_does_not_matter(kind):
    """Row i of the result belongs to voxel i."""
    model, coords = backbone(kind).eval(), voxels()
    values = torch.randn(len(coords), 4)
    expected = model(values, coords)
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(3))
    order = order[coords[order, 0].argsort(stable=True)]
    assert not torch.equal(order, torch.arange(len(order)))
    torch.testing.assert_close(model(values[order], coords[order]), expected[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', [SPVCNNBackbone, MinkUNetBackboneV2])
def test_scenes_of_a_batch_are_apart(kind):
    model, coords = backbone(kind).eval(), voxels()
    values = torch.randn(len(coords), 4)
    both = model(values, coords)
    second = coords[:, 0] == 1
    # another origin of the grid would be another pooling
    alone = torch.cat([coords[second][:, :1] - 1, coords[second][:, 1:]], 1)
    torch.testing.assert_close(model(values[second], alone), both[second], rtol=1e-4, atol=1e-5)


def test_the_last_voxels_have_a_deepest_feature_too():
    """spconv drops cells of which a part lies outside; the grid is extended to whole ones."""
    seen = []
    model = backbone(MinkUNetBackboneV2).eval()
    model.encoder[3].register_forward_hook(lambda _, inputs, output: seen.append(output))
    coords = voxels()
    model(torch.randn(len(coords), 4), coords)
    assert (CoarseCells(coords, seen[0], 16).rows(torch.zeros(3, dtype=torch.long)) >= 0).all()


def test_point_branch_in_numbers():
    """With the convolutions silenced the result is that of the point transforms alone."""
    model, coords = backbone().eval(), voxels()
    stem = []
    model.conv_input.register_forward_hook(lambda _, inputs, output: stem.append(output.features))
    for name, parameter in model.named_parameters():
        if name.startswith(('encoder', 'decoder')):
            torch.nn.init.zeros_(parameter)
    found = model(torch.randn(len(coords), 4), coords)
    points = model.point_transforms[1](model.point_transforms[0](stem[0]))
    torch.testing.assert_close(found, model.point_transforms[2](points))


def test_lists_of_the_config_stay_as_they_are():
    encoder, decoder = [4, 6, 8, 10], [10, 8, 6, 6]
    for kind in (SPVCNNBackbone, MinkUNetBackboneV2):
        backbone(kind, encoder_channels=encoder, decoder_channels=decoder)
    assert (encoder, decoder) == ([4, 6, 8, 10], [10, 8, 6, 6])


def test_parameters_are_named_as_in_mmdet3d():
    state = backbone().state_dict()
    shapes = [state[f'point_transforms.{i}.0.weight'].shape for i in range(3)]
    assert [tuple(shape) for shape in shapes] == [(10, 4), (8, 10), (6, 8)]
    plain = MinkUNetBackbone(
        in_channels=4, base_channels=4, encoder_channels=[4, 6, 8, 10], encoder_blocks=[1] * 4,
        decoder_channels=[10, 8, 6, 6], decoder_blocks=[1] * 4, sparseconv_backend='spconv',
    )  # fmt: skip
    assert set(plain.state_dict()) == {name for name in state if not name.startswith('point_transforms')}


def test_autocast():
    model, coords = backbone(), voxels()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = model(torch.randn(len(coords), 4), coords)
    F.mse_loss(features.float(), torch.zeros_like(features, dtype=torch.float32)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize('kind', [SPVCNNBackbone, MinkUNetBackboneV2])
def test_batch_index_behind_the_coordinates_is_noticed(kind):
    coords = voxels()
    with pytest.raises(ValueError, match=r'batch index in the first column.*batch_first=True'):
        backbone(kind)(torch.randn(len(coords), 4), coords.roll(-1, 1))


def test_no_voxels_and_wrong_stages():
    with pytest.raises(ValueError, match='needs at least one voxel, got none'):
        backbone()(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match='SPVCNN needs 4 stages'):
        backbone(num_stages=2, encoder_channels=[4, 6], decoder_channels=[6, 4])


def test_other_backends_go_to_mmdet3d():
    with pytest.raises(AssertionError, match='only supports torchsparse'):
        backbone(sparseconv_backend='minkowski')


def test_needed_because_mmdet3d_takes_torchsparse_alone():
    spvcnn_spconv.WORKAROUND.remove()
    module = sys.modules['mmdet3d.models.backbones.spvcnn_backone']
    for kind in (module.SPVCNNBackbone, module.MinkUNetBackboneV2):
        with pytest.raises(AssertionError, match='only supports torchsparse'):
            backbone(kind)
