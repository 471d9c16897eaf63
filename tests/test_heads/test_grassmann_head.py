# SPDX-License-Identifier: Apache-2.0
"""GrassmannHead: layout, checkpoints, repair, layouts of features, casts."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from clusterplug.functional import grassmann_logits
from clusterplug.heads import GrassmannHead


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def deviation(head):
    rows = head.fc.weight.detach().unflatten(0, (head.num_classes, head.subspace_dim))
    return (rows @ rows.mT - torch.eye(head.subspace_dim)).abs().max()


def test_rows_of_the_weight_are_the_bases_of_the_classes():
    head = GrassmannHead(12, 5, subspace_dim=3)
    assert list(head.state_dict()) == ['fc.weight']
    assert head.fc.weight.shape == (15, 12)
    assert deviation(head) < 1e-6
    x = torch.randn(2, 7, 12)
    assert torch.equal(head(x), grassmann_logits(x, head.bases, 25.0))
    by_hand = 25 * (head.fc.weight[6:9] @ x[0, 0] / x[0, 0].norm()).norm()  # rows 2 n .. 3 n - 1 are class 2
    torch.testing.assert_close(head(x)[0, 0, 2], by_hand)


def test_layouts_of_features():
    x = torch.randn(2, 12, 4, 3)
    head = GrassmannHead(12, 5, 2, channels_first=True)
    expected = grassmann_logits(x.permute(0, 2, 3, 1), head.bases).permute(0, 3, 1, 2)
    assert torch.equal(head(x), expected)
    assert head(x[..., 0, 0]).shape == (2, 5)
    spconv = pytest.importorskip('spconv.pytorch')
    indices = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3]], dtype=torch.int32)
    sparse = spconv.SparseConvTensor(torch.randn(2, 12), indices, (4, 4, 4), 1)
    head = GrassmannHead(12, 5, 2)
    assert torch.equal(head(sparse).features, head(sparse.features))
    assert torch.equal(head(sparse).indices, indices)


def test_bias_centers_what_a_random_feature_gets():
    head = GrassmannHead(256, 4, 8, bias=True)
    assert head.bias.shape == (4,)
    logits = head(torch.randn(2000, 256))
    assert logits.mean().abs() < 0.2
    nn.init.constant_(head.bias, -4.6)
    assert head(torch.randn(2000, 256)).sigmoid().mean() < 0.05
    assert logits.requires_grad


def test_casting_a_model_leaves_the_bases_in_fp32():
    head = GrassmannHead(16, 3, 4)
    half = copy.deepcopy(head).half()
    assert half.fc.weight.dtype == torch.float32
    x = torch.randn(5, 16)
    assert half(x.half()).dtype == torch.float16
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(head(x), grassmann_logits(x, head.bases))


def test_official_checkpoint_loads_and_a_broken_one_is_repaired():
    torch.manual_seed(0)
    head, saved = GrassmannHead(16, 3, 4), GrassmannHead(16, 3, 4).state_dict()
    head.load_state_dict(saved)
    assert torch.equal(head.fc.weight, saved['fc.weight'])
    narrow = {'fc.weight': saved['fc.weight'].bfloat16()}
    head.load_state_dict(narrow)  # rounding alone: no warning
    assert deviation(head) < 1e-6
    broken = {'fc.weight': torch.randn(12, 16)}
    kept = broken['fc.weight'].clone()
    with pytest.warns(UserWarning, match=r'fc\.weight of the checkpoint are not orthonormal'):
        head.load_state_dict(broken)
    assert deviation(head) < 1e-6
    assert torch.equal(broken['fc.weight'], kept)
    spans = torch.linalg.matrix_rank(torch.cat([head.fc.weight[:4], kept[:4]]).detach())
    assert spans == 4  # the same subspace
    with pytest.raises(RuntimeError, match='size mismatch'):
        head.load_state_dict({'fc.weight': torch.randn(8, 16)})


def test_another_optimizer_is_noticed_and_repaired_at_the_next_switch():
    head = GrassmannHead(16, 3, 4)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    x, y = torch.randn(30, 16), torch.arange(30) % 3
    nn.functional.cross_entropy(head(x), y).backward()
    optimizer.step()
    head(x)  # within an epoch nothing is looked at, as it would stop the device
    with pytest.warns(UserWarning, match='RiemannianSGD'):
        head.eval()(x)
    assert deviation(head) < 1e-6
    head.eval()(x)


def test_initializations_of_hosts_leave_it_orthonormal():
    engine = pytest.importorskip('mmengine.model')
    init = dict(
        type='Normal', layer=['Linear', 'Conv2d'], std=0.01, override=dict(type='Normal', name='classifier', std=1.0)
    )

    class Host(engine.BaseModule):
        def __init__(self):
            super().__init__(init_cfg=init)
            self.classifier = GrassmannHead(8, 3, 2, bias=True)

    host = Host()
    host.init_weights()
    assert deviation(host.classifier) < 1e-6
    engine.normal_init(host.classifier, std=0.01)
    assert deviation(host.classifier) < 1e-6
    host.classifier.fc.reset_parameters()
    assert deviation(host.classifier) < 1e-6


def test_looks_inside_a_class():
    head = GrassmannHead(10, 3, 2)
    x = torch.randn(4, 10)
    unit = nn.functional.normalize(x, dim=1)
    torch.testing.assert_close(25 * head.coordinates(x, 1).norm(dim=1), head(x)[:, 1])
    torch.testing.assert_close((unit @ head.projector(1)).norm(dim=1) * 25, head(x)[:, 1])
    overlap = head.confusability()
    torch.testing.assert_close(overlap.diagonal(), torch.ones(3))
    torch.testing.assert_close(overlap, overlap.T)


def test_functional_call_and_deep_copies():
    head = GrassmannHead(10, 3, 2)
    x = torch.randn(4, 10)
    weights = {'fc.weight': torch.randn(6, 10)}
    kept = weights['fc.weight'].clone()
    torch.func.functional_call(head, weights, (x,))
    assert torch.equal(weights['fc.weight'], kept)
    grad = torch.func.grad(lambda w: torch.func.functional_call(head, {'fc.weight': w}, (x,)).sum())(head.fc.weight)
    assert grad.isfinite().all()
    assert torch.equal(copy.deepcopy(head)(x), head(x))
    assert torch.equal(torch.compile(head, backend='eager')(x), head(x))


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        ((8, 3, 9), ValueError, 'at most in_channels'),
        ((8, 0), ValueError, 'num_classes'),
        ((8, 3, 0), ValueError, 'subspace_dim'),
        ((8.0, 3), TypeError, 'in_channels'),
        ((8, 3, 2, -1.0), ValueError, 'scale'),
        ((8, 3, 2, math.inf), ValueError, 'scale'),
    ],
)
def test_bad_input(arguments, error, match):
    with pytest.raises(error, match=match):
        GrassmannHead(*arguments)


def test_all_dimensions_are_warned_of():
    with pytest.warns(UserWarning, match='all logits are 25'):
        head = GrassmannHead(8, 3)
    torch.testing.assert_close(head(torch.randn(4, 8)), torch.full((4, 3), 25.0))
