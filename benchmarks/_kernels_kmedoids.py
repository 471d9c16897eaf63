# SPDX-License-Identifier: Apache-2.0
"""k-medoids against the dense form that CenterCLIP's code takes, FasterPAM, and the alternation of the same package."""

import torch
from _timing import Row, interleaved, optional, rows

from clusterplug.functional.kmedoids import kmedoids, kmedoids_swap
from clusterplug.testing import peak_bytes


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


def compare_with_dense(batch, num_points, num_dims, num_clusters, repeats, wishes):
    x = data_without_ties(batch, num_points, num_dims, num_clusters)
    runs = {'clusterplug': lambda: kmedoids(x, num_clusters), 'dense form': lambda: dense_kmedoids(x, num_clusters)}
    equal = torch.equal(runs['dense form'](), runs['clusterplug']().medoids)
    kernel = f'kmedoids B {batch}, N {num_points}, D {num_dims}, K {num_clusters}'
    remarks = {'dense form': f'ids {"equal" if equal else "DIFFER"}'}
    lines = rows(kernel, interleaved(runs, repeats, warm_up=0), 'clusterplug', wishes, remarks)
    ours, dense = (peak_bytes(runs[name]) / 1e6 for name in ('clusterplug', 'dense form'))
    return [*lines, Row(kernel, 'dense form, peak memory', ours, dense, wishes.get('memory'), '', 'MB')]


def compare_with_fasterpam(pam, batch, num_points, num_dims, num_clusters, repeats):
    """Both of ours against FasterPAM, which swaps; one thread, as process time would add up the work of more."""
    return _compare(
        {'kmedoids': kmedoids, 'kmedoids_swap': kmedoids_swap},
        'FasterPAM loop',
        lambda distances: pam.fasterpam(distances, num_clusters, random_state=0, n_cpu=1).loss,
        data_without_ties(batch, num_points, num_dims, num_clusters // 2),
        num_clusters,
        repeats,
    )


def compare_with_alternation(pam, batch, num_points, num_dims, num_clusters, repeats):
    """Ours, which alternates, against the alternation of the same package (it has one thread)."""
    return _compare(
        {'kmedoids': kmedoids},
        'its alternation, loop',
        lambda distances: pam.alternating(distances, num_clusters, random_state=0).loss,
        data_without_ties(batch, num_points, num_dims, num_clusters // 2),
        num_clusters,
        repeats,
    )


def _compare(functions, peer, theirs, x, num_clusters, repeats):
    def loop():
        return [theirs(torch.cdist(part, part).numpy()) for part in x]

    losses, lines = torch.tensor(loop()), []
    for name, function in functions.items():
        cost = (function(x, num_clusters).cost / losses).mean()
        runs = {'clusterplug': lambda function=function: function(x, num_clusters), peer: loop}
        kernel = f'{name} B {x.shape[0]}, N {x.shape[1]}, D {x.shape[2]}, K {num_clusters}'
        lines += rows(kernel, interleaved(runs, repeats), 'clusterplug', {}, {peer: f'our cost {cost:.4f} of theirs'})
    return lines


def measure(repeats):
    """Return the rows of k-medoids."""
    lines = compare_with_dense(16, 588, 768, 160, min(repeats, 3), {'dense form': 25.0, 'memory': 50.0})
    pam = optional('kmedoids')
    if pam is not None:
        for batch, num_points, num_clusters in ((16, 196, 49), (4, 588, 49), (1, 2000, 20), (1, 3000, 30)):
            lines += compare_with_fasterpam(pam, batch, num_points, 64, num_clusters, repeats)
            lines += compare_with_alternation(pam, batch, num_points, 64, num_clusters, repeats)
    return lines
