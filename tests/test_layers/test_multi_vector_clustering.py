# SPDX-License-Identifier: Apache-2.0
"""The layer: texts, videos, baselines, protected vectors, and training against clustering afterwards."""

import copy

import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional import chamfer_similarity, cluster_vectors, tail_vectors
from clusterplug.layers import MultiVectorClustering
from clusterplug.losses import LateInteractionLoss
from clusterplug.registry import MODELS


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lengths(*counts, width):
    return torch.arange(width) < torch.tensor(counts)[:, None]


def test_texts_and_videos():
    pytest.importorskip('mmengine')
    layer = MODELS.build(dict(type='MultiVectorClustering', num_clusters=4))
    x, mask = randn(2, 20, 5), lengths(20, 9, width=20)
    for got, expected in zip(layer(x, mask), cluster_vectors(x, mask, 4), strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(layer(x)[0], cluster_vectors(x, None, 4)[0])
    video, frames = randn(2, 6, 7, 5), lengths(6, 3, width=6)
    got = layer(video, frames)
    expected = cluster_vectors(video.flatten(1, 2), frames.repeat_interleave(7, 1), 4)
    assert torch.equal(got[0], expected[0])
    tokens = frames[..., None].expand(-1, -1, 7).contiguous()
    assert torch.equal(layer(video, tokens)[0], expected[0])
    assert list(layer.state_dict()) == []
    assert "kind='cluster'" in repr(layer)


def test_random_starts_end_with_training():
    layer = MultiVectorClustering(num_clusters=5, init='k-means++')
    x = randn(4, 40, 3)
    torch.manual_seed(0)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_baselines_protected_vectors_and_length_one():
    x, mask = randn(3, 12, 5), lengths(12, 3, 1, width=12)
    mask[0, 0] = False
    assert torch.equal(MultiVectorClustering(num_clusters=4, kind='tail')(x, mask)[0], tail_vectors(x, mask, 4)[0])
    assert MultiVectorClustering(kind='spacing', spacing=4)(x, mask)[1].sum(1).tolist() == [3, 1, 1]
    centers, there = MultiVectorClustering(num_clusters=3, num_protected=2)(x, mask)
    assert centers.shape == (3, 5, 5)
    assert there.tolist() == [[True] * 5, [True, True, True, False, False], [True, False, False, False, False]]
    assert torch.equal(centers[0, :2], x[0, 1:3])
    assert torch.equal(centers[1, :3], x[1, :3])
    assert centers[2, 1:].eq(0).all()
    unit, _ = MultiVectorClustering(ratio=0.5, normalize_centers=True)(x, mask)
    norms = unit.norm(dim=-1)
    assert ((norms - 1).abs().lt(1e-5) | norms.eq(0)).all()
    wide = MultiVectorClustering(num_clusters=3, num_protected=20)(x, mask)
    assert torch.equal(wide[0][0, :11], x[0, 1:])


def test_compiled_and_in_half_precision():
    layer = MultiVectorClustering(num_clusters=4).bfloat16()
    x = randn(2, 16, 8).bfloat16().requires_grad_()
    centers, _ = layer(x)
    assert centers.dtype == torch.bfloat16
    centers.float().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'takes exactly one of: num_clusters, ratio'),
        (dict(num_clusters=2, ratio=0.5), 'takes exactly one of'),
        (dict(ratio=0.5, kind='tail'), 'takes exactly one of: num_clusters'),
        (dict(num_clusters=4, kind='spacing'), 'takes exactly one of: spacing'),
        (dict(num_clusters=0), 'num_clusters must be at least 1'),
        (dict(ratio=0), 'ratio must be'),
        (dict(num_clusters=2, kind='mean'), 'kind must be one of'),
        (dict(num_clusters=2, init='kkz'), 'init must be one of'),
        (dict(num_clusters=2, num_protected=-1), 'num_protected must be at least 0'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MultiVectorClustering(**options)
    with pytest.raises(ValueError, match='x must be tokens'):
        MultiVectorClustering(num_clusters=2)(torch.zeros(2, 3, 4, 5, 6))
    with pytest.raises(ValueError, match='mask must have shape'):
        MultiVectorClustering(num_clusters=2)(torch.zeros(2, 3, 4, 5), torch.ones(2, 4, dtype=torch.bool))


class Concepts:
    """Documents of six concepts (four noisy tokens each) and junk; queries of three of them and junk."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.vectors = F.normalize(self.randn(200, 32), dim=-1)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def tokens(self, concepts, times, junk):
        of_concepts = self.vectors[concepts].repeat_interleave(times, 1)
        of_concepts = of_concepts + 0.1 * self.randn(*of_concepts.shape)
        return torch.cat([of_concepts, 0.18 * self.randn(len(concepts), junk, 32)], 1)

    def batch(self, size):
        concepts = torch.rand(size, 200, generator=self.generator).topk(6, dim=1).indices
        return self.tokens(concepts[:, :3], 3, 4), self.tokens(concepts, 4, 8)


def recall(model, layers, seed, size=300):
    q, d = Concepts(seed).batch(size)
    with torch.no_grad():
        q, d = (layer(F.normalize(model(x), dim=-1)) for layer, x in zip(layers, (q, d)))
    return float((chamfer_similarity(*q, *d).argmax(1) == torch.arange(size)).float().mean())


def train(model, layers, seed, steps):
    data = Concepts(seed)
    data.generator.manual_seed(1000 + seed)  # other documents of the same concepts
    optimizer, loss = torch.optim.Adam(model.parameters(), 3e-3), LateInteractionLoss(0.05, average=True)
    for _ in range(steps):
        q, d = data.batch(32)
        q, d = (layer(F.normalize(model(x), dim=-1)) for layer, x in zip(layers, (q, d)))
        value = loss(*q, *d)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model


@pytest.mark.slow
def test_training_through_clusters():
    every = [MultiVectorClustering(num_clusters=40)] * 2  # more than there are: all vectors
    few = [MultiVectorClustering(num_clusters=2), MultiVectorClustering(num_clusters=4)]
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
        start = recall(train(model, every, seed, 60), few, seed)
        afterwards = recall(train(copy.deepcopy(model), every, seed, 60), few, seed)
        through = recall(train(copy.deepcopy(model), few, seed, 60), few, seed)
        found.append((start, afterwards, through))
    start, afterwards, through = (sum(each) / 2 for each in zip(*found))
    assert through > start
    assert through >= afterwards - 0.05, found
