# SPDX-License-Identifier: Apache-2.0
"""The numbers on the life of the subclasses, by hand and in a log."""

import json

import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from clusterplug.hooks import ClusterStatsHook, subclass_stats
from clusterplug.memory import SubclassMemory
from clusterplug.testing import build_tiny_runner, write_tiny_semantickitti


def memory():
    memory = SubclassMemory(num_classes=3, num_clusters=2, embed_dims=2, queue_len=4)
    # class 0: both centers, sizes 3 : 1; class 1: one center; class 2: never seen
    memory.num_seeded.copy_(torch.tensor([2, 1, 0]))
    memory.sizes.copy_(torch.tensor([[3.0, 1.0, 9.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    memory.num_enqueued.copy_(torch.tensor([[9, 2, 0], [0, 0, 0], [0, 0, 0]]))
    memory.centers[0] = torch.eye(2)
    memory.centers[1, 0] = torch.tensor([0.6, 0.8])
    return memory


def test_by_hand():
    stats = subclass_stats(memory())
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log()) / torch.tensor(2.0).log()
    assert stats['seeded'] == pytest.approx(3 / 4)
    assert stats['used'] == 1
    assert stats['balance'] == pytest.approx((entropy.item() + 1) / 2, abs=1e-6)
    assert stats['filled'] == pytest.approx((4 + 2) / 12)
    assert stats['worst'] == 0.75
    assert stats['collapsed'] == 0
    assert 'drift' not in stats


def test_a_center_without_anchors_is_not_used():
    starved = memory()
    starved.sizes[0] = torch.tensor([1.0, 0.01, 0.0])
    stats = subclass_stats(starved)
    assert stats['used'] == pytest.approx(2 / 3)
    assert stats['worst'] == pytest.approx(1 / 1.01)
    assert stats['collapsed'] == 1


def test_drift_counts_centers_in_use_at_both_times():
    before = memory()
    after = memory()
    after.centers[0, 0] = torch.tensor([0.0, 1.0])  # cosine 0 to where it was
    before.centers[1, 0] = 0  # seeded in between
    assert subclass_stats(after, before.centers)['drift'] == pytest.approx(0.5)


def test_nothing_seen_gives_zeros():
    stats = subclass_stats(SubclassMemory(2, 3, 4), torch.zeros(2, 3, 4))
    assert set(stats.values()) == {0.0}


def test_in_the_log_of_a_runner(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data')
    loss = dict(type='clusterplug.PointClusterLoss', num_clusters=3, embed_dims=8, queue_len=4)
    runner = build_tiny_runner(
        tmp_path / 'w',
        data,
        wrap=lambda model: dict(type='clusterplug.WithClustering', model=model, loss=loss),
        hooks=[dict(type='clusterplug.ClusterStatsHook', interval=1)],
    )
    runner.train()
    (file,) = (tmp_path / 'w').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line for line in lines if 'loss' in line]
    assert len(lines) == 4
    assert lines[-1]['cluster_seeded'] >= lines[0]['cluster_seeded'] > 0
    assert 'cluster_drift' not in lines[0]
    assert lines[-1]['cluster_drift'] >= 0
    total = sum(value for key, value in lines[-1].items() if key.startswith('loss_'))
    assert lines[-1]['loss'] == pytest.approx(total, rel=1e-4)  # no statistic is taken for a loss


def test_bad_interval():
    with pytest.raises(ValueError, match='interval'):
        ClusterStatsHook(interval=0)
