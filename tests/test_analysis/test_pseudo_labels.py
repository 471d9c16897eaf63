# SPDX-License-Identifier: Apache-2.0
"""Which predictions become labels: thresholds by hand, the plan of the solvers, rare classes, neighbors, bad input."""

import math

import pytest
import torch

from clusterplug.analysis import ConfidentLabels, TransportLabels
from clusterplug.functional import KNNGraph, progressive_transport, semantic_transport


def uneven(seed=0, sizes=(400, 80, 20)):
    """Log-probabilities of three classes of uneven size; the rare one is predicted with less confidence."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    logits = 0.7 * torch.randn(len(truth), 3, generator=generator)
    logits[torch.arange(len(truth)), truth] += torch.tensor([4.0, 2.0, 1.0])[truth]
    return logits.log_softmax(1), truth


def line(count, m=2):
    """Neighbors of points in a row."""
    places = torch.arange(count)
    return (places[:, None] - places).abs().double().fill_diagonal_(math.inf).topk(m, largest=False).indices


def test_thresholds_by_hand():
    log_p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]]).log()
    assert ConfidentLabels(0.7)(log_p).labels.tolist() == [0, -1, 1, -1]
    assert ConfidentLabels(share=0.75).fit([log_p[:2], log_p[2:]])(log_p).labels.tolist() == [0, 0, 1, -1]
    # half of the predictions of each class: the best of each
    assert ConfidentLabels(share=0.5, per_class=True).fit([log_p])(log_p).labels.tolist() == [0, -1, 1, -1]
    torch.testing.assert_close(ConfidentLabels(0.7)(log_p).weights, torch.tensor([0.9, 0.6, 0.8, 0.55]))
    # a class that fit has not seen predicted gets no label below certainty
    found = ConfidentLabels(share=1.0, per_class=True).fit([log_p[:2]])
    assert found(log_p).labels.tolist() == [0, 0, -1, -1]


@pytest.mark.parametrize('prior', [None, (0.8, 0.16, 0.04)])
@pytest.mark.parametrize('share', [0.3, 1.0])
def test_weights_are_those_of_the_plan(share, prior):
    log_p, _ = uneven()
    prior = None if prior is None else torch.tensor(prior)
    plan = progressive_transport(log_p.double(), epsilon=0.1, mass=share, penalty=1.0, prior=prior)
    rule = TransportLabels(share, prior=prior).fit([log_p[:200], log_p[200:]])
    found = rule(log_p)
    torch.testing.assert_close(found.weights, plan.amax(1), atol=1e-5, rtol=0)
    chosen = found.labels >= 0
    assert int(chosen.sum()) == round(share * len(log_p))
    assert torch.equal(found.labels[chosen], plan.argmax(1)[chosen])
    assert plan.amax(1)[chosen].min() >= plan.amax(1)[~chosen].max() if share < 1 else True


def test_the_plan_with_neighbors_is_that_of_the_semantic_transport():
    log_p, _ = uneven()
    near = line(len(log_p))
    rule = TransportLabels(0.5, strength=0.2, num_neighbors=2).fit([log_p], [near])
    graph = KNNGraph(near, torch.full(near.shape, 0.5, dtype=torch.float64))
    options = dict(epsilon=0.1, mass=0.5, penalty=1.0)
    plan = semantic_transport(log_p.double(), graph=graph, strength=0.1 * len(log_p), max_iters=300, **options)
    found = rule(log_p, near)
    torch.testing.assert_close(found.weights, plan.amax(1), atol=2e-3, rtol=0)
    chosen = found.labels >= 0
    assert torch.equal(found.labels[chosen], plan.argmax(1)[chosen])
    # it is another plan than without neighbors
    assert float((plan - progressive_transport(log_p.double(), **options)).abs().max()) > 0.1


def test_expected_sizes_keep_the_rare_class():
    log_p, truth = uneven()
    kept = {}
    for name, rule in {
        'confidence': ConfidentLabels(share=0.5),
        'transport': TransportLabels(0.5, prior=torch.tensor([0.8, 0.16, 0.04]), penalty=10.0),
    }.items():
        labels = rule.fit([log_p])(log_p).labels
        kept[name] = int(((labels == 2) & (truth == 2)).sum())
        assert abs(int((labels >= 0).sum()) - 250) <= 1
    assert kept['confidence'] <= 1
    assert kept['transport'] >= 5


def test_neighbors_outvote_a_single_point():
    log_p = torch.tensor([[0.95, 0.05]] * 5 + [[0.4, 0.6]] + [[0.95, 0.05]] * 5).log()
    near = line(11)
    alone = TransportLabels(1.0, penalty=0.0).fit([log_p])(log_p).labels
    together = TransportLabels(1.0, penalty=0.0, strength=2.0, num_neighbors=2).fit([log_p], [near])(log_p, near).labels
    assert alone.tolist() == [0] * 5 + [1] + [0] * 5
    assert together.tolist() == [0] * 11


def test_a_class_that_nobody_expects_stays_empty():
    log_p, _ = uneven()
    rule = TransportLabels(1.0, prior=torch.tensor([0.5, 0.5, 0.0])).fit([log_p])
    assert set(rule(log_p).labels.tolist()) == {0, 1}
    assert rule(log_p[:0]).labels.shape == (0,)


def test_bad_input():
    log_p, _ = uneven()
    for call, words in (
        (lambda: ConfidentLabels(1.5), 'threshold'),
        (lambda: ConfidentLabels(0.5, per_class=True), 'threshold must be None'),
        (lambda: ConfidentLabels()(log_p), 'fit first'),
        (lambda: TransportLabels(0.0), 'share'),
        (lambda: TransportLabels(0.5, epsilon=0.0), 'epsilon'),
        (lambda: TransportLabels()(log_p), 'fit first'),
        (lambda: TransportLabels().fit([]), 'at least one scan with points'),
        (lambda: TransportLabels().fit([log_p, log_p[:, :2]]), 'same K'),
        (lambda: TransportLabels().fit([-log_p]), 'at most 0'),
        (lambda: TransportLabels(prior=torch.tensor([0.5, 0.1, 0.1])).fit([log_p]), 'sum to 1'),
        (lambda: TransportLabels().fit([log_p.masked_fill(log_p < -4, math.nan)]), 'finite'),
        (lambda: TransportLabels(strength=1.0).fit([log_p]), 'neighbors must be given'),
        (lambda: TransportLabels(strength=1.0).fit([log_p], [line(10)]), 'int64'),
        (lambda: TransportLabels(strength=1.0).fit([log_p], [line(len(log_p)) + 2]), 'rows of the scan'),
    ):
        with pytest.raises(ValueError, match=words):
            call()
