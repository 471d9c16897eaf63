# SPDX-License-Identifier: Apache-2.0
"""Subspace learners on digits: one learner, fixed numbers of learners, and learners that grow.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/subspace_learners.py                  # 3 seeds, minutes
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/subspace_learners.py --page docs/benchmarks.md

The setting of the method's check: digits of scikit-learn, half for training, MLP 64-128, embedding of 32, Adam 1e-3, 60
epochs of 28 batches of 8 classes x 4, all slices together from epoch 45 on, clusters again every 2 epochs, splits with
a patience of 5. NMI of k-means with 10 clusters, and recall at 1, on the other half, every 5 epochs.
"""

import argparse

import numpy as np
import torch
from _timing import describe_machine, publish
from sklearn.datasets import load_digits
from torch import nn

from clusterplug.datasets.samplers import ClassBalancedBatchSampler
from clusterplug.functional import kmeans, linear_assignment, normalized_mutual_info
from clusterplug.heads import SubspaceLearnerHead
from clusterplug.hooks.learner_split import simplified_silhouette
from clusterplug.losses import MarginLoss

EPOCHS, FINETUNE, PATIENCE, RECLUSTER, MIN_DELTA = 60, 45, 5, 2, 0.02


def evaluate(x, y):
    generator = torch.Generator().manual_seed(0)
    number = int(y.max()) + 1
    best = min((kmeans(x, number, num_iters=100, generator=generator) for _ in range(5)), key=lambda each: each.inertia)
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
    return float(normalized_mutual_info(y, best.labels)), float((y[distances.argmin(1)] == y).double().mean())


def relabel(new, old, number):
    overlap = torch.zeros(number, number, dtype=torch.float64)
    overlap.index_put_((new, old), torch.ones(len(new), dtype=torch.float64), accumulate=True)
    rows, columns = linear_assignment(overlap, maximize=True)
    return columns[rows.argsort()][new]


def digits():
    """Pixels, labels, and the rows for training and for the test, drawn by the global generator."""
    x, y = (torch.tensor(each) for each in load_digits(return_X_y=True))
    order = torch.randperm(len(x))
    return x.float() / 16, y, order[: len(x) // 2], order[len(x) // 2 :]


def train(learners, dynamic, seed, sampling='cutoff', data=None):
    torch.manual_seed(seed)
    x, y, rows, rest = digits() if data is None else data
    half, number_of_classes = len(rows), int(y.max()) + 1
    body = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU())
    head, loss = SubspaceLearnerHead(128, 32, learners, seed=seed), MarginLoss(sampling=sampling, seed=seed)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 1e-3, weight_decay=1e-4)
    cluster = torch.zeros(half, dtype=torch.long)
    best = dict(score=-1.0, epoch=0)
    explore, splits, nmi_best = False, [], 0.0
    for epoch in range(EPOCHS):
        number, finetune = head.num_learners, epoch >= FINETUNE
        if number > 1 and epoch % RECLUSTER == 0 and not finetune:
            with torch.no_grad():
                v = nn.functional.normalize(body(x[rows]), dim=1)
            new = kmeans(v, number, num_iters=100, generator=torch.Generator().manual_seed(epoch)).labels
            cluster = relabel(new, cluster, number)
        for k in range(1 if finetune else number):
            own = (torch.arange(half) if finetune else (cluster == k).nonzero().flatten()).numpy()
            present = np.unique(y[rows][own], return_counts=True)
            classes = int((present[1] > 1).sum())
            if classes < 2:
                continue
            labels = np.where(np.isin(y[rows][own], present[0][present[1] > 1]), y[rows][own], -1)
            sampler = ClassBalancedBatchSampler(labels, min(8, classes), 4, seed=seed, num_batches=28 // number or 1)
            sampler.set_epoch(epoch)
            for batch in sampler:
                at = rows[torch.as_tensor(own[batch])]
                optimizer.zero_grad()
                loss(head(body(x[at]), None if finetune else k), y[at]).backward()
                optimizer.step()
        with torch.no_grad():
            score = simplified_silhouette(head(body(x[rows])), number_of_classes)
            if epoch % 5 == 4:
                nmi, recall = evaluate(head.eval()(body(x[rest])), y[rest])
                nmi_best = max(nmi_best, nmi)
                head.train()
        if score > best['score'] + MIN_DELTA:
            best, explore = dict(score=score, epoch=epoch), True
        if dynamic and explore and not finetune and epoch >= best['epoch'] + PATIENCE:
            last = head.partition == head.num_learners - 1
            keep = (head.importance() > 0.5).nonzero().flatten()
            if int(last.sum()) > 10 and 5 <= len(keep) < int(last.sum()):
                head.split(keep)
                splits.append(epoch)
                explore = False
        head.reset_importance()
    return nmi_best, nmi, recall, splits, torch.bincount(head.partition).tolist()


def markdown(lines):
    head, *rest = ['| ' + ' | '.join(line) + ' |' for line in lines]
    return [head, '|' + '---|' * len(lines[0]), *rest]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--only', nargs='+', choices=('1', '2', '4', 'growing'), default=['1', '2', '4', 'growing'])
    parser.add_argument('--page', help='page whose part between the marks "subspace_learners" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [('learners', 'NMI best', 'NMI last', 'recall at 1', 'sizes at the end', 'splits after epoch')]
    for name in options.only:
        learners, dynamic = (1, True) if name == 'growing' else (int(name), False)
        found = [train(learners, dynamic, seed) for seed in range(options.seeds)]
        means = [f'{np.mean(column):.3f} +- {np.std(column):.3f}' for column in zip(*(each[:3] for each in found))]
        print(name, *means, flush=True)
        sizes = '; '.join(', '.join(map(str, each[4])) for each in found)
        lines.append((name, *means, sizes, '; '.join(', '.join(map(str, each[3])) or '-' for each in found)))
    machine = describe_machine(('torch', 'scikit-learn'))
    print('\n'.join([*machine, *markdown(lines)]))
    if options.page:
        publish(options.page, 'subspace_learners', ['', *(f'{line}<br>' for line in machine), '', *markdown(lines), ''])


if __name__ == '__main__':
    main()
