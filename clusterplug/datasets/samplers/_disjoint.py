# SPDX-License-Identifier: Apache-2.0
"""Filling batches so that no two samples of a batch are of one cluster."""

import numpy as np


def most_batches(sizes: np.ndarray, batch_size: int) -> int:
    """Largest T with ``sum(min(sizes, T)) >= batch_size * T``: the most disjoint full batches that there can be."""
    low, high = 0, int(sizes.sum()) // batch_size  # the condition holds up to T and for no larger number
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(sizes, middle).sum()) >= batch_size * middle:
            low = middle
        else:
            high = middle - 1
    return low


def shuffled_by_cluster(clusters: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return all samples cluster by cluster, clusters and their samples in random order, and the sizes in that
    order."""
    sizes = np.bincount(clusters)
    order = rng.permutation(len(sizes))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    samples = np.lexsort((rng.random(len(clusters)), place[clusters]))
    return samples, sizes[order]


def deal(items: np.ndarray, sizes: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Deal items, which stand cluster by cluster, to batches of distinct clusters.

    Each pass gives one item to every batch, in random order. Where a cluster goes on into the next pass, that pass
    begins with batches that have nothing of it, of which there are enough as no cluster has more items than there are
    batches.

    Args:
        items: (batch_size * T,) samples, cluster by cluster.
        sizes: Number of items of each cluster, in their order, each at most T.
        batch_size: Items of a batch.
        rng: Random numbers.

    Returns:
        (T, batch_size) samples.
    """
    count = len(items) // batch_size
    batches = np.empty((count, batch_size), dtype=items.dtype)
    ends = np.cumsum(sizes)
    order = rng.permutation(count)
    for number in range(batch_size):
        if number:
            start = number * count
            cluster = np.searchsorted(ends, start, side='right')
            first = ends[cluster] - sizes[cluster]
            taken = order[count - max(start - first, 0) :] if first < start else order[:0]
            free = rng.permutation(np.setdiff1d(order, taken, assume_unique=True))
            head = max(min(int(ends[cluster]), start + count) - start, 0) if first < start else 0
            order = np.concatenate([free[:head], rng.permutation(np.concatenate([free[head:], taken]))])
        batches[order, number] = items[number * count : (number + 1) * count]
    return batches[rng.permutation(count)]


def thin(sizes: np.ndarray, total: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return how many items of each cluster to use: at most ``most`` each, ``total`` in all; any sample may be left."""
    used = np.minimum(sizes, most)
    surplus = int(used.sum()) - total
    if surplus:
        owner = np.repeat(np.arange(len(used)), used)
        used = used - np.bincount(rng.choice(owner, surplus, replace=False), minlength=len(used))
    return used


def thin_evenly(sizes: np.ndarray, total: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Like :func:`thin`, with what is left of sizes that do not depend on the draw.

    One item less of clusters that would be used up, in random order, then of the smallest others.
    """
    used = np.minimum(sizes, most)
    surplus = int(used.sum()) - total
    order = np.lexsort((rng.random(len(sizes)), np.maximum(sizes, most)))
    used[order[:surplus]] -= 1  # fewer than a batch, so fewer than the clusters
    return used


def fill_up(sizes: np.ndarray, total: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return how many items each cluster gives, at least its size and at most ``most``, ``total`` in all.

    Every cluster repeats its samples equally often as far as it may; the remainder falls at random.
    """
    spare, missing = most - sizes, total - int(sizes.sum())
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(spare, middle * sizes).sum()) <= missing:
            low = middle
        else:
            high = middle - 1
    extra = np.minimum(spare, low * sizes)
    rest = missing - int(extra.sum())
    if rest:
        owner = np.repeat(np.arange(len(sizes)), np.minimum(spare - extra, sizes))
        extra = extra + np.bincount(rng.choice(owner, rest, replace=False), minlength=len(sizes))
    return sizes + extra


def take(samples: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the first ``counts`` samples of each cluster, starting over where a cluster has fewer."""
    starts = np.cumsum(sizes) - sizes
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return samples[np.repeat(starts, counts) + within % np.repeat(sizes, counts)]


def leftovers(samples: np.ndarray, sizes: np.ndarray, used: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of at most ``batch_size`` distinct clusters of the samples after the first ``used`` of each."""
    within = np.arange(len(samples)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    level = within - np.repeat(used, sizes)
    batches = []
    for number in range(int(level.max()) + 1):
        members = samples[level == number]
        batches += np.array_split(members, -(-len(members) // batch_size))
    return batches
