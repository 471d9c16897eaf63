# SPDX-License-Identifier: Apache-2.0
"""What the method is for: the modes of a class are found, and rare classes keep all their subclasses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clusterplug.functional.transport import assign_subclasses
from clusterplug.losses import PointClusterLoss
from clusterplug.memory import SubclassMemory


def _best_cosines(weights, num_clusters, seed, per_step=100, num_steps=400):
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
        ids, _, closest = assign_subclasses(x, memory.center_store, valid=valid, num_active=memory.num_seeded)
        memory.update(x, ids, (1 - 1e-6) / 0.04 - closest, valid, 0.95)
    return (modes @ memory.centers[0].T).max(1).values


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_equiprobable_modes_are_all_found(seed):
    assert _best_cosines([0.2] * 5, 5, seed).min() > 0.99


RARE = [0.6, 0.2, 0.1, 0.06, 0.04]


@pytest.mark.slow
def test_balanced_shares_lose_rare_modes():
    """A limit of the method: equal shares cut the big mode up and merge the rare ones."""
    tight = torch.stack([_best_cosines(RARE, 5, seed, num_steps=300) for seed in range(3)])
    assert tight[:, 3:].max() < 0.8


def _largest_share(rows, num_clusters=8, num_steps=200, seed=0):
    """Largest share of a subclass, and subclasses in use, of a class with ``rows`` points each step."""
    torch.manual_seed(seed)
    kinds = torch.randn(3, 4, 24) + torch.randn(3, 1, 24)  # three classes of four sub-types
    net = nn.Sequential(nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
    head = nn.Linear(32, 3)
    loss = PointClusterLoss(3, 32, num_clusters=num_clusters, embed_dims=32, queue_len=16, momentum=0.99)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters(), *loss.parameters()], 2e-3)
    labels = torch.cat([torch.zeros(rows), torch.ones(100), torch.full((100,), 2.0)]).long()
    for _ in range(num_steps):
        features = net(kinds[labels, torch.randint(0, 4, labels.shape)] + 0.5 * torch.randn(len(labels), 24))
        logits = head(features)
        (F.cross_entropy(logits, labels) + sum(loss(features, labels, logits).values())).backward()
        optimizer.step()
        optimizer.zero_grad()
    sizes = loss.memory.sizes[0, :-1]
    return (sizes.max() / sizes.sum()).item(), int((sizes > 0.02 * sizes.sum()).sum())


@pytest.mark.parametrize(
    'rows', [1, 2, 5, pytest.param(15, marks=pytest.mark.slow), pytest.param(31, marks=pytest.mark.slow)]
)
def test_rare_class_keeps_its_subclasses(rows):
    share, used = _largest_share(rows)
    assert share <= 2.5 / 8 + 0.05
    assert used >= 6


def _digits_by_parity(seed, with_clustering, num_epochs=30):
    """Train on even / odd with or without clustering of each into 10; test features by digit.

    Returns:
        Accuracy of a linear probe for the ten digits on features of unit length; mutual information of digit and
        nearest center; anchors per step of the least used cluster.
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import normalized_mutual_info_score

    images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images, parity = images.float() / 16, digits % 2
    torch.manual_seed(seed)
    train, test = torch.randperm(len(digits)).tensor_split(2)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    head, projector = nn.Linear(64, 2), nn.Linear(64, 32)
    # weight 0.1 on the raw terms
    loss = PointClusterLoss(
        2, 64, 10, 32, momentum=0.99, loss_weight=2.0, num_anchors_per_class=64, projector=projector
    )  # fmt: skip
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters(), *projector.parameters()], lr=1e-3)
    for _ in range(num_epochs):
        for rows in train[torch.randperm(len(train))].split(64):
            features = net(images[rows])
            logits = head(features)
            value = F.cross_entropy(logits, parity[rows])
            if with_clustering:
                value = value + sum(loss(features, parity[rows], logits).values())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    with torch.no_grad():
        features = net(images)
        embedded = F.normalize(projector(features), dim=1)
        nearest = torch.einsum('nd,nkd->nk', embedded, loss.memory.centers[parity]).argmax(1) + 10 * parity
        features = F.normalize(features, dim=1).numpy()
    probe = LogisticRegression(max_iter=2000).fit(features[train], digits[train])
    information = normalized_mutual_info_score(digits[test], nearest[test])
    return probe.score(features[test], digits[test]), information, loss.memory.sizes[:, :-1].min().item()


@pytest.mark.slow
def test_digits_stay_apart_under_labels_that_only_tell_even_from_odd():
    pytest.importorskip('sklearn')
    plain = [_digits_by_parity(seed, False)[0] for seed in range(3)]
    probes, information, least_used = zip(*(_digits_by_parity(seed, True) for seed in range(3)))
    print(f'probe without {plain}, with {probes}; NMI {information}; least used cluster {least_used} anchors a step')
    assert sum(probes) / 3 - sum(plain) / 3 >= 0.08
    assert sum(information) / 3 >= 0.55
    assert min(least_used) > 0.5
