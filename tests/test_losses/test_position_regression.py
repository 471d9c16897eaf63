# SPDX-License-Identifier: Apache-2.0
"""Taking from embeddings what they tell of their position inside a stride: regressors by hand, a constructed alias."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from _small_loss import batch, make, total
from torch import nn

from clusterplug.functional.metrics import normalized_mutual_info
from clusterplug.losses import PositionRegression
from clusterplug.testing import count_host_syncs, run_gloo


def test_regressors_by_hand():
    """Cell (1, 2, 0): bits 1, 0, 0 at the first level and 0, 1, 0 at the second."""
    design = PositionRegression(1, 4, 4).design(torch.tensor([[1, 2, 0], [5, -2, 8]]))
    #   x, y, xy, z, xz, yz, xyz
    first, second = [-1, 1, -1, 1, -1, 1, -1], [1, -1, -1, 1, 1, -1, -1]
    assert design[0].tolist() == first + second
    assert torch.equal(design[1], design[0])  # the same position inside a cell of 4 rows
    plane = PositionRegression(1, 4, 2).design(torch.tensor([[1, 0]]))
    assert plane[0].tolist() == [-1, 1, -1, 1, -1, 1, -1]


def test_any_function_of_a_corner_is_removed():
    """All 8 corners of a cell shift the embedding at will; after one look at them nothing of it is left."""
    g = torch.Generator().manual_seed(0)
    cells = torch.tensor(list(itertools.product(range(2), repeat=3))).repeat(50, 1)
    shift = 0.02 * torch.randn(8, 6, generator=g)
    shift -= shift.mean(0)
    x = torch.eye(6)[0] + shift.repeat(50, 1)
    regression = PositionRegression(2, 6, 2, ridge=1e-3)
    design = regression.design(cells)
    both = torch.stack([x, x])
    valid = torch.ones(2, 400, dtype=torch.bool)
    valid[1] = False  # a class that is not there learns nothing
    regression.update(both, torch.stack([design, design]), valid)
    found = regression(both, torch.stack([design, design]))
    torch.testing.assert_close(found[0], torch.eye(6)[0].expand(400, 6), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1], F.normalize(x, dim=1))
    assert regression.products[1].abs().sum() == 0
    # where the class lies is none of the position's business
    moved = PositionRegression(2, 6, 2, ridge=1e-3)
    moved.update(both + 3, torch.stack([design, design]), valid)
    torch.testing.assert_close(moved.weights(), regression.weights(), rtol=0, atol=1e-5)


def test_a_class_forgets_only_while_it_is_seen():
    regression = PositionRegression(2, 4, 2, momentum=0.5)
    x, design = torch.randn(2, 30, 4), regression.design(torch.randint(0, 2, (60, 3))).view(2, 30, 7)
    both = torch.ones(2, 30, dtype=torch.bool)
    regression.update(x, design, both)
    first = regression.moments.clone()
    regression.update(x, design, both & torch.tensor([[True], [False]]))
    torch.testing.assert_close(regression.moments[0], 1.5 * first[0])
    assert torch.equal(regression.moments[1], first[1])


def alias(step, num_points=400, dims=12):
    """One class of two kinds; the position in the cell moves the feature three times as far as the kind does."""
    g = torch.Generator().manual_seed(step)
    kind, cells = torch.randint(0, 2, (num_points,), generator=g), torch.randint(0, 64, (num_points, 3), generator=g)
    axes = torch.eye(dims)
    parity = (-1.0) ** cells
    features = 2 * axes[0] + 0.4 * axes[1] * (2 * kind[:, None] - 1)
    features = features + 1.2 * (axes[2] * parity[:, :1] + axes[3] * parity[:, 1:2])
    return features + 0.05 * torch.randn(num_points, dims, generator=g), kind, cells


def agreement(period, regions='point'):
    assigner = None if period is None else dict(position_period=period)
    loss = make(
        1, 2, 12, centers=False, projector=nn.Identity(), assigner=assigner, momentum=0.9, num_anchors_per_class=200,
        regions=regions, queue_len=50,
    )  # fmt: skip
    for step in range(60):
        features, kind, cells = alias(step)
        more = {} if period is None else dict(cells=cells)
        if regions != 'point':
            # three rows a region, of one kind and any position
            order = kind.argsort(stable=True)
            number = torch.empty_like(order).index_copy_(0, order, torch.arange(400) // 3) * 2 + kind
            more['regions'] = number
        loss(features, torch.zeros(400, dtype=torch.int64), **more)
    features, kind, cells = alias(1000)
    x = F.normalize(features, dim=1)[None]
    if period is not None:
        x = loss.positions(x, loss.positions.design(cells)[None])
    return float(normalized_mutual_info(kind, (x[0] @ loss.memory.centers[0].T).argmax(1)))


@pytest.mark.parametrize('regions', ['point', 'cell'])
def test_subclasses_are_kinds_and_not_positions(regions):
    assert agreement(2, regions) > 0.95
    assert agreement(4, regions) > 0.95
    if regions == 'point':
        assert agreement(None) < 0.05


def test_state_is_saved_and_only_there_where_it_is_used():
    loss = make(assigner=dict(position_period=2))
    features, labels, predictions = batch()
    cells = torch.randint(0, 9, (len(features), 3))
    loss(features, labels, predictions, cells=cells)
    other = make(assigner=dict(position_period=2))
    other.load_state_dict(loss.state_dict())
    assert other.positions.moments.any()
    for step in range(2):
        a, b = (total(each(*batch(seed=step), cells=cells)) for each in (loss, other))
        assert torch.equal(a, b)
    assert not [name for name in make().state_dict() if 'positions' in name]
    assert {value.dtype for value in loss.half().positions.state_dict().values()} == {torch.float32}
    before = loss.positions.moments.clone()
    loss.eval()(features.half(), labels, predictions, cells=cells)
    assert torch.equal(loss.positions.moments, before)


def test_what_is_refused_and_an_empty_batch():
    for period in (0, 1, 3, 12):
        with pytest.raises(ValueError, match='position_period must be'):
            make(assigner=dict(position_period=period))
    loss = make(assigner=dict(position_period=2))
    features, labels, predictions = batch()
    with pytest.raises(ValueError, match=r'cells must be given \(M, 1 to 3\)'):
        loss(features, labels, predictions)
    with pytest.raises(ValueError, match=r'cells must be \(M, 1 to 3\) int64 for M = 200 features, got \(3, 3\)'):
        loss(features, labels, predictions, cells=torch.zeros(3, 3, dtype=torch.int64))
    none = torch.zeros(0, dtype=torch.int64)
    assert total(loss(torch.zeros(0, 8), none, cells=torch.zeros(0, 3, dtype=torch.int64))) == 0


def test_no_waiting():
    loss = make(assigner=dict(position_period=4), regions='cell')
    features, labels, predictions = batch()
    cells, regions = torch.randint(0, 9, (len(features), 3)), labels * 100 + torch.arange(len(labels)) % 7
    loss(features, labels, predictions, regions=regions, cells=cells)
    waits = count_host_syncs(lambda: loss(features, labels, predictions, regions=regions, cells=cells))
    assert waits.total() == 0


def _rank_batch(rank, step):
    g = torch.Generator().manual_seed(10 * step + rank)
    labels = torch.randint(0, 3, ((40, 17)[rank],), generator=g)
    return torch.randn(len(labels), 8, generator=g), labels, torch.randint(0, 9, (len(labels), 3), generator=g)


OPTIONS = dict(
    num_anchors_per_class=90, sampler=dict(enqueue_per_step=60), queue_len=300, assigner=dict(position_period=2)
)


def _run(rank, size):
    loss = make(**OPTIONS)
    for step in range(3):
        features, labels, cells = _rank_batch(rank, step)
        total(loss(features, labels, cells=cells)).backward()
    return loss.state_dict()


def test_two_ranks_equal_one_process():
    ranks = run_gloo(_run, 2)
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name
    loss = make(**OPTIONS)
    for step in range(3):
        features, labels, cells = (torch.cat(each) for each in zip(*(_rank_batch(rank, step) for rank in range(2))))
        loss(features, labels, cells=cells)
    for name in ('moments', 'products'):
        torch.testing.assert_close(getattr(loss.positions, name), ranks[0][f'positions.{name}'], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.memory.centers, ranks[0]['memory.center_store'][:, :-1], rtol=1e-4, atol=1e-5)
