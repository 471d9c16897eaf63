# SPDX-License-Identifier: Apache-2.0
"""HouseholderProjector and register_householder: singular values, nearest matrix, editing, training, hosts."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from clusterplug.heads import PrototypeHead
from clusterplug.layers import HouseholderProjector, register_householder
from clusterplug.losses import PointClusterLoss


def linear(out_features, in_features, seed=0, dtype=torch.float32, bias=True):
    layer = nn.Linear(in_features, out_features, bias).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(out_features, in_features, generator=generator, dtype=torch.float64))
    return layer


@pytest.mark.parametrize(
    ('in_features', 'out_features', 'rank'), [(8, 6, 3), (6, 8, 6), (5, 5, 5), (7, 1, 1), (100, 3, 2)]
)
def test_weight_has_rank_singular_values_of_one(in_features, out_features, rank):
    layer = HouseholderProjector(in_features, out_features, rank)
    expected = torch.tensor([1.0] * rank + [0.0] * (min(in_features, out_features) - rank))
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight().detach()), expected, rtol=0, atol=1e-6)
    x = torch.randn(4, in_features)
    torch.testing.assert_close(layer(x), x @ layer.weight().T + layer.bias)
    torch.testing.assert_close(layer.to_linear()(x), layer(x))


def test_it_stays_so_after_steps_of_any_optimizer():
    layer = HouseholderProjector(12, 9, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.3, weight_decay=0.5)
    x, target = torch.randn(50, 12), torch.randn(50, 9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append((layer(x) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    values = torch.linalg.svdvals(layer.weight().detach())
    torch.testing.assert_close(values, torch.tensor([1.0] * 4 + [0.0] * 5), rtol=0, atol=1e-6)


def test_nearest_matrix_of_a_weight():
    plain = linear(20, 30, dtype=torch.float64)
    layer = HouseholderProjector.from_linear(plain, 4)
    sigma = torch.linalg.svdvals(plain.weight.detach())
    expected = (sigma[:4] - 1).square().sum() + sigma[4:].square().sum()
    torch.testing.assert_close((layer.weight() - plain.weight).detach().square().sum(), expected)
    u, _, vh = torch.linalg.svd(plain.weight.detach())
    torch.testing.assert_close(layer.weight().detach(), u[:, :4] @ vh[:4], rtol=0, atol=1e-13)
    assert torch.equal(layer.bias, plain.bias)
    again = HouseholderProjector.from_linear(layer.to_linear(), 4)  # it is in the set: nothing changes
    torch.testing.assert_close(again.weight(), layer.weight(), rtol=0, atol=1e-13)


def test_learned_singular_values_give_the_best_matrix_of_the_rank():
    plain = linear(6, 9, bias=False)
    layer = HouseholderProjector.from_linear(plain, 6, singular_values='learned')
    torch.testing.assert_close(layer.weight(), plain.weight, rtol=0, atol=1e-5)
    assert layer.bias is None
    torch.testing.assert_close(layer.singular_values, torch.linalg.svdvals(plain.weight), rtol=1e-5, atol=0)
    low = nn.Linear(9, 6)
    nn.init.ones_(low.weight)
    with pytest.raises(ValueError, match='that of the weight'):
        HouseholderProjector.from_linear(low, 2, singular_values='learned')


def test_edits_along_directions_have_equal_and_orthogonal_effects():
    layer = HouseholderProjector.from_linear(linear(9, 7, dtype=torch.float64), 3)
    x = torch.randn(7, dtype=torch.float64)
    changes = layer(x + 5 * layer.directions()) - layer(x)
    torch.testing.assert_close(
        (changes @ changes.T).detach(), 25 * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12
    )
    _u, _s, vh = torch.linalg.svd(linear(9, 7, dtype=torch.float64).weight.detach())
    cosines = (layer.directions() * vh[:3]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64))  # in the order of the singular values


def test_first_layer_of_a_trained_generator():
    """A DCGAN for faces: 100 latent numbers to 512 maps of 4 x 4."""
    package = importlib.util.find_spec('gan_face_generate')
    if package is None:
        pytest.skip('needs gan-face-generate 1.1.1, which nothing else uses')
    path = Path(package.origin).with_name('weights.tar')
    weight = (
        torch.load(path, map_location='cpu', weights_only=True)['netG_state_dict']['main.0.weight']
        .flatten(1)
        .T.double()
    )
    plain = nn.Linear(100, 8192, bias=False, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(weight)
    layer = HouseholderProjector.from_linear(plain, 10)
    values = torch.linalg.svdvals(layer.weight().detach())
    torch.testing.assert_close(values, torch.tensor([1.0] * 10 + [0.0] * 90).double(), rtol=0, atol=1e-12)
    sigma = torch.linalg.svdvals(weight)
    assert sigma[0] > 2 * sigma[9]  # read unequally before
    expected = (sigma[:10] - 1).square().sum() + sigma[10:].square().sum()
    torch.testing.assert_close((layer.weight() - weight).detach().square().sum(), expected)
    z = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changes = (layer(z + 5 * layer.directions()) - layer(z)).detach()
    torch.testing.assert_close(changes @ changes.T, 25 * torch.eye(10).double(), rtol=0, atol=1e-9)


def test_state_is_saved_and_moved():
    layer = HouseholderProjector.from_linear(linear(5, 8), 3)
    other = HouseholderProjector(8, 5, 3)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert layer.double().signs.dtype == torch.float64


def test_autocast_and_half_precision():
    layer = HouseholderProjector.from_linear(linear(64, 96), 32)
    x = torch.randn(10, 96)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        narrow = layer(x)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), layer(x), rtol=0, atol=0.05)
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    torch.testing.assert_close(half.float(), layer(x), rtol=0, atol=0.2)


@pytest.mark.parametrize('layer', [lambda: nn.Linear(12, 7), lambda: nn.Conv2d(3, 8, 3), lambda: nn.Conv1d(6, 6, 1)])
def test_parametrized_weight_is_the_nearest_and_stays_in_the_set(layer):
    layer = layer()
    fresh = copy.deepcopy(layer)
    before = layer.weight.detach().clone().flatten(1)
    register_householder(layer, 'weight', 3)
    u, _, vh = torch.linalg.svd(before)
    torch.testing.assert_close(layer.weight.detach().flatten(1), u[:, :3] @ vh[:3], rtol=0, atol=1e-5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer.weight.square().mul(torch.arange(layer.weight.numel()).view_as(layer.weight)).sum().backward()
        optimizer.step()
    values = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    assert (values[:3] - 1).abs().max() < 3e-6
    assert values[3:].max() < 3e-6
    kept = layer.weight.detach().clone()
    restored = register_householder(fresh, 'weight', 3)
    restored.load_state_dict(layer.state_dict())
    assert torch.equal(restored.weight, kept)
    parametrize.remove_parametrizations(layer, 'weight')
    assert torch.equal(layer.weight, kept)


def test_assigning_a_weight_projects_it():
    layer = register_householder(nn.Linear(6, 5), 'weight', 2)
    layer.weight = 3 * torch.eye(5, 6)
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach())[:3], torch.tensor([1.0, 1.0, 0.0]))


def test_torch_parametrization_covers_the_same_set():
    theirs = nn.utils.parametrizations.orthogonal(nn.Linear(4, 10, bias=False), orthogonal_map='householder')
    ours = HouseholderProjector.from_linear(nn.utils.parametrize.remove_parametrizations(theirs, 'weight'), 4)
    torch.testing.assert_close(ours.weight(), theirs.weight, rtol=0, atol=1e-6)


def test_projector_of_the_point_cluster_loss():
    pytest.importorskip('mmengine')
    config = dict(type='clusterplug.HouseholderProjector', in_features=16, out_features=8, rank=4)
    loss = PointClusterLoss(3, embed_dims=8, num_clusters=2, projector=config)
    features = torch.randn(60, 16, requires_grad=True)
    for _ in range(2):
        terms = loss(features, torch.arange(60) % 3)
    sum(terms.values()).backward()
    assert loss.projector.left.grad.abs().sum() > 0
    assert features.grad.isfinite().all()


def test_projector_of_prototypes():
    projector = dict(type='clusterplug.HouseholderProjector', in_features=8, out_features=5, rank=3)
    head = PrototypeHead(8, 4, projector=projector)
    optimizer = torch.optim.SGD(head.parameters(), 0.5)
    before = head.projector.directions().detach().clone()
    head(torch.randn(6, 8)).square().sum().backward()
    optimizer.step()
    assert (head.projector.directions() - before).abs().max() > 1e-4
    values = torch.linalg.svdvals(head.projector.weight().detach())
    torch.testing.assert_close(values, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda: HouseholderProjector(4, 3, 4), ValueError, 'at most rank 3'),
        (lambda: HouseholderProjector(4, 3, 0), ValueError, 'rank'),
        (lambda: HouseholderProjector(4, 3, 2.0), TypeError, 'rank'),
        (lambda: HouseholderProjector(4, 3, 2, singular_values='free'), ValueError, 'learned'),
        (lambda: HouseholderProjector.from_linear(nn.Conv1d(3, 3, 1), 2), TypeError, 'register_householder'),
        (lambda: register_householder(nn.Linear(3, 3), 'kernel', 2), ValueError, "'weight', 'bias'"),
        (lambda: register_householder(nn.Linear(3, 3), 'bias', 2), ValueError, 'two dimensions'),
        (lambda: register_householder(nn.Linear(3, 3), 'weight', 4), ValueError, 'at most rank 3'),
        (
            lambda: register_householder(register_householder(nn.Linear(3, 3), 'weight', 2), 'weight', 2),
            ValueError,
            'once',
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_weights_that_are_not_finite_are_refused():
    layer = linear(3, 3)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match='finite'):
        HouseholderProjector.from_linear(layer, 2)
