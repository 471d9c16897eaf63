"""What the method is for: the modes of a class are found, rare ones too where the shares are relaxed."""

import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional.subclasses import assign_subclasses
from clusterplug.memory import SubclassMemory


def _best_cosines(weights, num_clusters, balance, seed, per_step=100, num_steps=400):
    """Cosine of the best center for each mode of one class in R^32, noise 0.15, momentum 0.95."""
    g = torch.Generator().manual_seed(seed)
    modes = F.normalize(torch.randn(len(weights), 32, generator=g), dim=1)
    memory = SubclassMemory(1, num_clusters, 32)
    memory._step = 1000 * seed  # other seeds of the centers
    valid = torch.arange(per_step + 1)[None] < per_step
    for _ in range(num_steps):
        of_mode = torch.multinomial(torch.tensor(weights), per_step, replacement=True, generator=g)
        x = modes[of_mode] + 0.15 * torch.randn(per_step, 32, generator=g)
        x = F.pad(F.normalize(x, dim=1), (0, 0, 0, 1))[None]
        ids, _, closest = assign_subclasses(
            x, memory.center_store, valid=valid, num_active=memory.num_seeded, balance=balance
        )
        memory.update(x, ids, (1 - 1e-6) / 0.04 - closest, valid, 0.95)
    return (modes @ memory.centers[0].T).max(1).values


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_equiprobable_modes_are_all_found(seed):
    assert _best_cosines([0.2] * 5, 5, 1.0, seed).min() > 0.99


RARE = [0.6, 0.2, 0.1, 0.06, 0.04]


@pytest.mark.slow
def test_balanced_shares_lose_rare_modes_and_relaxed_ones_keep_them():
    """With as many clusters as modes balanced shares cut the big mode up and merge the rare ones.

    Relaxed shares with twice as many clusters keep every mode; balanced ones do not even then.
    """
    tight = torch.stack([_best_cosines(RARE, 5, 1.0, seed, num_steps=300) for seed in range(3)])
    assert tight[:, 3:].max() < 0.8
    balanced = torch.stack([_best_cosines(RARE, 10, 1.0, seed, num_steps=300) for seed in range(3)])
    assert balanced[:, 4].max() < 0.9
    relaxed = torch.stack([_best_cosines(RARE, 10, 0.5, seed, num_steps=300) for seed in range(3)])
    assert relaxed.min() > 0.97
    assert relaxed[:, 3:].min() > 0.985
