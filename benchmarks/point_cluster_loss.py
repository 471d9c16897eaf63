# SPDX-License-Identifier: Apache-2.0
r"""PointClusterLoss against the published way to compute it, and its share of a training step.

    python benchmarks/point_cluster_loss.py                 # table: time, launches, waits, memory
    python benchmarks/point_cluster_loss.py --device cuda   # the same on a GPU: CUDA events, kernels, sync debug mode
    python benchmarks/point_cluster_loss.py --classes 19 100  # the defaults by number of classes
    python benchmarks/point_cluster_loss.py --step          # share of a training step of the demo's MinkUNet18
    python benchmarks/point_cluster_loss.py --step --device cuda --config \
        configs/point_cluster/point-cluster_minkunet34_w32_spconv_8xb2-amp-laser-polar-mix-3x_semantickitti.py

320,000 points of 19 classes with 96 features, 40 subclasses, 64 dimensions, 50 remembered embeddings for each, every
queue full. Both versions get the same features, labels, predictions and memory, and are first compared on the same
anchors. The loop is in ``_point_cluster_loop.py``; it is timed with and without its projector over all points.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from _point_cluster_loop import LoopPointClusterLoss, contrast, transport
from _point_cluster_measure import interleaved, launches, machine, machine_rates, synchronizations, verdict
from _timing import published

from clusterplug.functional.contrast import bank_contrast_terms, subclass_contrast
from clusterplug.functional.transport import assign_subclasses
from clusterplug.losses import PointClusterLoss
from clusterplug.testing import peak_bytes

NUM_CLASSES, IN_CHANNELS = 19, 96
DEMO = Path(__file__).parents[1] / 'configs/point_cluster/point-cluster_minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
SETTINGS = {
    # 100 anchors in all are 5 for each of 19 classes
    '5 anchors a class, K 40': dict(num_anchors_per_class=5),
    '53 anchors a class (default), K 40': dict(),
    # configs/point_cluster/*lidar-city.py
    'demo: 128 anchors a class, K 8, queue 16, D 32': dict(
        num_clusters=8,
        queue_len=16,
        embed_dims=32,
        num_anchors_per_class=128,
        contrast=dict(max_negatives=1024),
    ),
    '16 anchors a class, K 8, queue 16, D 32': dict(num_clusters=8, queue_len=16, embed_dims=32),
}


def make_batch(num_points: int, device: str):
    """Features (N, 96), labels (N,), and predictions (N,) of which 7 in 10 are right."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_points, IN_CHANNELS, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_points,), generator=generator)
    others = torch.randint(NUM_CLASSES, (num_points,), generator=generator)
    right = torch.rand(num_points, generator=generator) < 0.7
    predictions = torch.where(right, labels, others)
    return features.to(device).requires_grad_(), labels.to(device), predictions.to(device)


def fill_memory(loss: PointClusterLoss) -> None:
    """All centers seeded, all queues full, as after some hundred steps."""
    memory = loss.memory
    generator = torch.Generator().manual_seed(1)
    for store in (memory.center_store, memory.queue_store):
        store.copy_(F.normalize(torch.randn(store.shape, generator=generator), dim=-1))
    memory.num_seeded.fill_(memory.num_clusters)
    memory.num_enqueued.fill_(memory.queue_len)


def ours(setting: dict, device: str) -> PointClusterLoss:
    loss = PointClusterLoss(NUM_CLASSES, IN_CHANNELS, **setting).to(device)
    fill_memory(loss)
    return loss


def loop_like(loss: PointClusterLoss, in_channels: int | None, device: str) -> LoopPointClusterLoss:
    """The loop version with the same centers and queues."""
    loop = LoopPointClusterLoss(NUM_CLASSES, in_channels, loss.memory.num_clusters).to(device)
    loop.centers.copy_(loss.memory.centers)
    loop.queue.copy_(loss.memory.queue)
    return loop


def training_call(loss, features, labels, predictions, backward: bool):
    def call():
        terms = loss(features, labels, predictions)
        if backward:
            # as a training loop does: no gradient of the step before is kept
            features.grad = None
            for parameter in loss.parameters():
                parameter.grad = None
            sum(terms.values()).backward()

    return call


def compare(loss: PointClusterLoss, device: str) -> str:
    """Same anchors, same state: how far the two versions are apart, before anything is timed."""
    memory, generator = loss.memory, torch.Generator().manual_seed(2)
    x = F.normalize(torch.randn(NUM_CLASSES, 201, memory.embed_dims, generator=generator), dim=-1).to(device)
    valid = torch.ones(NUM_CLASSES, 201, dtype=torch.bool, device=device)
    valid[:, -1] = False
    state = dict(valid=valid, num_active=memory.num_seeded)
    ids, _, _ = assign_subclasses(x, memory.center_store, num_iters=11, **state)
    by_loop = torch.stack([transport(x[c, :-1], memory.centers[c]) for c in range(NUM_CLASSES)])
    equal = (ids[:, :-1] == by_loop).float().mean().item()

    anchors, subclass = x[:, :5].flatten(0, 1), (by_loop[:, :5] + memory.id_offset).flatten()
    bank = memory.queue_store
    empty = torch.zeros(bank.shape[:3], dtype=torch.bool, device=device)
    empty[:, -1] = True  # the row that is not a subclass
    keys, key_ids = memory.queue.flatten(0, 2), torch.arange(memory.num_clusters, device=device)
    key_ids = (key_ids + memory.id_offset).flatten().repeat_interleave(memory.queue_len)
    value, _ = bank_contrast_terms(anchors, subclass, bank.flatten(0, 1), empty.flatten(0, 1), temperature=0.1)
    queue_gap = (value.mean() - contrast(anchors, subclass, keys, key_ids, 0.1, False)).abs().item()
    point = subclass_contrast(anchors, subclass, anchors, subclass, temperature=0.1, exclude_self=True).mean()
    point_gap = (point - contrast(anchors, subclass, anchors, subclass, 0.1, True)).abs().item()
    return (
        f'Same anchors and state: {100 * equal:.2f} % equal subclasses after 11 iterations (200 points a class), '
        f'difference of the queue term {queue_gap:.1e}, of the point term {point_gap:.1e}.'
    )


def products_ms(loss: PointClusterLoss, num_points: int, backward: bool, rates) -> float:
    """Time for the products and the memory traffic alone, at the rates of large ones, one after the other.

    Products: projector (in backward twice more), assignment, and each anchor with all centers and with the remembered
    embeddings and the anchors that it is compared with, once for the logits and once for the gradient, which the
    forward pass makes. Traffic: labels, predictions and a random key of each point once, what is compared twice, and
    in backward the dense gradient of the features.
    """
    memory, dims, most = loss.memory, loss.memory.embed_dims, loss.contrast.max_negatives
    anchors = NUM_CLASSES * loss.num_anchors_per_class
    subclasses = NUM_CLASSES * memory.num_clusters
    projector = sum(p.numel() for p in loss.projector.parameters() if p.dim() == 2)
    compared = subclasses + min(anchors, most) + min(subclasses * memory.queue_len, most)
    flops = 2 * anchors * (projector * (3 if backward else 1) + dims * memory.num_clusters + 2 * dims * compared)
    traffic = 20 * num_points + 2 * 4 * compared * dims
    if backward:
        traffic += 4 * num_points * IN_CHANNELS
    return 1e3 * (flops / rates.product + traffic / rates.copy)


def rows_of(batch, device: str):
    """(name, call, our loss or None, backward), the loop first."""
    features, labels, predictions = batch
    published = ours(SETTINGS['5 anchors a class, K 40'], device)
    embedded = F.normalize(torch.randn(len(labels), published.memory.embed_dims), dim=1).to(device).requires_grad_()
    for backward in (False, True):
        way = 'forward + backward' if backward else 'forward'
        whole, bare = loop_like(published, IN_CHANNELS, device), loop_like(published, None, device)
        yield f'loop, {way}', training_call(whole, features, labels, predictions, backward), None, backward
        yield (
            f'loop without projector, {way}', training_call(bare, embedded, labels, predictions, backward), None,
            backward,
        )  # fmt: skip
        for name, setting in SETTINGS.items():
            loss = ours(setting, device)
            yield f'{name}, {way}', training_call(loss, features, labels, predictions, backward), loss, backward


def table(options) -> None:
    device = options.device
    batch = make_batch(options.points, device)
    torch.set_num_threads(1)
    print(compare(ours(SETTINGS['5 anchors a class, K 40'], device), device) + '\n')
    rows = list(rows_of(batch, device))
    calls = {name: call for name, call, _, _ in rows}
    rates = machine_rates(device)
    print('measuring; about three minutes on an idle machine ...', file=sys.stderr)
    one = interleaved(calls, options.repeats, device, 1)
    many = interleaved(calls, options.repeats, device, options.threads) if device == 'cpu' else one
    torch.set_num_threads(1)
    kind = 'device' if device == 'cuda' else 'CPU'
    titles = ['version', f'{kind} ms, 1 thread (IQR)', f'{options.threads} threads', 'ratio to loop',
              'ratio to loop without projector', 'launches', 'waits', 'peak MB',
              'products and traffic alone']  # fmt: skip
    print_row(titles)
    print_row(['---'] * len(titles))
    counts = {}
    for name, call, loss, backward in rows:
        way = name.rsplit(', ', 1)[1]
        ratios = [one[f'{loop}, {way}'].median / one[name].median for loop in ('loop', 'loop without projector')]
        counts[name] = launches(call, device), synchronizations(call, device)
        share = ''
        if loss is not None:
            share = f'{100 * products_ms(loss, options.points, backward, rates) / one[name].median:.0f} %'
        print_row([name, one[name], many[name], *(f'{ratio:.1f}' for ratio in ratios), *counts[name],
                   f'{peak_bytes(call, device) / 1e6:.0f}', share])  # fmt: skip
    print(
        f'\n{machine(device)}; {options.points} points, fp32, median of {options.repeats} interleaved repeats; '
        f'products and traffic at {rates.product / 1e9:.0f} GFLOP/s and {rates.copy / 1e9:.1f} GB/s measured here. '
        'CPU time is that of the process over all threads; memory is the peak of what the call allocates, by the '
        'records of the allocator.'
    )
    targets(counts, one)


def by_classes(options) -> None:
    """Cost of the defaults by number of classes; as many points of each."""
    torch.set_num_threads(options.threads)
    calls, losses = {}, {}
    for number in options.classes:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(options.points, IN_CHANNELS, generator=generator).requires_grad_()
        labels = torch.randint(number, (options.points,), generator=generator)
        losses[number] = PointClusterLoss(number, IN_CHANNELS)
        fill_memory(losses[number])
        calls[number] = training_call(losses[number], features, labels, labels, True)
    times = interleaved(calls, options.repeats, 'cpu', options.threads)
    first = times[options.classes[0]].median
    print_row(['classes', 'anchors a class', 'ms, forward + backward (IQR)', 'over the first'])
    print_row(['---'] * 4)
    for number, time in times.items():
        print_row([number, losses[number].num_anchors_per_class, time, f'{time.median / first:.2f}'])
    print(f'\n{machine("cpu")}; {options.threads} threads; the defaults, {options.points} points, queues full.')


def print_row(cells) -> None:
    print('| ' + ' | '.join(str(cell) for cell in cells) + ' |', flush=True)


def targets(counts: dict, times: dict) -> None:
    our_rows = {name: count for name, count in counts.items() if not name.startswith('loop')}
    waits = sum(count[1] for count in our_rows.values())
    most = max(count[0] for name, count in our_rows.items() if name.endswith(', forward'))
    print(f'\n- no synchronization: {waits}, {verdict(waits == 0)}')
    print(f'- at most 250 launches forward: {most}, {verdict(most <= 250)}')
    for way in ('forward', 'forward + backward'):
        for loop in ('loop', 'loop without projector'):
            ratio = times[f'{loop}, {way}'].median / times[f'5 anchors a class, K 40, {way}'].median
            print(f'- 3.5 times less time than the {loop}, {way}: {ratio:.1f}, {verdict(ratio >= 3.5)}')


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--points', type=int, default=320_000, help='points in the batch')
    parser.add_argument('--repeats', type=int, default=7, help='interleaved repeats, at least 5')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads of the second run')
    parser.add_argument('--classes', type=int, nargs='+', help='measure the defaults for these numbers of classes')
    parser.add_argument('--step', action='store_true', help='measure the share of a training step instead')
    parser.add_argument('--steps', type=int, default=12, help='with --step: pairs of steps')
    parser.add_argument('--config', default=str(DEMO), help='with --step: config with the loss; default: the demo')
    parser.add_argument(
        '--page', help='page whose part "point-cluster-loss" (-step, -classes with these options) is replaced'
    )
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error(f'--repeats must be at least 5, got {options.repeats}')
    if options.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no CUDA device')
    return options


if __name__ == '__main__':
    arguments = parse()
    part = 'point-cluster-step' if arguments.step else 'point-cluster-loss'
    with published(arguments.page, 'point-cluster-classes' if arguments.classes else part):
        if arguments.classes:
            by_classes(arguments)
        elif arguments.step:
            from _point_cluster_step import measure_step

            measure_step(arguments)
        else:
            table(arguments)
