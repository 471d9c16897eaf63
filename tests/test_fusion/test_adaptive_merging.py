# SPDX-License-Identifier: Apache-2.0
"""AdaMerging and ConcreteMerging: plain arithmetic as a limit, gradients, oracle labels, early stopping, state."""

import copy

import pytest
import torch
from torch import nn

from clusterplug.fusion import AdaMerging, ConcreteMerging, TaskVector, task_arithmetic


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def moved(state, other):
    return {k: v + 0.3 * other[k] if v.is_floating_point() else v + 1 for k, v in state.items()}


def problem(tasks=2):
    base = net(0)
    with torch.no_grad():
        tuned = [
            {
                k: v + 0.3 * net(s + 1).state_dict()[k] if v.is_floating_point() else v + 1
                for k, v in base.state_dict().items()
            }
            for s in range(tasks)
        ]
    vectors = [TaskVector(base.state_dict(), each) for each in tuned]
    data = []
    for seed in range(tasks):
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed))
        model = net(0)
        model.load_state_dict(tuned[seed])
        data.append([(part, model.eval()(part).argmax(1)) for part in x.split(16)])
    return base, vectors, data


@pytest.mark.parametrize('level', ['none', 'task', 'layer'])
def test_an_equal_mask_is_task_arithmetic(level):
    base, vectors, _ = problem(3)
    merging = ConcreteMerging(base.state_dict(), vectors, level=level, init=0.4).eval()
    expected = task_arithmetic(base.state_dict(), vectors, 0.4)
    for logit in (0.0, 40.0, -3.0):
        for x in merging.logits:
            nn.init.constant_(x, logit)
        state = merging.merged_state()
        assert set(state) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-7)


def test_mean_of_masked_vectors_is_the_vector():
    base, vectors, _ = problem()
    merging = ConcreteMerging(base.state_dict(), vectors).train()
    total = 0.0
    for _ in range(400):
        merging.draw()
        total = total + merging.merged()['0.weight'].detach() / 400
    expected = task_arithmetic(base.state_dict(), vectors, 0.3)['0.weight']
    change = (expected - base.state_dict()['0.weight']).norm()
    assert (total - expected).norm() < 0.06 * change


def test_gradients_with_fixed_draws():
    base = {'w': torch.zeros(5, dtype=torch.float64), 'v': torch.ones(2, 2, dtype=torch.float64)}
    vectors = [{k: torch.randn_like(v) for k, v in base.items()} for _ in range(2)]
    merging = ConcreteMerging(base, vectors, level='layer')

    def loss(logits, coefficients):
        copied = copy.deepcopy(merging)
        del copied.logits, copied.coefficients
        copied.logits, copied.coefficients = [logits.float(), torch.zeros(2, 2)], coefficients
        copied.draw()
        return sum(value.square().sum() for value in copied.merged().values())

    logits, coefficients = torch.randn(5, dtype=torch.float64), torch.rand(2, 2, dtype=torch.float64)
    logits.requires_grad_(), coefficients.requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits, coefficients), eps=1e-3, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    'build',
    [
        lambda base, vectors: AdaMerging(base, vectors, level='task'),
        lambda base, vectors: AdaMerging(base, vectors, level='layer'),
        lambda base, vectors: ConcreteMerging(base, vectors, level='none'),
        lambda base, vectors: ConcreteMerging(base, vectors, level='layer'),
    ],
)
def test_labels_make_it_better_and_nothing_else_changes(build):
    base, vectors, data = problem()
    kept = copy.deepcopy(base.state_dict())
    merging = build(base.state_dict(), vectors)
    options = {'meta_steps': 40} if isinstance(merging, ConcreteMerging) else {}
    history = merging.fit(base, data, steps=40, lr=0.05, objective='cross_entropy', check_every=10, **options)

    def loss(state):
        model = net(0).eval()
        model.load_state_dict(state)
        return sum(float(nn.functional.cross_entropy(model(x), y)) for task in data for x, y in task)

    assert loss(merging.merged_state()) < loss(task_arithmetic(base.state_dict(), vectors, 0.3))
    for name, value in base.state_dict().items():
        assert torch.equal(value, kept[name])
    assert base.training
    assert merging.merged_state()['1.num_batches_tracked'] == 0
    assert all(step.loss > 0 for step in history)


def test_early_stopping_returns_to_the_best_look():
    base, vectors, data = problem()
    merging = AdaMerging(base.state_dict(), vectors)
    held_out = [(x, torch.zeros_like(y)) for (x, y), *_ in data]

    def objective(logits, batch):  # what training improves makes the held-out batches worse
        return logits.square().mean() * (-1.0 if batch[1].sum() else 1.0)

    history = merging.fit(
        base, data, steps=500, lr=0.05, objective=objective, held_out=held_out, check_every=5, patience=2
    )
    assert len(history) < 500
    torch.testing.assert_close(merging.coefficients.detach(), torch.full((1, 2), 0.3))


def test_few_steps_are_not_lost():
    base, vectors, data = problem()
    merging = AdaMerging(base.state_dict(), vectors)
    merging.fit(
        base, data, steps=3, lr=0.02, objective='cross_entropy', check_every=50, held_out=[task[1] for task in data]
    )
    assert (merging.coefficients - 0.3).abs().max() > 1e-3


def test_heads_of_the_tasks_stay_theirs():
    base, vectors, data = problem()
    heads = [net(0), net(0)]
    nn.init.zeros_(heads[1][3].weight)
    body = [TaskVector.of({k: v for k, v in vector.items() if not k.startswith('3.')}) for vector in vectors]
    merging = ConcreteMerging({k: v for k, v in base.state_dict().items() if not k.startswith('3.')}, body)
    merging.fit(heads, data, meta_steps=2)
    assert heads[1][3].weight.eq(0).all()
    assert '3.weight' not in merging.merged_state()


def test_masks_and_draws_are_saved():
    base, vectors, data = problem()
    merging = ConcreteMerging(base.state_dict(), vectors, level='task', seed=3)
    merging.fit(base, data, meta_steps=3, steps=2, lr=0.1)
    other = ConcreteMerging(base.state_dict(), vectors, level='task')
    other.load_state_dict(merging.state_dict())
    for module in (merging, other):
        module.train()
        module.draw()
    for name, mask in merging.masks().items():
        assert torch.equal(mask, other.masks()[name])
    assert torch.equal(merging.eval().merged()['0.weight'], other.eval().merged()['0.weight'])
    statistics = merging.mask_statistics()
    assert list(statistics) == list(vectors[0])
    assert all(0 < value < 1 for value in statistics.values())
    renamed = {f'x.{k}': v for k, v in base.state_dict().items()}
    stranger = ConcreteMerging(renamed, [{f'x.{k}': v for k, v in each.items()} for each in vectors], level='task')
    with pytest.raises(ValueError, match='same parameters'):
        stranger.load_state_dict(merging.state_dict())


def test_entropy_needs_no_labels():
    base, vectors, data = problem()
    merging = AdaMerging(base.state_dict(), vectors, level='layer')
    seen = []
    history = merging.fit(base, [[x for x, _ in task] for task in data], steps=30, lr=0.02, on_step=seen.append)
    assert seen == history
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda b, v, d: AdaMerging(b.state_dict(), v, level='none'), "'task'"),
        (lambda b, v, d: AdaMerging(b.state_dict(), []), 'at least one'),
        (lambda b, v, d: ConcreteMerging(b.state_dict(), v, temperature=0.0), 'temperature'),
        (lambda b, v, d: AdaMerging(b.state_dict(), v).fit(b, d[:1]), 'one per task'),
        (lambda b, v, d: AdaMerging(b.state_dict(), v).fit(b, [[], []]), 'must yield batches'),
        (lambda b, v, d: AdaMerging(b.state_dict(), v).fit(b, d, objective='accuracy'), "'entropy'"),
        (
            lambda b, v, d: AdaMerging(b.state_dict(), v).fit(b, d, objective=lambda x, _: x.sum() * torch.nan),
            'must be finite',
        ),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call(*problem())
