# SPDX-License-Identifier: Apache-2.0
"""mmcv's sparse convolution on the CPU against dense ones, and with pairs that layers of different kernels share."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmcv.ops', exc_type=ImportError)

from mmcv.ops import SparseConv3d, SparseConvTensor, SparseConvTranspose3d, SparseInverseConv3d, SubMConv3d

from clusterplug import compat
from clusterplug.compat.mmcv import mmcv_sparse_conv

SHAPE = [9, 8, 7]


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()
    yield
    compat.apply_all()


def sparse(num_points=150, channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, size, (num_points,), generator=generator) for size in (2, *SHAPE)]
    indices = torch.unique(torch.stack(rows, 1), dim=0).int()
    indices = indices[torch.randperm(len(indices), generator=generator)].contiguous()
    features = torch.randn(len(indices), channels, generator=generator).requires_grad_()
    return SparseConvTensor(features, indices, SHAPE, 2)


def dense_of(x):
    index = x.indices.long()
    grid = x.features.new_zeros(x.batch_size, *x.spatial_shape, x.features.shape[1])
    return grid.index_put(tuple(index.T), x.features).movedim(-1, 1)


def at_voxels(grid, x):
    return grid.movedim(1, -1)[tuple(x.indices.long().T)]


def as_dense(weight):
    return weight.permute(4, 3, 0, 1, 2)  # mmcv's is (*kernel, in, out)


def check_against_dense(conv, x, dense):
    y = conv(x)
    grid = dense(dense_of(x), as_dense(conv.weight))
    assert list(grid.shape[2:]) == list(y.spatial_shape)
    expected = at_voxels(grid, y)
    if conv.bias is not None:
        expected = expected + conv.bias
    torch.testing.assert_close(y.features, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x.features, conv.weight), grad)
    for ours, theirs in zip(torch.autograd.grad(y.features, (x.features, conv.weight), grad), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    return y


@pytest.mark.parametrize('kernel', [3, (1, 3, 3), (3, 1, 3), (3, 1, 1), (5, 3, 1)])
@pytest.mark.parametrize('bias', [False, True])
def test_submanifold_convolution(kernel, bias):
    padding = tuple(size // 2 for size in (kernel if isinstance(kernel, tuple) else (kernel,) * 3))
    conv = SubMConv3d(4, 5, kernel, padding=1, bias=bias)
    y = check_against_dense(conv, sparse(), lambda x, w: F.conv3d(x, w, padding=padding))
    assert torch.equal(y.indices, sparse().indices)


def test_submanifold_convolution_with_an_even_kernel():
    conv = SubMConv3d(4, 5, 2, bias=False)
    check_against_dense(conv, sparse(), lambda x, w: F.conv3d(F.pad(x, (1, 0) * 3), w))


def test_submanifold_convolution_with_dilation_is_refused():
    with pytest.raises(ValueError, match=r'must have dilation 1, got \[2, 2, 2\].*off center'):
        SubMConv3d(4, 5, 3, dilation=2, bias=False)(sparse())


@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding', 'dilation'),
    [(3, 2, 1, 1), (3, (2, 2, 1), 1, 1), (2, 2, 0, 1), (3, 1, 0, 2), ((3, 1, 1), (2, 1, 1), 0, 1)],
)
def test_strided_convolution(kernel, stride, padding, dilation):
    options = dict(stride=stride, padding=padding, dilation=dilation)
    x = sparse()
    y = check_against_dense(
        SparseConv3d(4, 5, kernel, bias=False, **options), x, lambda g, w: F.conv3d(g, w, **options)
    )
    kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
    reached = F.conv3d((dense_of(x) != 0).any(1, keepdim=True).float(), torch.ones(1, 1, *kernel), **options) > 0
    assert torch.equal(y.indices.long(), reached[:, 0].nonzero())  # all of them, in lexicographic order


def test_transposed_convolution():
    conv = SparseConvTranspose3d(4, 5, 3, stride=2, padding=1, bias=False)
    x = sparse(40)
    y = conv(x)
    expected = F.conv_transpose3d(dense_of(x), conv.weight.permute(3, 4, 0, 1, 2), stride=2, padding=1)
    torch.testing.assert_close(y.features, at_voxels(expected, y), rtol=1e-4, atol=1e-5)
    assert y.features.abs().sum().item() == pytest.approx(expected.abs().sum().item(), rel=1e-4)  # nothing is missing


def test_inverse_convolution_goes_back_to_the_voxels():
    x = sparse()
    down = SparseConv3d(4, 4, 3, stride=2, padding=1, bias=False, indice_key='down')
    up = SparseInverseConv3d(4, 3, 3, indice_key='down', bias=False)
    coarse = down(x)
    fine = up(coarse)
    assert torch.equal(fine.indices, x.indices)
    output_padding = [size - (2 * n - 1) for size, n in zip(SHAPE, coarse.spatial_shape, strict=True)]
    weight = up.weight.permute(3, 4, 0, 1, 2)
    grid = F.conv_transpose3d(dense_of(coarse), weight, stride=2, padding=1, output_padding=output_padding)
    expected = at_voxels(grid, fine)
    torch.testing.assert_close(fine.features, expected, rtol=1e-4, atol=1e-5)
    inputs = up.weight, down.weight, x.features
    gradients = torch.autograd.grad(fine.features.square().sum(), inputs, retain_graph=True)
    for ours, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)


def test_layers_with_one_indice_key_share_the_pairs_of_the_first():
    """As on CUDA: the second convolves along the axes of the first, the third with its first 9 weights alone."""
    x = sparse()
    first = SubMConv3d(4, 4, (1, 3, 3), bias=False, indice_key='a')
    second = SubMConv3d(4, 4, (3, 1, 3), bias=False, indice_key='a')
    third = SubMConv3d(4, 4, 3, bias=False, indice_key='a')
    y = third(second(first(x)))
    own = [SubMConv3d(4, 4, (1, 3, 3), bias=False) for _ in range(3)]
    with torch.no_grad():
        for layer, shared in zip(own, (first, second, third), strict=True):
            layer.weight.copy_(shared.weight.flatten(0, 2)[:9].view(1, 3, 3, 4, 4))
    expected = own[2](own[1](own[0](x)))
    torch.testing.assert_close(y.features, expected.features)
    y.features.sum().backward()
    assert third.weight.grad.flatten(0, 2)[9:].abs().sum() == 0
    assert third.weight.grad.flatten(0, 2)[:9].abs().sum() > 0


def test_a_kernel_that_is_too_small_for_shared_pairs():
    x = SubMConv3d(4, 4, 3, bias=False, indice_key='a')(sparse())
    with pytest.raises(ValueError, match=r'a kernel of 9 weights cannot use the pairs .* which has 27; give it an'):
        SubMConv3d(4, 4, (1, 3, 3), bias=False, indice_key='a')(x)


def test_voxels_that_occur_twice():
    indices = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 2]], dtype=torch.int32)
    x = SparseConvTensor(torch.ones(3, 4), indices, SHAPE, 1)
    assert SubMConv3d(4, 5, 3, bias=False)(x).features.isfinite().all()


def test_isolated_voxels_and_cells_outside():
    indices = torch.tensor([[0, 0, 0, 0], [1, 8, 7, 6]], dtype=torch.int32)
    x = SparseConvTensor(torch.ones(2, 4), indices, SHAPE, 2)
    conv = SubMConv3d(4, 5, 3, bias=False)
    torch.testing.assert_close(conv(x).features, x.features @ conv.weight[1, 1, 1])
    y = SparseConv3d(4, 5, 2, stride=2, bias=False)(x)  # the last cells of two axes do not fit into the coarse grid
    assert y.indices.tolist() == [[0, 0, 0, 0]]


def test_no_voxels():
    x = SparseConvTensor(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32), SHAPE, 1)
    assert SubMConv3d(4, 5, 3, bias=False)(x).features.shape == (0, 5)


def test_needed_because_mmcv_finds_no_pairs_on_the_cpu():
    mmcv_sparse_conv.WORKAROUND.remove()
    with pytest.raises(RuntimeError, match='get_indice_pairs is not implemented on CPU'):
        SubMConv3d(4, 5, 3, bias=False)(sparse())
