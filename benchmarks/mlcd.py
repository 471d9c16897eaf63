# SPDX-License-Identifier: Apache-2.0
"""MLCD: a million classes on the CPU, and several labels against one on two-digit pictures.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/mlcd.py
    ... python benchmarks/mlcd.py --page docs/benchmarks.md    # into the page, between the marks "mlcd"

About 3 CPU-minutes.
"""

import argparse
import os
import subprocess
import sys

import numpy as np
import torch
from _timing import describe_machine, publish
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from clusterplug.estimators import KMeans
from clusterplug.estimators.sharded import top_centers
from clusterplug.functional import multilabel_discrimination
from clusterplug.heads import MultiLabelClusterHead

MEMORY = """
import sys, time, torch
from clusterplug.heads import MultiLabelClusterHead
from clusterplug.testing import peak_of_process
torch.set_num_threads(1)
ours, sparse = sys.argv[1] != 'dense', sys.argv[1] == 'sparse'
torch.manual_seed(0)
head = MultiLabelClusterHead(1_000_000, 128, 32.0, 0.3, 0.1, sparse=sparse, block_elements=1 << 22 if ours else 1 << 40)
x, labels = torch.randn(256, 128, requires_grad=True), torch.randint(0, 1_000_000, (256, 8))
begin = time.process_time()
head(x, labels).backward()
print(peak_of_process() / 2**30, time.process_time() - begin)
"""


def million(kind):
    done = subprocess.run([sys.executable, '-c', MEMORY, kind], capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        raise RuntimeError(done.stderr)
    return map(float, done.stdout.split())


def canvases(number, seed):
    """8 x 16 pictures of two digits, and which of ten digits each holds."""
    digits, draw = load_digits(), np.random.default_rng(seed)
    pairs = draw.integers(0, len(digits.target), (number, 2))
    x = np.concatenate([digits.images[pairs[:, 0]], digits.images[pairs[:, 1]]], 2) / 16
    y = np.zeros((number, 10))
    for side in range(2):
        y[np.arange(number), digits.target[pairs[:, side]]] = 1
    return torch.from_numpy(x).float()[:, None], y


def labels_of(x, clusters, number, seed):
    """The nearest of k-means centers of 2 x 2 pooled, normalized pixels."""
    pooled = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
    pooled = torch.nn.functional.normalize(pooled, dim=1).numpy()
    centers = KMeans(clusters, random_state=seed, max_iter=50).fit(pooled).cluster_centers_
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    return torch.from_numpy(top_centers(pooled, centers.astype(np.float32), number)[0])


def train(x, labels, clusters, seed, epochs, margin=0.3, pair=False):
    """Embeddings after training, and the mean cosines with positives and negatives."""
    torch.manual_seed(seed)
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 8, 64),
    )  # fmt: skip
    head = MultiLabelClusterHead(clusters, 64, 16.0, margin, 1.0 if pair else 0.3)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            z = encoder(x[rows])
            loss = together(z, head.weight, labels[rows], margin) if pair else head(z, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        z = torch.nn.functional.normalize(encoder(x), dim=1)
        cosines = z @ torch.nn.functional.normalize(head.weight, dim=1).T
        own = torch.zeros(cosines.shape, dtype=torch.bool).scatter_(1, labels.long(), True)
    return z.numpy(), float(cosines[own].mean()), float(cosines[~own].mean())


def together(z, weight, labels, margin):
    """The baseline of the paper (MLC): only differences between positives and negatives count."""
    unit = torch.nn.functional.normalize
    cosines = unit(z, dim=1) @ unit(weight, dim=1).T
    own = torch.zeros(cosines.shape, dtype=torch.bool).scatter_(1, labels.long(), True)
    pulls = torch.where(own, -16 * (cosines.clamp(-0.999, 0.999).acos() + margin).cos(), -torch.inf).logsumexp(1)
    pushes = torch.where(own, -torch.inf, 16 * cosines).logsumexp(1)
    return torch.nn.functional.softplus(pulls + pushes).mean()


def probe(z, y, half):
    """Mean average precision over the ten digits, of linear probes."""
    scores = [
        LogisticRegression(max_iter=300).fit(z[:half], y[:half, k]).decision_function(z[half:]) for k in range(10)
    ]
    return float(np.mean([average_precision_score(y[half:, k], score) for k, score in enumerate(scores)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--page', help='page whose part between the marks "mlcd" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ['', *(f'{line}<br>' for line in describe_machine(('numpy', 'scikit-learn'))), '']
    lines += ['| 1,000,000 classes x 128, r 0.1, batch 256, 8 labels | Peak memory of the process | CPU-s a step |',
              '|---|---|---|']  # fmt: skip
    for name, kind in (('blocks, dense gradient', 'ours'), ('blocks, sparse gradient', 'sparse'),
                       ('one block of all classes', 'dense')):  # fmt: skip
        gigabytes, seconds = million(kind)
        lines.append(f'| {name} | {gigabytes:.2f} GB | {seconds:.1f} |')
    lines += ['', '| Two-digit pictures, 200 clusters | Probe mAP | Cosine with positives | with negatives |',
              '|---|---|---|---|']  # fmt: skip
    runs = {'MLCD, 1 label': (1, {}), 'MLCD, 8 labels': (8, {}), 'MLCD, 64 labels': (64, {}),
            'MLCD, 8 labels, margin 0': (8, {'margin': 0.0}),
            'MLC (one term), 8 labels, all negatives': (8, {'pair': True})}  # fmt: skip
    found = {name: [] for name in runs}
    for seed in range(options.seeds):
        x, y = canvases(2000, seed)
        labels = labels_of(x, 200, 64, seed)
        for name, (number, more) in runs.items():
            z, near, far = train(x, labels[:, :number], 200, seed, options.epochs, **more)
            found[name].append((probe(z, y, 1000), near, far))
    for name, values in found.items():
        mean, spread = np.mean(values, 0), np.std(values, 0)
        lines.append(f'| {name} | {mean[0]:.3f} ± {spread[0]:.3f} | {mean[1]:.2f} | {mean[2]:.2f} |')
    loss = multilabel_discrimination(torch.zeros(1, 8), torch.zeros(1, 100_000))
    lines += ['', f'Loss at the start, scale 1, 8 labels and 100,000 negatives: {float(loss):.2f}.', '']
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'mlcd', lines)


if __name__ == '__main__':
    main()
