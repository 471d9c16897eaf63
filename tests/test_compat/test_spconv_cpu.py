# SPDX-License-Identifier: Apache-2.0
"""Sparse convolutions on the CPU against dense ones, with one and two threads."""

import pytest
import torch
import torch.nn.functional as F

spconv = pytest.importorskip('spconv.pytorch')

from spconv.pytorch import ops  # noqa: E402

from clusterplug.compat.spconv import spconv_cpu  # noqa: E402

SHAPE = [9, 8, 7]


@pytest.fixture(autouse=True)
def patched():
    was_active = spconv_cpu.WORKAROUND.active
    spconv_cpu.WORKAROUND.apply()
    yield
    if not was_active:
        spconv_cpu.WORKAROUND.remove()


def sparse(num_points=150, channels=4, batch_size=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, size, (num_points,), generator=generator) for size in (batch_size, *SHAPE)]
    indices = torch.unique(torch.stack(rows, 1), dim=0).int().contiguous()
    features = torch.randn(len(indices), channels, dtype=dtype, generator=generator).requires_grad_()
    return spconv.SparseConvTensor(features, indices, SHAPE, batch_size)


def dense_of(x):
    index = x.indices.long()
    grid = x.features.new_zeros(x.batch_size, *x.spatial_shape, x.features.shape[1])
    return grid.index_put(tuple(index.T), x.features).movedim(-1, 1)


def at_voxels(grid, x):
    index = x.indices.long()
    return grid.movedim(1, -1)[tuple(index.T)]


def dense_weight(conv):
    return conv.weight.permute(0, 4, 1, 2, 3)


def check_against_dense(conv, x, dense_output):
    """Compare output and both gradients with those of ``dense_output(grid, weight)``."""
    y = conv(x)
    expected = at_voxels(dense_output(dense_of(x), dense_weight(conv)), y)
    torch.testing.assert_close(y.features, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x.features, conv.weight), grad)
    got = torch.autograd.grad(y.features, (x.features, conv.weight), grad)
    for ours, theirs in zip(got, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('threads', [1, 2])
def test_submanifold_convolution_equals_dense(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=False).double()
        check_against_dense(conv, sparse(), lambda grid, weight: F.conv3d(grid, weight, padding=1))
    finally:
        torch.set_num_threads(before)


def test_strided_convolution_equals_dense():
    conv = spconv.SparseConv3d(4, 5, 2, stride=2, bias=False).double()
    check_against_dense(conv, sparse(), lambda grid, weight: F.conv3d(grid, weight, stride=2))


def test_inverse_convolution_equals_transposed_dense():
    down = spconv.SparseConv3d(4, 4, 2, stride=2, bias=False, indice_key='down').double()
    up = spconv.SparseInverseConv3d(4, 3, 2, indice_key='down', bias=False).double()
    x = sparse()
    coarse = down(x)
    fine = up(coarse)
    assert torch.equal(fine.indices, x.indices)
    # Output i of the inverse convolution reads the coarse voxel that i went to, through the same offset.
    padding = [size - 2 * (size // 2) for size in SHAPE]
    weight = up.weight.permute(4, 0, 1, 2, 3)
    expected = at_voxels(F.conv_transpose3d(dense_of(coarse), weight, stride=2, output_padding=padding), fine)
    torch.testing.assert_close(fine.features, expected, rtol=1e-10, atol=1e-12)
    inputs = up.weight, down.weight, x.features
    gradients = torch.autograd.grad(fine.features.square().sum(), inputs, retain_graph=True)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for ours, theirs in zip(gradients, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_gradients_by_finite_differences():
    x = sparse(num_points=12, channels=2, batch_size=1)
    conv = spconv.SubMConv3d(2, 2, 3, padding=1, bias=False).double()

    def run(features, weight):
        conv.weight.data = weight.detach()
        y = conv._conv_forward(True, x.replace_feature(features), weight, None)
        return y.features

    torch.autograd.gradcheck(run, (x.features, conv.weight), atol=1e-6)


@pytest.mark.parametrize('training', [True, False])
def test_bias_is_added_in_training_and_in_evaluation(training):
    conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=True).double().train(training)
    torch.nn.init.normal_(conv.bias)
    x = sparse()
    without = spconv.SubMConv3d(4, 5, 3, padding=1, bias=False).double()
    without.weight = conv.weight
    torch.testing.assert_close(conv(x).features, without(x).features + conv.bias)


def test_fused_activation():
    from cumm import tensorview as tv

    conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=True).double().eval()
    conv.act_type = tv.gemm.Activation.ReLU
    plain = spconv.SubMConv3d(4, 5, 3, padding=1, bias=True).double().eval()
    plain.load_state_dict(conv.state_dict())
    x = sparse()
    torch.testing.assert_close(conv(x).features, plain(x).features.relu())


def test_isolated_voxels_have_no_neighbours():
    indices = torch.tensor([[0, 0, 0, 0], [0, 4, 4, 4]], dtype=torch.int32)
    x = spconv.SparseConvTensor(torch.ones(2, 4, dtype=torch.float64), indices, SHAPE, 1)
    conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=False).double()
    torch.testing.assert_close(conv(x).features, x.features @ conv.weight[:, 1, 1, 1].T)


def test_autocast_computes_in_the_type_of_the_weights():
    conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=False)
    x = sparse(dtype=torch.float32)
    half = x.replace_feature(x.features.detach().bfloat16().requires_grad_())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = conv(half)
        y.features.sum().backward()
    assert y.features.dtype == torch.float32
    assert half.features.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y.features, conv(x.replace_feature(half.features.float())).features)


def test_equal_to_spconv_itself_in_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = sparse(num_points=2000, dtype=torch.float32)
        conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=False)
        ours = conv(x).features
        spconv_cpu.WORKAROUND.remove()
        torch.testing.assert_close(ours, conv(x).features, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_needed_because_spconv_has_no_backward_pass_on_the_cpu():
    if torch.cuda.is_available():
        pytest.skip('with a CUDA device spconv finds the stream it asks for')
    spconv_cpu.WORKAROUND.remove()
    conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=False)
    with pytest.raises((RuntimeError, AssertionError)):
        conv(sparse(dtype=torch.float32)).features.sum().backward()


def test_needed_because_spconv_refuses_bias_in_evaluation():
    spconv_cpu.WORKAROUND.remove()
    conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=True).eval()
    with pytest.raises(AssertionError):
        conv(sparse(dtype=torch.float32))


def test_other_devices_go_to_spconv_unchanged(monkeypatch):
    spconv_cpu.WORKAROUND.remove()
    calls = []
    for name in ('indice_conv', 'indice_conv_backward'):
        monkeypatch.setattr(ops, name, lambda *args, name=name, **kwargs: calls.append((name, args, kwargs)))
    spconv_cpu.WORKAROUND.apply()
    features = torch.empty(3, 4, device='meta')
    for name in ('indice_conv', 'indice_conv_backward'):
        getattr(ops, name)(features, 1, 2, 3, 4, True, subm=False, algo='a')
        assert calls.pop() == (name, (features, 1, 2, 3, 4, True), dict(subm=False, algo='a'))
    spconv_cpu.WORKAROUND.remove()


def test_layers_that_share_a_kernel_map_share_its_plan(monkeypatch):
    counted = []
    group = spconv_cpu._group
    monkeypatch.setattr(spconv_cpu, '_group', lambda *args: counted.append(1) or group(*args))
    net = spconv.SparseSequential(*[spconv.SubMConv3d(4, 4, 3, padding=1, indice_key='a') for _ in range(3)]).double()
    net(sparse()).features.sum().backward()
    assert len(counted) == 2
