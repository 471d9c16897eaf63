# SPDX-License-Identifier: Apache-2.0
"""From relaxed memberships to labels, and what labels are worth."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_finite, check_points
from clusterplug.functional.kmeans.kmeans import kmeans

__all__ = ['membership_labels', 'partition_value']


def membership_labels(memberships: Tensor, num_clusters: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Round a relaxed membership to labels.

    Args:
        memberships: What :func:`likelihood_sdp` returns, (K, n, n) or (K, n, r): the cluster with the largest row sum;
            where the blocks share their points (they do where covariances are equal), as the next, on their sum.
            What :func:`kmeans_sdp` returns, (n, n) or (n, r): k-means of the rows of the leading eigenvectors.
        num_clusters: K.
        generator: Starts of that k-means.

    Returns:
        (n,) int64; of the k-means, numbered in the order of their first points.

    Raises:
        TypeError, ValueError: If it is none of those.

    Example:
        >>> membership_labels(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]), 2).bincount().sort()[0]
        tensor([1, 2])
    """
    check_points(memberships, 'memberships')
    num_clusters = check_count(num_clusters, 'num_clusters', 1, memberships.shape[-2])
    check_finite(memberships, 'memberships')
    if memberships.dim() == 3:
        if len(memberships) != num_clusters:
            raise ValueError(f'memberships must hold {num_clusters} blocks, got {tuple(memberships.shape)}')
        square = memberships.shape[-1] == memberships.shape[-2]
        rows = memberships.sum(-1) if square else (memberships * memberships.sum(1, keepdim=True)).sum(-1)
        if float(rows.amax(0).mean()) >= 0.75 * float(rows.sum(0).mean()) or num_clusters == 1:
            return rows.argmax(0)
        joined = memberships.sum(0) if square else memberships.transpose(0, 1).flatten(1)
        parts = membership_labels(joined, num_clusters, generator=generator)
        member = torch.nn.functional.one_hot(parts, num_clusters).to(rows.dtype)
        return matched(rows @ member)[parts]
    if memberships.dim() != 2:
        raise ValueError(f'memberships must be (n, n), (n, r) or (K, n, n), got {tuple(memberships.shape)}')
    values = memberships.double()
    if values.shape[0] == values.shape[1]:
        eigenvalues, vectors = torch.linalg.eigh((values + values.mT) / 2)
        rows = vectors[:, -num_clusters:] * eigenvalues[-num_clusters:].clamp_min(0).sqrt()
    else:
        rows = values
    starts = rows.expand(8, *rows.shape).contiguous()
    found = kmeans(starts, num_clusters, generator=generator, tol=1e-8)
    labels = found.labels[int(found.inertia.argmin())]
    # numbered by their first points, whatever signs the eigenvectors have
    member = torch.nn.functional.one_hot(labels, num_clusters)
    first = torch.where(member.sum(0) > 0, member.argmax(0), len(rows))
    return first.argsort().argsort()[labels]


def matched(worth: Tensor) -> Tensor:
    """Row for each column of worth (K, K): greedy, then swaps of two while one gains."""
    count = len(worth)
    values, of_column = worth.clone(), [0] * count
    for _ in range(count):
        row, column = divmod(int(values.argmax()), count)
        of_column[column] = row
        values[row], values[:, column] = -torch.inf, -torch.inf
    table, gained = worth.tolist(), True
    while gained:
        gained = False
        for a in range(count):
            for b in range(a):
                one, two = of_column[a], of_column[b]
                if table[two][a] + table[one][b] > table[one][a] + table[two][b] + 1e-9 * abs(table[one][a]):
                    of_column[a], of_column[b], gained = two, one, True
    return torch.tensor(of_column, device=worth.device)


def partition_value(white: Tensor, log_dets: Tensor, labels: Tensor) -> Tensor:
    """Sum of <A_k, Z_k> of a partition: minus squared distances to the means of the clusters, less n_k log det."""
    num_clusters = len(white)
    member = torch.nn.functional.one_hot(labels, num_clusters).to(white.dtype)
    sizes = member.sum(0)
    sums = torch.einsum('nk,knd->kd', member, white)
    energy = torch.einsum('nk,knd->k', member, white.square())
    spread = energy - sums.square().sum(-1) / sizes.clamp_min(1)
    return -(spread + sizes * log_dets).sum()


def means_energy(x: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """<X X', Z> of a partition: squared sums of the clusters over their sizes."""
    member = torch.nn.functional.one_hot(labels, num_clusters).to(x.dtype)
    return ((member.mT @ x).square().sum(1) / member.sum(0).clamp_min(1)).sum()


def partition_blocks(labels: Tensor, num_clusters: int) -> Tensor:
    member = torch.nn.functional.one_hot(labels, num_clusters).double().mT  # (K, n)
    return member[:, :, None] * member[:, None] / member.sum(1).clamp_min(1)[:, None, None]


def round_to_labels(memberships: Tensor, white: Tensor, log_dets: Tensor, generator) -> Tensor:
    """Labels of the larger value: of the blocks, and of their sum with each part given the shape that suits it."""
    num_clusters = len(white)
    labels = membership_labels(memberships, num_clusters, generator=generator)
    if memberships.shape[-1] != memberships.shape[-2] or num_clusters == 1:
        return labels
    parts = membership_labels(memberships.sum(0), num_clusters, generator=generator)
    member = torch.nn.functional.one_hot(parts, num_clusters).to(white.dtype)
    sizes = member.sum(0)
    energy = torch.einsum('nc,knd->kc', member, white.square())
    sums = torch.einsum('nc,knd->kcd', member, white).square().sum(-1)
    other = matched(sums / sizes.clamp_min(1) - energy - sizes * log_dets[:, None])[parts]
    better = partition_value(white, log_dets, other) > partition_value(white, log_dets, labels)
    return other if bool(better) else labels
