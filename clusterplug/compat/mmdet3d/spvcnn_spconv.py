# SPDX-License-Identifier: Apache-2.0
"""SPVCNN and MinkUNet V2 with spconv; mmdet3d has them for torchsparse alone.

Both carry a feature for each point (here: each input voxel) beside the sparse tensors. Point features come from a
coarse tensor by trilinear interpolation between the corners that exist, and go into it as means over its cells.
"""

import inspect
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.compat.workaround import Workaround

_COARSEST = 16  # voxels in a cell of the deepest of four stages
_WIDTHS = ('encoder_channels', 'decoder_channels')


class CoarseCells:
    """Where points lie in a coarser sparse tensor.

    Args:
        coordinates: (N, 4) integer, batch index first, of the points in the finest grid.
        tensor: A sparse tensor of spconv with M voxels, ``stride`` times coarser.
        stride: Points in a cell along each axis.
    """

    def __init__(self, coordinates: Tensor, tensor, stride: int):
        coordinates = coordinates.long()
        self.shape = [int(size) for size in tensor.spatial_shape]
        self.keys, self.order = self._keys(tensor.indices.long()).sort()
        self.batch, self.cells = coordinates[:, :1], coordinates[:, 1:] // stride
        self.inside = (coordinates[:, 1:] % stride) / stride

    def _keys(self, cells: Tensor) -> Tensor:
        key = cells[..., 0]
        for axis, size in enumerate(self.shape, start=1):
            # one more along each axis: a corner behind the last cell is nobody's
            key = key * (size + 1) + cells[..., axis]
        return key

    def rows(self, offset: Tensor) -> Tensor:
        """(N, ...) row of each point's cell moved by ``offset`` (..., 3) cells; -1 where there is none."""
        cells = self.cells.view(-1, *[1] * (offset.dim() - 1), 3) + offset
        batch = self.batch.view(-1, *[1] * offset.dim()).expand(*cells.shape[:-1], 1)
        wanted = self._keys(torch.cat([batch, cells], -1))
        place = torch.searchsorted(self.keys, wanted).clamp_max_(len(self.keys) - 1)
        return torch.where(self.keys[place] == wanted, self.order[place], -1)

    def to_points(self, features: Tensor) -> Tensor:
        """(N, C) features at the points from (M, C): trilinear, with weights of the corners that exist scaled to 1."""
        corners = torch.tensor([[k >> 2 & 1, k >> 1 & 1, k & 1] for k in range(8)], device=self.cells.device)
        inside = self.inside[:, None]
        weights = torch.where(corners == 1, inside, 1 - inside).prod(-1)
        rows = self.rows(corners)
        weights = weights * (rows >= 0)
        weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
        weights = weights.to(features.dtype)
        return F.embedding_bag(rows.clamp_min(0), features, mode='sum', per_sample_weights=weights)

    def to_cells(self, features: Tensor) -> Tensor:
        """(M, C) means of point features (N, C) over the points of each cell; 0 where a cell has none."""
        rows = self.rows(self.cells.new_zeros(3))
        # points without a cell go to a spare row
        rows = torch.where(rows < 0, len(self.keys), rows)
        total = features.new_zeros(len(self.keys) + 1, features.shape[1]).index_add(0, rows, features)
        count = features.new_zeros(len(self.keys) + 1).index_add(0, rows, features.new_ones(len(rows)))
        return (total / count.clamp_min(1)[:, None])[:-1]


def _sparse_tensor(backbone, features: Tensor, coordinates: Tensor):
    if len(coordinates) == 0:
        raise ValueError(f'{type(backbone).__name__} needs at least one voxel, got none')
    if (coordinates[1:, 0] < coordinates[:-1, 0]).any():
        raise ValueError(
            f'{type(backbone).__name__} with spconv takes the batch index in the first column of the coordinates; '
            f'set data_preprocessor=dict(batch_first=True)'
        )
    # A grid of whole coarse cells, as spconv would drop the voxels of an incomplete one; torchsparse keeps them.
    shape = [(int(last) // _COARSEST + 1) * _COARSEST for last in coordinates[:, 1:].amax(0)]
    tensor = _host(backbone).SparseConvTensor
    return tensor(features, coordinates.int(), shape, int(coordinates[-1, 0]) + 1)


def _host(backbone):
    """The module of MinkUNet, which knows which spconv is installed."""
    return sys.modules[next(kind.__module__ for kind in type(backbone).__mro__ if kind.__name__ == 'MinkUNetBackbone')]


def _encode(backbone, x):
    """The deepest tensor, and those before it from coarse to fine."""
    tensors = [backbone.conv_input(x)]
    for encoder in backbone.encoder:
        tensors.append(encoder(tensors[-1]))
    return tensors[-1], tensors[-2::-1]


def _decode(backbone, decoder, x, lateral):
    x = decoder[0](x)
    x = _host(backbone).replace_feature(x, torch.cat((x.features, lateral.features), dim=1))
    return decoder[1](x)


def _forward(backbone, voxel_features: Tensor, coors: Tensor) -> Tensor:
    """Point features (N, C) of SPVCNN, in the order of ``coors`` (N, 4)."""
    x, laterals = _encode(backbone, _sparse_tensor(backbone, voxel_features, coors))
    points = laterals[-1].features
    # the point branch meets the voxels at the deepest stage, after the second decoder, and at the end
    for number, stage in enumerate((0, 2)):
        cells = CoarseCells(coors, x, _COARSEST >> stage)
        points = cells.to_points(x.features) + backbone.point_transforms[number](points)
        mixed = cells.to_cells(points).to(x.features.dtype)
        x = _host(backbone).replace_feature(x, backbone.dropout(mixed))
        for i in (stage, stage + 1):
            x = _decode(backbone, backbone.decoder[i], x, laterals[i])
    return x.features + backbone.point_transforms[2](points)


def _forward_v2(backbone, voxel_features: Tensor, coors: Tensor) -> Tensor:
    """Point features (N, C) of MinkUNet V2: those of the deepest stage and of every second decoder, side by side."""
    x, laterals = _encode(backbone, _sparse_tensor(backbone, voxel_features, coors))
    stride = 2 ** len(laterals)
    features = [CoarseCells(coors, x, stride).to_points(x.features)]
    for i, (decoder, lateral) in enumerate(zip(backbone.decoder, laterals, strict=True)):
        x, stride = _decode(backbone, decoder, x, lateral), stride // 2
        if i % 2:
            features.append(x.features if stride == 1 else CoarseCells(coors, x, stride).to_points(x.features))
    return torch.cat(features, dim=1)


def _add_point_branch(backbone, base: int, encoder: list[int], decoder: list[int], drop_ratio: float) -> None:
    widths = [(base, encoder[-1]), (encoder[-1], decoder[1]), (decoder[1], decoder[3])]
    backbone.point_transforms = nn.ModuleList(
        nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(True)) for before, after in widths
    )
    backbone.dropout = nn.Dropout(drop_ratio, True)


def patch(module):
    """Replace ``__init__`` and ``forward`` of both backbones where ``sparseconv_backend='spconv'``, and only there."""

    def adapt(kind, forward, with_branch):
        host_init, host_forward = kind.__init__, kind.forward
        signature = inspect.signature(host_init)

        def __init__(self, *args, **kwargs):
            options = signature.bind(self, *args, **kwargs)
            options.apply_defaults()
            given = {**options.arguments, **options.arguments['kwargs']}
            if given['sparseconv_backend'] != 'spconv':
                host_init(self, *args, **kwargs)
                return
            # lists of their own: the host puts numbers in front of those that it gets
            encoder, decoder = (list(given.get(name, ())) for name in _WIDTHS)
            options = {name: given[name] for name in given if name not in ('self', 'kwargs', 'drop_ratio')}
            options.update({name: list(given[name]) for name in _WIDTHS if name in given})
            module.MinkUNetBackbone.__init__(self, **options)
            if with_branch:
                if len(encoder) != 4:
                    raise ValueError(f'SPVCNN needs 4 stages, got encoder_channels={encoder}')
                _add_point_branch(self, given['base_channels'], encoder, decoder, given['drop_ratio'])

        def run(self, voxel_features, coors):
            return (forward if self.sparseconv_backend == 'spconv' else host_forward)(self, voxel_features, coors)

        return [(kind, '__init__', __init__), (kind, 'forward', run)]

    return adapt(module.SPVCNNBackbone, _forward, True) + adapt(module.MinkUNetBackboneV2, _forward_v2, False)


WORKAROUND = Workaround(
    name='spvcnn_spconv',
    host='mmdet3d.models.backbones.spvcnn_backone',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d builds SPVCNN with spconv',
)
