# SPDX-License-Identifier: Apache-2.0
"""A small PointClusterLoss, batches for it, and comparisons of its state."""

import copy

import torch
import torch.nn.functional as F

from clusterplug.heads import ProjectionHead
from clusterplug.losses import PointClusterLoss
from clusterplug.losses.point_cluster import TERMS

NAMES = tuple(f'loss_cluster_{term}' for term in TERMS)


def make(num_classes=3, num_clusters=4, dims=8, seed=0, centers=True, projector=None, **options):
    """A small loss; with ``centers`` all of them exist, on random places."""
    torch.manual_seed(seed)
    projector = projector if projector is not None else ProjectionHead(dims, dims, (16,))
    loss = PointClusterLoss(num_classes, dims, num_clusters, dims, projector=projector, **options)
    if centers:
        memory = loss.memory
        memory.centers.copy_(F.normalize(torch.randn(memory.centers.shape), dim=-1))
        memory.num_seeded.copy_(memory.clusters_of[:, 0])
    return loss


def batch(num_points=200, num_classes=3, dims=8, seed=0, ignore_index=255, share_ignored=0.1):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_points,), generator=g)
    predictions = torch.randint(0, num_classes, (num_points,), generator=g)
    labels[torch.rand(num_points, generator=g) < share_ignored] = ignore_index
    return torch.randn(num_points, dims, generator=g), labels, predictions


def total(losses):
    return sum(losses.values())


def state(loss):
    return copy.deepcopy(loss.state_dict())


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_zero_with_a_path(losses, features, loss):
    assert set(losses) == {f'loss_cluster_{term}' for term in loss.contrast.terms}
    for value in losses.values():
        assert value.dim() == 0
        assert value.item() == 0
    loss.zero_grad()
    total(losses).backward()
    for parameter in loss.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    if features.requires_grad:
        assert torch.equal(features.grad, torch.zeros_like(features))
