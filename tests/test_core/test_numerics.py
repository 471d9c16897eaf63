# SPDX-License-Identifier: Apache-2.0
"""Types of state: never below fp32, as wide as asked; values that are not read on the host."""

import pytest
import torch

from clusterplug import functional
from clusterplug.core.numerics import keep_fp32, keep_types
from clusterplug.heads import GrassmannHead
from clusterplug.losses import KoopmanLoss, PointClusterLoss, SelfExpressionLoss


@pytest.mark.parametrize('kept', [torch.float32, torch.float64])
def test_state_is_never_narrowed_and_indices_stay(kept):
    state = torch.zeros(2, dtype=kept)
    for narrow in (torch.float16, torch.bfloat16):
        assert keep_fp32(lambda tensor, narrow=narrow: tensor.to(narrow))(state).dtype == torch.float32
    assert keep_fp32(lambda tensor: tensor.float())(state).dtype == torch.float32
    assert keep_fp32(lambda tensor: tensor)(torch.zeros(2, dtype=torch.int64)).dtype == torch.int64


def test_types_that_are_kept():
    for narrow in (torch.float16, torch.bfloat16, torch.float32):
        assert (
            keep_types(lambda tensor, narrow=narrow: tensor.to(narrow))(torch.ones(1).double()).dtype == torch.float64
        )
        assert keep_types(lambda tensor, narrow=narrow: tensor.to(narrow))(torch.ones(1)).dtype == torch.float32
    assert keep_types(lambda tensor: tensor.to('meta'))(torch.ones(1).double()).device.type == 'meta'


@pytest.mark.parametrize(
    'module', [GrassmannHead(6, 3, subspace_dim=2), KoopmanLoss(4, 'learned'), SelfExpressionLoss(5)]
)
def test_double_widens_and_half_does_not_narrow(module):
    module.double()
    assert {each.dtype for each in module.parameters()} == {torch.float64}
    module.half()
    assert {each.dtype for each in module.parameters()} == {torch.float32}


def test_a_head_in_float64_is_exact_in_float64():
    head = GrassmannHead(6, 3, subspace_dim=2).double()
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(head, (x,))
    basis = head.fc.weight.detach().unflatten(0, (3, 2))
    expected = 25.0 * torch.einsum('knd,bd->bkn', basis, x.detach() / x.detach().norm(dim=1, keepdim=True)).norm(dim=2)
    torch.testing.assert_close(head(x).detach(), expected, rtol=1e-12, atol=1e-12)


def test_modules_that_compute_in_fp32_stay_there():
    loss = PointClusterLoss(num_classes=3, in_channels=4, num_clusters=2).double()
    assert {each.dtype for each in loss.state_dict().values() if each.is_floating_point()} == {torch.float32}
    out = loss(torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3)
    assert all(torch.isfinite(each) for each in out.values())


@pytest.mark.parametrize(
    ('function', 'shapes'),
    [
        (lambda x, b: functional.grassmann_logits(x, functional.orthonormal_frame(b)), [(5, 6), (3, 6, 2)]),
        (lambda z: functional.temporal_contrast(z, num_neighbors=2, temperature=0.3), [(2, 9, 4)]),
        (functional.linear_cka, [(9, 4), (9, 3)]),
        (functional.unit_correlation, [(9, 4), (9, 3)]),
        (lambda x: functional.cluster_target(x.softmax(-1)), [(9, 4)]),
    ],
)
def test_values_are_not_read_under_vmap(function, shapes):
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(3, *shape, dtype=torch.float64, generator=generator) for shape in shapes]
    expected = torch.stack([function(*each) for each in zip(*batch, strict=True)])
    torch.testing.assert_close(torch.func.vmap(function)(*batch), expected)
