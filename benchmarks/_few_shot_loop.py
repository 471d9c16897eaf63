# SPDX-License-Identifier: Apache-2.0
"""Transductive few-shot episodes one by one, as published: what batches of episodes are compared with."""

import importlib
import os
import sys

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

NEIGHBORS, STRENGTH, ROUNDS, STEPS = 2, 0.7, 100, 600


def prepared(support, labels, queries, mean):
    """Samples of an episode of unit length, queries shifted onto the support; their graph; the class means."""
    x = np.concatenate([support, queries]) - mean
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    count = len(support)
    x[count:] += x[:count].mean(0) - x[count:].mean(0)
    near = NearestNeighbors(n_neighbors=NEIGHBORS + 1).fit(x).kneighbors(x, return_distance=False)[:, 1:]
    ends = np.arange(0, near.size + 1, NEIGHBORS)
    graph = csr_matrix((np.ones(near.size, x.dtype), near.ravel(), ends), shape=(len(x), len(x)))
    return x, graph, np.stack([x[:count][labels == k].mean(0) for k in range(labels.max() + 1)])


def published(support, labels, queries, mean):
    """Ways (Q,) of queries (Q, D) from support (S, D): k-means with a Laplacian term, support labels at its starts.

    Algorithm and stopping rules of the authors' code, in one process; the graph is applied once a step.
    """
    x, graph, prototypes = prepared(support, labels, queries, mean)
    count, ways = len(support), len(prototypes)
    hard = euclidean_distances(x, prototypes, squared=True).argmin(1)
    hard[:count] = labels
    last = np.inf
    for number in range(ROUNDS):
        prototypes = np.stack([x[hard == k].mean(0) for k in range(ways)])
        costs = euclidean_distances(x, prototypes, squared=True)
        z = softmax(-costs, axis=1)
        z[:count] = np.eye(ways, dtype=z.dtype)[labels]
        shared, before = graph @ z, np.inf
        for step in range(STEPS):
            z = softmax(STRENGTH * shared - costs, axis=1)
            shared = graph @ z
            energy = float((z * (np.log(np.maximum(z, 1e-20)) + costs - STRENGTH * shared)).sum())
            if step > 1 and abs(energy - before) <= 1e-7 * abs(before):
                break
            before = energy
        found = z.argmax(1)
        if len(np.unique(found)) < ways:
            break
        hard = found
        energy = float((z * (costs - STRENGTH * shared)).sum())
        if number > 1 and abs(energy - last) <= 1e-4 * abs(last):
            break
        last = energy
    return hard[count:]


def official(folder: str):
    """``published`` by the authors' code itself, a checkout of imtiazziko/SLK-few-shot; it starts processes."""
    sys.path.insert(0, os.path.join(folder, 'src'))
    solve = importlib.import_module('SLK').SLK

    def label(support, labels, queries, mean):
        x, graph, prototypes = prepared(support, labels, queries, mean)
        return solve(x, graph, prototypes, np.bincount(labels).tolist(), STRENGTH, method='kmeans')[1]

    return label


def processor_seconds() -> float:
    """Of this process and the ones that it started and that have ended."""
    return sum(os.times()[:4])
