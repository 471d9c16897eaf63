# SPDX-License-Identifier: Apache-2.0
"""Trainings of an inter-slice encoder over slices that are features already."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.heads import PrototypeHead
from clusterplug.layers import InterSliceEncoder
from clusterplug.losses import IntraInterLoss
from clusterplug.pretraining import MaskedSliceModel

# weights of agreement of volumes and of hidden slices; the term of the slices trains the backbone, which is frozen
OBJECTIVES = {
    'untrained': None,
    'hidden slices': (0.0, 1.0),
    'volumes agree': (1.0, 0.0),
    'both terms': (1.0, 1.0),
    'with labels': None,
}


class _Pretraining(nn.Module):
    """The terms of :class:`~clusterplug.pretraining.ImageVolumeModel` that train the encoder."""

    def __init__(self, encoder: InterSliceEncoder, inter: float, mask: float):
        super().__init__()
        self.slices = MaskedSliceModel(encoder, mask_ratio=0.25)
        self.head = PrototypeHead(encoder.channels, 16)
        self.loss = IntraInterLoss(intra_weight=0.0, inter_weight=inter, mask_weight=mask)

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        given = {}
        if self.loss.weights['inter']:
            self.head.normalize_()
            views = torch.cat([view(x, generator) for _ in range(2)])
            given['volume_scores'] = list(self.head(self.slices.encoder.embed(views)).chunk(2))
        if self.loss.weights['mask']:
            given['mask_loss'] = self.slices(x)
        return sum(self.loss(**given).values())


class _Classifier(nn.Module):
    def __init__(self, encoder: InterSliceEncoder):
        super().__init__()
        self.encoder, self.linear = encoder, nn.Linear(encoder.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.encoder(x).mean(1))[:, 0]


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Another look at volumes (B, S, C): three quarters of the slices, half of them in reverse, with noise of 0.1."""
    length = x.shape[1] * 3 // 4
    start = torch.randint(x.shape[1] - length + 1, (len(x), 1), generator=generator)
    at = start + torch.arange(length)
    at = torch.where(torch.rand(len(x), 1, generator=generator) < 0.5, at, at.flip(1))
    chosen = x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
    return chosen + 0.1 * torch.randn(chosen.shape, generator=generator)


def trained_encoder(objective: str, x: Tensor, y: np.ndarray, seed: int, steps: int) -> nn.Module:
    """An encoder of volumes (n, S, C), in evaluation mode; with its masked model, where it has learned one."""
    torch.manual_seed(seed)
    encoder = InterSliceEncoder(x.shape[2], depth=2, heads=4, downsample=2, dropout=0.1)
    weights, target = OBJECTIVES[objective], torch.from_numpy(y).float()
    model = _Classifier(encoder) if objective == 'with labels' else _Pretraining(encoder, *(weights or (1.0, 1.0)))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=generator)[:64]
        if objective == 'with labels':
            heavier = (1 - target).sum() / target.sum()
            scores = model(view(x[rows], generator))
            loss = F.binary_cross_entropy_with_logits(scores, target[rows], pos_weight=heavier)
        else:
            loss = model(x[rows], generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
    found = model.eval().slices if weights and weights[1] and steps else encoder.eval()
    return found


@torch.no_grad()
def mixed(model: nn.Module, x: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Part -> (n, C) mean over the mixed slices."""
    encoder = model.encoder if isinstance(model, MaskedSliceModel) else model
    return {part: torch.cat([encoder(rows).mean(1) for rows in each.split(100)]).numpy() for part, each in x.items()}


@torch.no_grad()
def hidden_error(model: nn.Module, x: Tensor, seed: int) -> float | None:
    """Squared error of hidden slices over that of the average of their visible neighbors; None of other models."""
    if not isinstance(model, MaskedSliceModel):
        return None
    hidden = model.draw(x, generator=torch.Generator().manual_seed(seed))
    ours = ((model.predict(x, hidden) - x) ** 2)[hidden].mean()
    return float(ours / ((_neighbors(x, hidden) - x) ** 2)[hidden].mean())


def _neighbors(x: Tensor, hidden: Tensor) -> Tensor:
    """(n, S, C) mean of the nearest visible slices on both sides, of one where the other side has none."""
    number = torch.arange(x.shape[1]).expand(hidden.shape)
    before = number.masked_fill(hidden, -1).cummax(1).values
    after = number.masked_fill(hidden, x.shape[1]).flip(1).cummin(1).values.flip(1)
    before, after = torch.where(before < 0, after, before), torch.where(after >= x.shape[1], before, after)
    read = [x.gather(1, at[..., None].expand(-1, -1, x.shape[2])) for at in (before, after)]
    return (read[0] + read[1]) / 2
