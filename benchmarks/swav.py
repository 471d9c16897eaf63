# SPDX-License-Identifier: Apache-2.0
"""SwAV on scikit-learn's digits against pixels and a random network, and the time of its loss.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/swav.py                           # 3 seeds
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/swav.py --page docs/benchmarks.md # ... into the page

Digits: 1,797 images of 8 x 8 without labels, three convolutions (128 features), head 128-64, four views by affine maps
and noise, batch 256, Adam 2e-3 with a cosine, prototypes frozen for 30 steps. ACC: k-means with 10 clusters, Hungarian
matching; 1-NN: nearest of 5 labeled images a class (mean of 20 draws). The loss is timed on 256 samples, 8 views, 3,000
prototypes, next to the two products that a step has anyway (scores, forward and backward), the loop of the official
code and, where it is installed (``pip install --no-deps lightly``), lightly: all in turn.
"""

import argparse
import math
import statistics
import time
import warnings
from importlib.metadata import version

import torch
import torch.nn.functional as F
from _timing import describe_machine, interleaved, one_thread_each, optional, publish
from torch import nn

from clusterplug.functional import balanced_codes, clustering_accuracy, kmeans
from clusterplug.heads import PrototypeHead
from clusterplug.losses import SwAVLoss
from clusterplug.testing import peak_bytes

VIEWS = 4


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def view(x, generator):
    """Turned by up to 20 degrees, scaled by 0.8 to 1.2, moved by up to a pixel, with noise."""
    n = len(x)
    angle = (torch.rand(n, generator=generator) * 2 - 1) * math.pi / 9
    scale = 0.8 + 0.4 * torch.rand(n, generator=generator)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * 0.25
    rows = torch.stack([angle.cos() * scale, -angle.sin() * scale, shift[:, 0],
                        angle.sin() * scale, angle.cos() * scale, shift[:, 1]], 1).view(n, 2, 3)  # fmt: skip
    moved = F.grid_sample(x, F.affine_grid(rows, x.shape, align_corners=False), align_corners=False)
    return moved + 0.1 * torch.randn(x.shape, generator=generator)


def train(x, seed, num_prototypes, epochs):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone = network()
    head = PrototypeHead(128, num_prototypes, nn.Sequential(
        nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64),
    ))  # fmt: skip
    loss_of = SwAVLoss()
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 2e-3)
    steps = epochs * (len(x) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in range(steps):
        batch = x[torch.randperm(len(x), generator=generator)[:256]]
        head.normalize_()
        views = torch.cat([view(batch, generator) for _ in range(VIEWS)])
        loss = loss_of(head(backbone(views)).chunk(VIEWS))
        optimizer.zero_grad()
        loss.backward()
        if step < 30:
            head.prototypes.grad = None
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return backbone.eval(), head.eval(), losses


def five_labels(z, y, seed):
    """1-NN from five labels a class, mean of 20 draws."""
    generator = torch.Generator().manual_seed(seed)
    z, found = F.normalize(z, dim=1), []
    for _ in range(20):
        chosen = torch.cat([
            (y == c).nonzero()[:, 0][torch.randperm(int((y == c).sum()), generator=generator)[:5]] for c in range(10)
        ])  # fmt: skip
        rest = torch.ones(len(y), dtype=torch.bool)
        rest[chosen] = False
        found.append((y[chosen][(z[rest] @ z[chosen].T).argmax(1)] == y[rest]).float().mean())
    return float(torch.stack(found).mean())


def measure(z, y, seed):
    z = F.normalize(z, dim=1)
    generator = torch.Generator().manual_seed(seed)
    runs = [kmeans(z, 10, num_iters=100, generator=generator) for _ in range(10)]
    best = min(runs, key=lambda run: float((z - run.centers[run.labels]).square().sum()))
    return float(clustering_accuracy(y, best.labels)), five_labels(z, y, seed)


@torch.no_grad()
def quality(x, y, backbone, head, seed):
    features = backbone(x)
    z = head.embed(features)
    best = head.score(z).argmax(1)
    table = torch.zeros(head.num_prototypes, 10).index_put_((best, y), torch.ones(len(y)), accumulate=True)
    return (*measure(z, y, seed), float(table.amax(1).sum() / len(y)), int((table.sum(1) > 0).sum()))


def digit_lines(seeds, epochs, prototypes):
    x, y = digits()
    pixels = [measure(x.flatten(1), y, seed) for seed in range(seeds)]
    lines = ['| features | ACC | 1-NN, 5 labels a class | purity | prototypes used | loss, first and last |',
             '|---|---|---|---|---|---|']  # fmt: skip
    lines.append(f'| pixels | {spread(pixels, 0)} | {spread(pixels, 1)} | | | |')
    untrained = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        with torch.no_grad():
            untrained.append(measure(network().train()(x), y, seed))
    lines.append(f'| random network | {spread(untrained, 0)} | {spread(untrained, 1)} | | | |')
    for number in prototypes:
        found, ends = [], []
        for seed in range(seeds):
            start = time.process_time()
            backbone, head, losses = train(x, seed, number, epochs)
            found.append(quality(x, y, backbone, head, seed))
            ends.append((losses[0], statistics.mean(losses[-10:]), time.process_time() - start))
            print(number, seed, found[-1], ends[-1], flush=True)
        used = '/'.join(str(each[3]) for each in found)
        first, last, seconds = (statistics.mean(each[n] for each in ends) for n in range(3))
        lines.append(
            f'| SwAV, K={number}, {epochs} epochs ({seconds:.0f} CPU s) | {spread(found, 0)} | {spread(found, 1)} | '
            f'{spread(found, 2)} | {used} of {number} | {first:.2f}, {last:.2f} (ln K {math.log(number):.2f}) |'
        )
    return lines


def spread(found, column):
    values = [each[column] for each in found]
    return f'{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})'


def time_lines(repeats):
    """Loss and codes against lightly and the published loop, next to the two products that a step has anyway."""
    g = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(2048, 128, generator=g), dim=1)
    c = F.normalize(torch.randn(3000, 128, generator=g), dim=1)
    scores = z @ c.T
    loss_of, peer = SwAVLoss(), optional('lightly.loss.swav_loss')

    def products():
        a, b = z.clone().requires_grad_(), c.clone().requires_grad_()
        (a @ b.T).backward(torch.ones(2048, 3000))

    def step(loss):
        def run():
            leaf = scores.detach().requires_grad_()
            loss(leaf.split(256)).backward()
            return leaf.grad

        return run

    losses = {'SwAVLoss': step(loss_of), 'the published loop': step(published)}
    codes = {'SwAVLoss': lambda: balanced_codes(scores[:512], epsilon=0.05, num_iters=3)}
    if peer is not None:
        theirs = peer.SwaVLoss()
        losses[f'lightly {version("lightly")}'] = step(lambda views: theirs(views[:2], views[2:]).sum())
        codes[f'lightly {version("lightly")}'] = lambda: peer.sinkhorn(scores[:512], 3, 0.05)
    times = interleaved({'the two products': products, **losses}, repeats)
    base = statistics.median(times['the two products'])
    lines = [
        '| part of a step (256 samples, 8 views, K 3000, d 128) | ms | of the products | tensors at once, MB | '
        'gradient apart |', '|---|---|---|---|---|',
    ]  # fmt: skip
    reference = losses['SwAVLoss']()
    for name, values in times.items():
        value = statistics.median(values)
        memory, apart = '', ''
        if name in losses:
            memory = f'{peak_bytes(losses[name]) / 2**20:.0f}'
            apart = f'{float((losses[name]() - reference).abs().max() / reference.abs().max()):.0e}'
        lines.append(
            f'| {name} | {value:.0f} | {value / base:.2f} | {memory} | {apart if name != "SwAVLoss" else ""} |'
        )
    lines += ['', '| codes of 512 samples, K 3000, 3 iterations | ms | tensors at once, MB |', '|---|---|---|']
    for name, values in interleaved(codes, 3 * repeats).items():
        lines.append(f'| {name} | {statistics.median(values):.1f} | {peak_bytes(codes[name]) / 2**20:.1f} |')
    return lines


def published(views):
    """The loop of the official code."""
    total = 0.0
    for a in range(2):
        with torch.no_grad():
            q = torch.exp(views[a] / 0.05).T
            q /= q.sum()
            for _ in range(3):
                q /= q.sum(1, keepdim=True)
                q /= q.shape[0]
                q /= q.sum(0, keepdim=True)
                q /= q.shape[1]
            q = (q * q.shape[1]).T
        part = 0.0
        for v in range(8):
            if v != a:
                part = part - (q * F.log_softmax(views[v] / 0.1, 1)).sum(1).mean()
        total = total + part / 7
    return total / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--prototypes', type=int, nargs='+', default=[30, 10])
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--only-times', action='store_true', help='leave the trainings out, and their part of the page')
    parser.add_argument('--page', help='page whose parts between the marks "swav_times" and "swav" are replaced')
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    with one_thread_each():
        parts = {'swav_times': time_lines(options.repeats)}
        if not options.only_times:
            parts['swav'] = digit_lines(options.seeds, options.epochs, options.prototypes)
    machine = describe_machine(('scikit-learn', 'lightly'))
    for name, lines in parts.items():
        print('\n'.join([*machine, '', *lines, '']))
        if options.page:
            publish(options.page, name, ['', *(f'{line}<br>' for line in machine), '', *lines, ''])


if __name__ == '__main__':
    main()
