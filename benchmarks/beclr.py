# SPDX-License-Identifier: Apache-2.0
"""BECLR's memory: cost of a step against a loop, whom it assigns and finds, and few-shot accuracy with and without.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/beclr.py
    ... python benchmarks/beclr.py --page docs/benchmarks.md    # into the page, between the marks "beclr"

About 2 CPU-minutes.
"""

import argparse
import copy
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from _timing import describe_machine, interleaved, publish
from sklearn.datasets import load_digits

from clusterplug.losses import BatchEnhancedLoss
from clusterplug.memory import ClusteredMemory


def filled(length, dims, clusters, seed=0):
    torch.manual_seed(seed)
    kinds = torch.randn(clusters, dims)
    memory = ClusteredMemory(length, dims, clusters)
    memory.push(kinds[torch.arange(length) % clusters] + 0.7 * torch.randn(length, dims))
    return memory, kinds


def query_by_loop(memory, x, k):
    """One query after the other, as in the authors' code, with its fault of slots repaired."""
    found = []
    prototypes, rows = F.normalize(memory.prototypes, dim=1), F.normalize(memory.queue.rows, dim=1)
    for row in F.normalize(x, dim=1):
        slots = (memory.labels == (prototypes @ row).argmax()).nonzero().flatten()
        slots = slots if len(slots) >= k else torch.arange(len(rows))
        found.append(slots[(rows[slots] @ row).topk(k).indices])
    return torch.stack(found)


def prototypes_by_scan(memory):
    """All prototypes from all rows, one cluster after the other."""
    return torch.stack([memory.queue.rows[memory.labels == k].mean(0) for k in range(memory.num_clusters)])


def views(x, generator):
    moved = torch.stack([torch.roll(image, tuple(torch.randint(-1, 2, (2,), generator=generator).tolist()), (0, 1))
                         for image in x.view(-1, 8, 8)])  # fmt: skip
    return (moved + 0.2 * torch.randn(moved.shape, generator=generator)).flatten(1)


def pretrain(x, seed, extended, epochs):
    """Encoder after contrastive training on unlabeled digits, with neighbors of the memory or without."""
    torch.manual_seed(seed)
    encoder = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    projector = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    predictor = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 64))
    student = torch.nn.Sequential(encoder, projector)
    teacher = copy.deepcopy(student).requires_grad_(False)
    memories = [ClusteredMemory(512, 64, 16) for _ in range(2)]  # of the teacher, of the student
    loss, generator = BatchEnhancedLoss(temperature=0.5, neg_weight=1.0), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([*student.parameters(), *predictor.parameters()], lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            if len(rows) < 128:
                continue
            looks = [views(x[rows], generator) for _ in range(2)]
            z = [student(look) for look in looks]
            p = [predictor(each) for each in z]
            with torch.no_grad():
                t = [teacher(look) for look in looks]
            more = {}
            if extended and memories[0].clustered:
                found = [memories[0].query(each, 3) for each in t]
                pushed = [memories[1].query(each.detach(), 3) for each in z]
                more = {'neighbors': [each.rows for each in found], 'valid': [each.valid for each in found],
                        'negatives': [each.rows for each in pushed]}  # fmt: skip
            value = sum(loss(p, z, t, **more).values())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            with torch.no_grad():
                for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                    old.lerp_(new, 0.01)
            memories[0].push(torch.cat(t))
            memories[1].push(torch.cat(z).detach())
    return encoder


def few_shot(z, y, seed, episodes=300):
    """5-way 1-shot accuracy of the nearest prototype, on classes that were not seen."""
    draw, classes, right = np.random.default_rng(seed), np.unique(y), []
    z = F.normalize(z, dim=1).numpy()
    for _ in range(episodes):
        support, queries, answers = [], [], []
        for number, label in enumerate(classes):
            rows = draw.choice(np.flatnonzero(y == label), 16, replace=False)
            support.append(z[rows[0]])
            queries.append(z[rows[1:]])
            answers += [number] * 15
        right.append(((np.concatenate(queries) @ np.stack(support).T).argmax(1) == answers).mean())
    return float(np.mean(right))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--page', help='page whose part between the marks "beclr" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ['', *(f'{line}<br>' for line in describe_machine(('scikit-learn',))), '']
    memory, kinds = filled(8192, 512, 200)
    x = kinds[torch.randint(200, (512,))] + 0.7 * torch.randn(512, 512)
    same = torch.equal(memory.query(x, 5).indices, query_by_loop(memory, x, 5))
    lines += ['| Memory of 8,192 x 512, 200 clusters, batch 512 | Ours | Loop | Loop / ours |', '|---|---|---|---|']
    for name, ours, loop in (
        ('query, 5 neighbors', lambda: memory.query(x, 5), lambda: query_by_loop(memory, x, 5)),
        ('push (loop: prototypes alone)', lambda: memory.push(x), lambda: prototypes_by_scan(memory)),
    ):
        times = interleaved({'ours': ours, 'loop': loop}, 9)
        a, b = (statistics.median(times[kind]) for kind in ('ours', 'loop'))
        lines.append(f'| {name} | {a:.1f} ms | {b:.1f} ms | {b / a:.1f} |')
    lines += ['', f'Neighbors equal those of the loop: {same}.', '']
    generator = torch.Generator().manual_seed(0)
    points, prototypes = (F.normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (64, 8))
    memory = ClusteredMemory(128, 16, 8, num_iters=50)
    memory.prototypes.copy_(prototypes)
    memory._clustered = True
    memory.push(points)
    labels, distances = memory.labels[:64], torch.cdist(points, prototypes)
    counts = torch.bincount(labels, minlength=8)
    lines += [f'64 unit vectors, 8 prototypes: {float((labels == distances.argmin(1)).float().mean()):.0%} go to '
              f'the nearest, {float((labels == distances.argmax(1)).float().mean()):.0%} to the farthest (authors: 0 % '
              f'and 86 %), clusters of {int(counts.min())} to {int(counts.max())}.', '']  # fmt: skip
    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float() / 16, digits.target
    seen, unseen = y < 5, y >= 5
    found = {'pixels': [], 'random encoder': [], 'without neighbors': [], 'with neighbors': []}
    for seed in range(options.seeds):
        for name, row in found.items():
            if name == 'pixels':
                z = x[unseen]
            else:
                epochs = 0 if name == 'random encoder' else options.epochs
                encoder = pretrain(x[seen], seed, name == 'with neighbors', epochs)
                with torch.no_grad():
                    z = encoder(x[unseen])
            row.append(few_shot(z, y[unseen], seed))
    lines += ['| Digits, pre-trained on 0-4, 5-way 1-shot on 5-9, nearest prototype | Accuracy |', '|---|---|']
    lines += [f'| {name} | {np.mean(row):.3f} ± {np.std(row):.3f} |' for name, row in found.items()]
    lines.append('')
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'beclr', lines)


if __name__ == '__main__':
    main()
