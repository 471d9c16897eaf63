"""k-medoids against the dense form that CenterCLIP's code takes, and against FasterPAM.

    OMP_NUM_THREADS=1 python benchmarks/kernels_kmedoids.py

One CPU thread, process time, all entries interleaved in one run; memory is the peak of tensors alive at once beside
the input. The ids of both forms are compared on data without ties before anything is timed.
"""

import argparse
import statistics
import time

import torch

from clusterplug.functional.kmedoids import kmedoids
from clusterplug.functional.kmedoids_swap import kmedoids_swap


def dense_kmedoids(x, num_clusters, num_iters=100, threshold=1e-6, chunk=4):
    """The authors' form in our words: K masked copies of the distances, one stop rule for a chunk of problems."""
    parts = [_dense_chunk(part, num_clusters, num_iters, threshold) for part in x.split(chunk)]
    return torch.cat(parts)


def _dense_chunk(x, num_clusters, num_iters, threshold):
    distances = torch.cdist(x, x)
    # fp32 rounding leaves up to 0.1 there, which would decide between members of nearly equal cost.
    distances.diagonal(dim1=1, dim2=2).zero_()
    # Negative everywhere, lowest on the diagonal: a masked entry (0) never wins and a point is nearest to itself.
    distances = distances - distances.max() - 1 - torch.eye(x.shape[1])
    medoids = x.norm(dim=-1).argmax(-1, keepdim=True)
    for _ in range(num_clusters - 1):
        to_chosen = distances.gather(1, medoids[..., None].expand(-1, -1, x.shape[1]))
        medoids = torch.cat([medoids, to_chosen.amin(1).argmax(-1, keepdim=True)], -1)
    cluster = torch.arange(num_clusters)[None, :, None]
    points = x.gather(1, medoids[..., None].expand(-1, -1, x.shape[2]))
    for _ in range(num_iters):
        labels = distances.gather(1, medoids[..., None].expand(-1, -1, x.shape[1])).argmin(1)
        member = labels[:, None] == cluster  # (B, K, N)
        pairs = member[..., None] & member[..., None, :]  # (B, K, N, N)
        sums = (distances[:, None] * pairs).sum(-1)
        medoids = sums.argmin(-1)
        moved = x.gather(1, medoids[..., None].expand(-1, -1, x.shape[2]))
        shift = (moved - points).norm(dim=-1).sum(-1).mean()
        points = moved
        if shift < threshold:
            break
    return medoids.sort(-1).values


def data_without_ties(batch, num_points, num_dims, num_clusters, seed=0):
    """Return points in groups of three or more, each with one point near its middle.

    Members of a cluster of two tie, and in thousands of random clusters some costs agree to fp32's last digits: both
    are decided by rounding. Here every cluster has one clear medoid.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(num_points)
    centers = 4 * torch.randn(batch, num_clusters, num_dims, generator=generator)
    spread = torch.where(index < num_clusters, 0.3, 1.0)[:, None]
    noise = spread * torch.randn(batch, num_points, num_dims, generator=generator)
    order = torch.randperm(num_points, generator=generator)
    return (centers[:, index % num_clusters] + noise)[:, order]


def peak_bytes(call):
    """Return the peak of the bytes that tensors hold at once during ``call``, from the allocator's own records."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def medians(calls, repeats):
    """Return the median process time of each call in seconds, calls interleaved."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare_with_dense(batch, num_points, num_dims, num_clusters, repeats):
    x = data_without_ties(batch, num_points, num_dims, num_clusters)
    equal = torch.equal(dense_kmedoids(x, num_clusters), kmedoids(x, num_clusters).medoids)
    seconds = medians(
        {'dense': lambda: dense_kmedoids(x, num_clusters), 'clusterplug': lambda: kmedoids(x, num_clusters)}, repeats
    )
    dense = peak_bytes(lambda: dense_kmedoids(x, num_clusters))
    ours = peak_bytes(lambda: kmedoids(x, num_clusters))
    print(
        f'B{batch} N{num_points} D{num_dims} K{num_clusters}: ids equal {equal}; '
        f'dense {seconds["dense"] * 1e3:.0f} ms, {dense / 1e6:.0f} MB; '
        f'clusterplug {seconds["clusterplug"] * 1e3:.1f} ms, {ours / 1e6:.1f} MB; '
        f'{seconds["dense"] / seconds["clusterplug"]:.1f}x faster, 1/{dense / ours:.0f} of the memory',
        flush=True,
    )


def compare_with_fasterpam(batch, num_points, num_dims, num_clusters, repeats):
    try:
        from kmedoids import fasterpam
    except ImportError:
        print('FasterPAM: not installed; pip install kmedoids')
        return
    x = data_without_ties(batch, num_points, num_dims, num_clusters // 2)
    distances = [torch.cdist(part, part).numpy() for part in x]
    losses = torch.tensor([fasterpam(part, num_clusters, random_state=0).loss for part in distances])
    seconds = medians(
        {
            'fasterpam': lambda: [
                fasterpam(torch.cdist(part, part).numpy(), num_clusters, random_state=0) for part in x
            ],
            'alternation': lambda: kmedoids(x, num_clusters),
            'swaps': lambda: kmedoids_swap(x, num_clusters),
        },
        repeats,
    )
    alternation, swaps = kmedoids(x, num_clusters).cost / losses, kmedoids_swap(x, num_clusters).cost / losses
    print(
        f'B{batch} N{num_points} D{num_dims} K{num_clusters}: FasterPAM loop {seconds["fasterpam"] * 1e3:.0f} ms; '
        f'kmedoids {seconds["alternation"] * 1e3:.0f} ms at {alternation.mean():.4f} of its cost; '
        f'kmedoids_swap {seconds["swaps"] * 1e3:.0f} ms at {swaps.mean():.4f}',
        flush=True,
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f'torch {torch.__version__}, one thread, fp32')
    compare_with_dense(16, 196, 768, 49, arguments.repeats)
    compare_with_dense(16, 588, 768, 160, arguments.repeats)
    compare_with_fasterpam(16, 196, 64, 49, arguments.repeats)
    compare_with_fasterpam(4, 588, 64, 49, arguments.repeats)
