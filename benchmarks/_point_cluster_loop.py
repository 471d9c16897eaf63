# SPDX-License-Identifier: Apache-2.0
"""Within-class clustering as published code writes it: one class, one subclass, one slot at a time.

The baseline of ``point_cluster_loss.py``, written from a description of the authors' program, with its mistakes left
out: rows are stored as rows, an anchor is not its own negative, a ring is a ring. What makes it slow is kept: the
projector runs over all points, every class is found, sampled and transported by itself in float64 with a stop test on
the host, the queue is copied together subclass by subclass, and a Python loop over labels fills it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BASE_TEMPERATURE = 2.0


def batch_norm_projector(in_channels: int, embed_dims: int) -> nn.Sequential:
    """The published projector: three times Linear, BatchNorm and ReLU."""
    widths = [in_channels, 256, 128, embed_dims]
    layers = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def sample(labels: Tensor, predictions: Tensor, max_anchors: int, ignore_index: int) -> dict[int, Tensor]:
    """Rows of the anchors of each class that is present, half of them wrongly predicted."""
    present = [c for c in labels.unique() if c != ignore_index]
    if not present:
        return {}
    budget = max(1, max_anchors // len(present))
    rows = {}
    for c in present:
        hard = ((labels == c) & (predictions != c)).nonzero()[:, 0]
        easy = ((labels == c) & (predictions == c)).nonzero()[:, 0]
        num_hard, num_easy = hard.shape[0], easy.shape[0]
        if num_hard >= budget / 2 and num_easy >= budget / 2:
            keep_hard = budget // 2
            keep_easy = budget - keep_hard
        elif num_hard >= budget / 2:
            keep_easy, keep_hard = num_easy, budget - num_easy
        elif num_easy >= budget / 2:
            keep_hard, keep_easy = num_hard, budget - num_hard
        else:
            keep_hard, keep_easy = num_hard, num_easy
        rows[c.item()] = torch.cat([
            hard[torch.randperm(num_hard, device=hard.device)[:keep_hard]],
            easy[torch.randperm(num_easy, device=easy.device)[:keep_easy]],
        ])  # fmt: skip
    return rows


def transport(x: Tensor, centers: Tensor, power: float = 25.0, most: int = 1000) -> Tensor:
    """Balanced assignment (n,) of one class: the softmax to a power, scaled in float64 until the marginals are met."""
    kernel = (x @ centers.T).softmax(1).T.double() ** power
    num_clusters, num_points = kernel.shape
    row, column = 1 / num_clusters, 1 / num_points
    v = torch.full((num_points, 1), column, dtype=torch.float64, device=x.device)
    error, step = 1e6, 0
    while error > 0.1 and step < most:
        u = row / (kernel @ v)
        v_new = column / (u.T @ kernel).T
        if step % 10 == 0:
            error = torch.nan_to_num((v / v_new - 1).abs(), nan=0.0).sum().item()
        v = v_new
        step += 1
    return (u * kernel * v.T).argmax(0)


def contrast(anchors: Tensor, ids: Tensor, keys: Tensor, key_ids: Tensor, temperature: float, same: bool) -> Tensor:
    """Mean InfoNCE over the anchors that have a positive, by full matrices of logits, exponentials and masks."""
    logits = anchors @ keys.T / temperature
    positive = (ids[:, None] == key_ids[None]).float()
    negative = 1 - positive
    if same:
        positive = positive * (1 - torch.eye(len(ids), device=ids.device))
    largest = logits.max(1, keepdim=True)[0].detach()
    logits = logits - largest
    exponentials = logits.exp()
    negatives = (exponentials * negative).sum(1, keepdim=True)
    log_share = logits - (exponentials + negatives).log()
    count = positive.sum(1)
    values = (positive * log_share).sum(1) / count.clamp(min=1)
    kept = count > 0
    return -values[kept].mean() if kept.any() else anchors.sum() * 0


class LoopPointClusterLoss(nn.Module):
    """The loss class by class; same state as ``clusterplug.memory.SubclassMemory``, in plain tensors.

    Args:
        num_classes: C.
        in_channels: width of the features; None where embeddings are passed instead of features.
        num_clusters: K.
        embed_dims: D.
        max_anchors: anchors of all classes together.
        queue_len: remembered embeddings per subclass.
    """

    def __init__(self, num_classes, in_channels, num_clusters=40, embed_dims=64, max_anchors=100, queue_len=50):
        super().__init__()
        self.projector = batch_norm_projector(in_channels, embed_dims) if in_channels else None
        self.num_classes, self.num_clusters, self.max_anchors = num_classes, num_clusters, max_anchors
        self.temperature, self.momentum, self.enqueue_per_step = 0.1, 0.9999, 10
        self.loss_weight, self.ignore_index = 0.5, 255
        shape = num_classes, num_clusters
        self.register_buffer('centers', F.normalize(torch.randn(*shape, embed_dims), dim=-1))
        self.register_buffer('queue', F.normalize(torch.randn(*shape, queue_len, embed_dims), dim=-1))
        self.register_buffer('pointer', torch.zeros(shape, dtype=torch.int64))

    def forward(self, features: Tensor, labels: Tensor, predictions: Tensor) -> dict[str, Tensor]:
        embedded = features if self.projector is None else self.projector(features)
        embedded = F.normalize(embedded, dim=1)
        rows = sample(labels, predictions, self.max_anchors, self.ignore_index)
        if not rows:
            return {f'loss_cluster_{name}': embedded.sum() * 0 for name in ('queue', 'point', 'center')}
        parts, ids = [], []
        for c, chosen in rows.items():
            x = embedded[chosen]
            with torch.no_grad():
                ids.append(transport(x, self.centers[c]) + c * self.num_clusters)
            parts.append(x)
        anchors, ids = torch.cat(parts), torch.cat(ids)
        bank, bank_ids = self._copy_queue()
        centers = self.centers.flatten(0, 1).clone()
        center_ids = torch.arange(len(centers), device=ids.device)
        losses = {
            'queue': contrast(anchors, ids, bank, bank_ids, self.temperature, False),
            'point': contrast(anchors, ids, anchors, ids, self.temperature, True),
            'center': contrast(anchors, ids, centers, center_ids, self.temperature, False),
        }
        with torch.no_grad():
            self._enqueue(anchors, ids)
            self._move_centers(anchors, ids)
        scale = self.loss_weight * self.temperature / _BASE_TEMPERATURE
        return {f'loss_cluster_{name}': scale * value for name, value in losses.items()}

    def _copy_queue(self) -> tuple[Tensor, Tensor]:
        num_classes, num_clusters, length, dims = self.queue.shape
        bank = torch.zeros(num_classes * num_clusters * length, dims, device=self.queue.device)
        bank_ids = torch.zeros(len(bank), dtype=torch.int64, device=bank.device)
        place = 0
        for c in range(num_classes):
            for k in range(num_clusters):
                bank[place : place + length] = self.queue[c, k]
                bank_ids[place : place + length] = c * num_clusters + k
                place += length
        return bank, bank_ids

    def _enqueue(self, anchors: Tensor, ids: Tensor) -> None:
        length = self.queue.shape[2]
        for subclass in ids.unique():
            members = (ids == subclass).nonzero()[:, 0]
            members = members[torch.randperm(len(members), device=ids.device)[: self.enqueue_per_step]]
            c, k = divmod(int(subclass), self.num_clusters)
            start = int(self.pointer[c, k])
            slots = (start + torch.arange(len(members), device=ids.device)) % length
            self.queue[c, k, slots] = anchors[members]
            self.pointer[c, k] = (start + len(members)) % length

    def _move_centers(self, anchors: Tensor, ids: Tensor) -> None:
        for subclass in ids.unique():
            c, k = divmod(int(subclass), self.num_clusters)
            mean = anchors[ids == subclass].mean(0)
            moved = self.momentum * self.centers[c, k] + (1 - self.momentum) * mean
            self.centers[c, k] = F.normalize(moved, dim=0)
