# SPDX-License-Identifier: Apache-2.0
"""TransportPseudoLabels: plain computation, buffer, heads, graph, resume, ranks, odd rows, bad input."""

import copy

import pytest
import torch

from clusterplug.functional import knn_graph, progressive_transport, semantic_transport
from clusterplug.losses import TransportPseudoLabels
from clusterplug.testing import run_gloo


def scores(n=12, k=4, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def expected_loss(views, others, mass=0.3, penalty=1.0):
    """The loss by hand: ``others`` are logits of past batches."""
    logs = [(view / 0.1).log_softmax(1) for view in views]
    past = (others / 0.1).log_softmax(1)
    labels = [
        progressive_transport(torch.cat([past, each]), epsilon=0.1, mass=mass, penalty=penalty)[len(past) :]
        for each in logs
    ]
    return -(labels[0] * logs[1]).sum(1).mean() - (labels[1] * logs[0]).sum(1).mean()


def test_equals_the_loss_by_hand_with_and_without_a_buffer():
    views = [scores(seed=0), scores(seed=1)]
    none = torch.zeros(0, 4)
    torch.testing.assert_close(TransportPseudoLabels(4, mass=0.3, buffer_len=0)(views), expected_loss(views, none))
    loss = TransportPseudoLabels(4, mass=0.3, buffer_len=20)
    torch.testing.assert_close(loss(views), expected_loss(views, none), rtol=1e-5, atol=1e-6)
    second = [scores(seed=2), scores(seed=3)]
    torch.testing.assert_close(loss(second), expected_loss(second, views[1]), rtol=1e-5, atol=1e-6)
    assert len(loss.queue) == 20
    loss.eval()
    before = loss.queue.rows.clone()
    loss(views)
    assert torch.equal(loss.queue.rows, before)


def test_gradient_reaches_the_scores_alone_and_more_views_are_a_mean():
    views = [scores(seed=seed).requires_grad_() for seed in range(3)]
    loss = TransportPseudoLabels(4, mass=0.5, buffer_len=0)
    value = loss(views)
    value.backward()
    assert all(view.grad.abs().sum() > 0 for view in views)
    pairs = [loss([views[a], views[b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(value, sum(pairs) / 2)


def test_heads_are_one_solve_and_each_what_it_is_alone():
    first, second = [scores(k=4, seed=0), scores(k=4, seed=1)], [scores(k=6, seed=2), scores(k=6, seed=3)]
    both = TransportPseudoLabels([4, 6], mass=0.4, buffer_len=0)([[a, b] for a, b in zip(first, second, strict=True)])
    alone = [TransportPseudoLabels(k, mass=0.4, buffer_len=0)(each) for k, each in ((4, first), (6, second))]
    torch.testing.assert_close(both, sum(alone) / 2, rtol=1e-5, atol=1e-6)


def test_labels_follow_the_graph():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    views, ids = [scores(seed=0), scores(seed=1)], torch.arange(12) + 5
    loss = TransportPseudoLabels(4, mass=0.4, buffer_len=0, strength=10.0)
    plain = loss(views)
    graph = knn_graph(x, 20, mode='heat')
    loss.set_graph(graph)
    linked = loss(views, ids)
    dense = torch.zeros(30, 30).scatter_(1, graph.indices, graph.weights)[5:17, 5:17]
    logs = [(view / 0.1).log_softmax(1) for view in views]
    labels = [
        semantic_transport(each, epsilon=0.1, mass=0.4, penalty=1.0, graph=dense, strength=6.0, tol=1e-8)
        for each in logs
    ]
    expected = -(labels[0] * logs[1]).sum(1).mean() - (labels[1] * logs[0]).sum(1).mean()
    torch.testing.assert_close(linked, expected, rtol=2e-3, atol=1e-3)
    assert abs(float(linked - plain)) > 1e-3
    for bad in (None, ids.float(), ids[:3], ids + 20, ids.tolist()):
        with pytest.raises(ValueError, match='ids must'):
            loss(views, bad)


def test_resume_repeats_the_run():
    batches = [[scores(seed=2 * number), scores(seed=2 * number + 1)] for number in range(6)]
    loss = TransportPseudoLabels(4, mass=0.3, buffer_len=30)
    for batch in batches[:3]:
        loss(batch)
    other = TransportPseudoLabels(4, mass=0.3, buffer_len=30)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    for batch in batches[3:]:
        assert torch.equal(loss(batch), other(batch))
    for cast in ('half', 'bfloat16'):  # thirds do not sum to 1 in bf16
        views, model = [scores(seed=0)[:, :3], scores(seed=1)[:, :3]], TransportPseudoLabels(3, mass=0.3, buffer_len=30)
        model(views)
        narrow = getattr(copy.deepcopy(model), cast)()
        assert narrow.queue.rows.dtype == torch.float32
        assert torch.equal(narrow.potentials, model.potentials)
        assert torch.equal(narrow(views), model(views))


def test_odd_rows_stay_alone_and_types():
    views = [scores(seed=0), scores(seed=1)]
    odd = [torch.cat([view, torch.full((1, 4), float('nan'))]) for view in views]
    plain = TransportPseudoLabels(4, mass=0.3, buffer_len=20)
    loss = TransportPseudoLabels(4, mass=0.3, buffer_len=20)
    torch.testing.assert_close(loss(odd) * 13, plain(views) * 12, rtol=1e-5, atol=1e-5)
    again = [scores(seed=2), scores(seed=3)]
    torch.testing.assert_close(loss(again), plain(again), rtol=1e-5, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        value = TransportPseudoLabels(4, mass=0.3)([view.half() for view in views])
    assert value.dtype == torch.float32
    empty = [torch.zeros(0, 4, requires_grad=True) for _ in range(2)]
    for buffer_len in (0, 5):
        value = TransportPseudoLabels(4, buffer_len=buffer_len)(empty)
        value.backward()
        assert float(value.detach()) == 0


def test_a_schedule_changes_the_mass():
    loss = TransportPseudoLabels(4, buffer_len=0)
    views, sums = [scores(seed=0), scores(seed=1)], []
    for mass in (0.1, 0.5, 1.0):
        loss.mass = mass
        finite = torch.ones(12, dtype=torch.bool)
        sums.append(float(loss.labels(torch.stack(views) / 0.1, finite)[0].sum()))
    assert sums == pytest.approx([1.2, 6.0, 12.0], rel=1e-5)
    loss.mass = 1.5
    with pytest.raises(ValueError, match='mass must be'):
        loss(views)


def _on_rank(rank, world):
    loss = TransportPseudoLabels(4, mass=0.3, buffer_len=20)
    parts = slice(0, 9), slice(9, 12)
    values = []
    for seed in (0, 2):
        views = [scores(seed=seed)[parts[rank]], scores(seed=seed + 1)[parts[rank]]]
        values.append(float(loss(views)) * len(views[0]))
    return values, loss.queue.rows.clone(), loss.potentials.clone()


def test_two_ranks_are_one_process():
    loss = TransportPseudoLabels(4, mass=0.3, buffer_len=20)
    expected = [float(loss([scores(seed=seed), scores(seed=seed + 1)])) * 12 for seed in (0, 2)]
    found = run_gloo(_on_rank, 2)
    totals = [sum(values) for values in zip(*(each[0] for each in found), strict=True)]
    assert totals == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)
    torch.testing.assert_close(found[0][2], loss.potentials, rtol=1e-5, atol=1e-6)


def test_bad_input():
    for options, message in (
        ({'num_clusters': 1}, 'num_clusters must be'), ({'num_clusters': 4, 'mass': 0.0}, 'mass must be'),
        ({'num_clusters': 4, 'epsilon': 0.0}, 'epsilon must be'), ({'num_clusters': 4, 'penalty': -1.0}, 'penalty'),
        ({'num_clusters': 2, 'prior': [0.5, 0.2]}, 'prior must hold 2 shares'),
        ({'num_clusters': 4, 'temperature': 0.0}, 'temperature must be'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            TransportPseudoLabels(**options)
    loss = TransportPseudoLabels(4)
    with pytest.raises(ValueError, match='at least 2 views'):
        loss([scores()])
    with pytest.raises(ValueError, match='set num_clusters to fit'):
        loss([scores(), scores(k=5)])
    with pytest.raises(TypeError, match='floating tensors'):
        loss([scores().long(), scores().long()])
    with pytest.raises(ValueError, match='int64 indices'):
        loss.set_graph((torch.zeros(3, 2), torch.zeros(3, 2)))
