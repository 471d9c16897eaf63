# SPDX-License-Identifier: Apache-2.0
"""RiemannianSGD: the written-out step, momentum, heads apart, AMP, clipping, resume, plain optimizers, ranks."""

import copy

import pytest
import torch
from torch import nn

from clusterplug.functional import grassmann_step
from clusterplug.heads import GrassmannHead
from clusterplug.optim import RiemannianSGD, grassmann_groups
from clusterplug.testing import run_gloo


class Net(nn.Module):
    def __init__(self, seed=0, heads=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.backbone = nn.Linear(6, 12)
            self.heads = nn.ModuleList(GrassmannHead(12, 4, 3) for _ in range(heads))

    def forward(self, x):
        return sum(head(self.backbone(x).relu()) for head in self.heads)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 6, generator=generator), torch.randint(0, 4, (40,), generator=generator)


def train(model, optimizer, steps, start=0, scaler=None):
    for step in range(start, start + steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


def turned(a, b):
    """Largest principal angle between the bases of two heads."""
    sines = torch.linalg.svdvals(b.bases - a.bases @ (a.bases.mT @ b.bases))
    return float(sines.detach().max().clamp(max=1).asin())


def test_two_steps_written_out():
    head = GrassmannHead(5, 2, 2)
    bases = head.bases.detach().clone()
    optimizer = RiemannianSGD(grassmann_groups(head), lr=0.1, momentum=0.9, reorthonormalize_every=0, dampening=0.2)
    gradients = torch.randn(2, 2, 5, 2, generator=torch.Generator().manual_seed(0))
    buffer = gradients[0]
    for k in range(2):
        head.fc.weight.grad = gradients[k].mT.reshape(4, 5).clone()
        optimizer.step()
        buffer = buffer if k == 0 else 0.9 * buffer + 0.8 * gradients[1]
        bases = grassmann_step(bases, buffer, -0.1)
        torch.testing.assert_close(head.bases.detach(), bases)


@pytest.mark.parametrize('retraction', ['geodesic', 'qr'])
def test_it_learns_and_stays_orthonormal(retraction):
    model = Net()
    optimizer = RiemannianSGD(grassmann_groups(model), lr=0.02, momentum=0.9, retraction=retraction)
    x, y = batch()
    before = nn.functional.cross_entropy(model(x), y)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert nn.functional.cross_entropy(model(x), y) < 0.5 * before
    rows = model.heads[0].bases.detach()
    assert (rows.mT @ rows - torch.eye(3)).abs().max() < 1e-5


def test_maximize_climbs_to_the_line():
    head = GrassmannHead(2, 1, 1, scale=1.0)
    optimizer = RiemannianSGD(grassmann_groups(head), lr=0.3, maximize=True)
    x = torch.tensor([[0.6, 0.8]])
    for _ in range(100):
        optimizer.zero_grad()
        head(x).sum().backward()
        optimizer.step()
    assert head(x) > 1 - 1e-5


def test_re_orthonormalization_keeps_the_path_of_momentum():
    ends = []
    for every in (0, 1):
        model = Net()
        train(model, RiemannianSGD(grassmann_groups(model), 0.02, 0.9, every), 12)
        ends.append(model.heads[0])
    assert turned(*ends) < 1e-4
    assert (ends[0].bases - ends[1].bases).abs().max() < 1e-4


def test_two_heads_do_not_touch_each_other():
    def every(model, period):
        groups = [*grassmann_groups(model.heads[0]), *grassmann_groups(model.heads[1], reorthonormalize_every=period)]
        return RiemannianSGD(groups, 0.05, 0.9, reorthonormalize_every=2)

    ends = []
    for period in (2, 3):
        model = Net(heads=2)
        optimizer = every(model, period)
        train(model, optimizer, 5)
        ends.append(model)
    assert [state['step'] for state in optimizer.state.values()] == [5, 5]
    torch.testing.assert_close(ends[0].heads[0].fc.weight, ends[1].heads[0].fc.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize('base', ['sgd', 'adamw', 'lamb'])
def test_other_parameters_move_as_with_the_plain_optimizer(base):
    if base == 'lamb':
        plain_type = pytest.importorskip('timm.optim').Lamb
    else:
        plain_type = {'sgd': torch.optim.SGD, 'adamw': torch.optim.AdamW}[base]
    options = {'sgd': dict(momentum=0.9), 'adamw': {}, 'lamb': dict(max_grad_norm=None, eps=1e-6)}[base]
    ours_options = {'sgd': {}, 'adamw': {}, 'lamb': dict(eps=1e-6)}[base]
    one, other = nn.Linear(6, 4), nn.Linear(6, 4)
    other.load_state_dict(one.state_dict())
    plain = plain_type(one.parameters(), lr=0.01, weight_decay=0.1, **options)
    ours = RiemannianSGD(other.parameters(), 0.01, 0.9, weight_decay=0.1, base=base, **ours_options)
    for step in range(4):
        x, y = batch(step)
        for layer, optimizer in ((one, plain), (other, ours)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6 if base == 'lamb' else 0, atol=1e-7 if base == 'lamb' else 0)


@pytest.mark.parametrize('base', ['sgd', 'adamw', 'lamb'])
def test_scaled_gradients_give_the_same_step(base):
    ends = []
    for scale in (None, 1.0, 65536.0):
        model = Net()
        optimizer = RiemannianSGD(grassmann_groups(model, lr=0.3), 0.01, 0.9, base=base)
        scaler = None if scale is None else torch.amp.GradScaler('cpu', init_scale=scale)
        train(model, optimizer, 3, scaler=scaler)
        ends.append(model.heads[0])
    assert turned(ends[0], Net().heads[0]) > 0.1
    assert turned(ends[0], ends[1]) < 1e-3
    assert turned(ends[0], ends[2]) < 1e-3


def test_an_inf_in_the_bases_alone_skips_the_step():
    model = Net()
    optimizer = RiemannianSGD(grassmann_groups(model), 0.1)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    scaler.scale(model(batch()[0]).sum()).backward()
    model.heads[0].fc.weight.grad[0, 0] = torch.inf
    before = copy.deepcopy(model.state_dict())
    scaler.step(optimizer)
    scaler.update()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert scaler.get_scale() == 2.0


def test_clipping_sees_the_bases():
    model = Net()
    optimizer = RiemannianSGD(grassmann_groups(model), 0.1)
    model(batch()[0]).sum().backward()
    params = [p for group in optimizer.param_groups for p in group['params']]
    expected = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(params, 1e-3), expected)
    assert model.heads[0].fc.weight.grad.norm() <= 1e-3


@pytest.mark.parametrize('base', ['sgd', 'adamw', 'lamb'])
def test_resume_is_bit_for_bit(base):
    def build():
        model = Net()
        return model, RiemannianSGD(grassmann_groups(model, lr=0.1), 0.01, 0.9, 3, base=base, weight_decay=0.01)

    straight, optimizer = build()
    train(straight, optimizer, 8)
    first, optimizer = build()
    train(first, optimizer, 4)
    saved = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    resumed, optimizer = build()
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(resumed, optimizer, 4, start=4)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_schedules_and_multipliers_reach_the_bases():
    model = Net()
    optimizer = RiemannianSGD(grassmann_groups(model, lr=1.0), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    schedule.step()
    assert [group['lr'] for group in optimizer.param_groups] == [0.005, 0.5]


def _on_two_ranks(rank, world_size):
    torch.manual_seed(rank)  # so that the ranks would drift without what holds them together
    model = Net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = RiemannianSGD(grassmann_groups(model), 0.05, 0.9, 2)
    for step in range(4):
        x, y = batch(step)
        optimizer.zero_grad()
        part = slice(0, 24) if rank == 0 else slice(24, 40)
        loss = nn.functional.cross_entropy(wrapped(x[part]), y[part], reduction='sum') * world_size / len(x)
        loss.backward()
        optimizer.step()
        if step == 2:
            with torch.no_grad():
                model.heads[0].fc.weight += 1e-6 * rank  # as rounding of another kind of machine would
    return model.heads[0].fc.weight.detach(), model.backbone.weight.detach()


def test_two_ranks_stay_equal_and_equal_one_process():
    (one, backbone), (other, _) = run_gloo(_on_two_ranks, 2)
    assert torch.equal(one, other)
    model = Net()
    optimizer = RiemannianSGD(grassmann_groups(model), 0.05, 0.9, 2)
    train(model, optimizer, 4)
    torch.testing.assert_close(one, model.heads[0].fc.weight.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone, model.backbone.weight.detach(), rtol=0, atol=1e-5)


def test_gradients_that_are_missing_or_not_finite():
    model = Net(heads=2)
    optimizer = RiemannianSGD(grassmann_groups(model), 0.1, 0.9)
    model.heads[0](torch.randn(3, 12)).sum().backward()
    before = model.heads[1].fc.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.heads[1].fc.weight, before)
    optimizer.zero_grad()
    model.heads[0].fc.weight.grad = torch.zeros(12, 12)
    model.heads[0].fc.weight.grad[0, 0] = torch.nan
    optimizer.step()
    weight = model.heads[0].fc.weight.detach().unflatten(0, (4, 3))
    assert weight[0].isnan().all()  # as with any optimizer, and of that class alone
    assert weight[1:].isfinite().all()


W = [nn.Parameter(torch.eye(6, 8))]


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda: RiemannianSGD(W, -0.1), ValueError, 'lr'),
        (lambda: RiemannianSGD(W, 0.1, base='adam'), ValueError, "'adamw'"),
        (lambda: RiemannianSGD(W, 0.1, retraction='svd'), ValueError, 'geodesic'),
        (lambda: RiemannianSGD(W, 0.1, reorthonormalize_every=-1), ValueError, 'reorthonormalize_every'),
        (lambda: RiemannianSGD([dict(params=W, nesterov=True)], 0.1), ValueError, 'nesterov'),
        (lambda: RiemannianSGD([dict(params=W, manifold='stiefel')], 0.1), ValueError, "'grassmann'"),
        (lambda: RiemannianSGD([dict(params=W, manifold='grassmann')], 0.1), ValueError, 'subspace_dim'),
        (lambda: RiemannianSGD([dict(params=W, manifold='grassmann', subspace_dim=4)], 0.1), ValueError, r'\(6, 8\)'),
        (
            lambda: RiemannianSGD([dict(params=W, manifold='grassmann', subspace_dim=3, weight_decay=0.1)], 0.1),
            ValueError,
            'weight_decay',
        ),
        (lambda: grassmann_groups(nn.Linear(3, 3)), ValueError, 'GrassmannHead'),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_constructor_of_mmengine():
    pytest.importorskip('mmengine')
    from mmengine.optim import build_optim_wrapper

    config = dict(
        constructor='clusterplug.GrassmannOptimWrapperConstructor',
        paramwise_cfg=dict(grassmann_lr_mult=100, bias_decay_mult=0.0),
        optimizer=dict(type='clusterplug.RiemannianSGD', lr=1e-3, momentum=0.9, base='adamw', weight_decay=0.05),
    )
    wrapper = build_optim_wrapper(Net(), config)
    groups = wrapper.optimizer.param_groups
    assert [(group['manifold'], group['lr'], group['weight_decay']) for group in groups] == [
        (None, 1e-3, 0.05),
        (None, 1e-3, 0.0),
        ('grassmann', 0.1, 0.0),
    ]
    assert groups[2]['subspace_dim'] == 3
    config['optimizer'] = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    with pytest.raises(ValueError, match='RiemannianSGD'):
        build_optim_wrapper(Net(), config)
    config['optimizer'] = dict(type='clusterplug.RiemannianSGD', lr=1e-3)
    config['paramwise_cfg'] = {}
    with pytest.raises(ValueError, match='no Grassmann head'):
        build_optim_wrapper(nn.Linear(3, 3), config)
