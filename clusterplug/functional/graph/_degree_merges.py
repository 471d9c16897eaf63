# SPDX-License-Identifier: Apache-2.0
"""Merging clusters by the affinity of graph degree linkage: exact sums, updated merge by merge, in a priority queue."""

import heapq


class DegreeMerges:
    """Clusters of the points of one graph, and the affinities between them.

    With p_c = W^T 1_c and q_c = W 1_c, the sum U_ij = 1^T W_ij W_ji 1 is that of p_i q_i over the points of j. A merge
    adds p and q of its two clusters, so that no sum is ever approximated; only clusters next to the merged one change.

    Args:
        indices: For each point the points it links to. weights: Their weights.
        labels: First cluster of each point, 0 .. C - 1, none empty.
        num_candidates: Affinities that a cluster's score looks at.
    """

    def __init__(self, indices: list, weights: list, labels: list, num_candidates: int):
        self.label = list(labels)
        self.num_candidates = num_candidates
        count = max(self.label) + 1
        self.members: list[list[int]] = [[] for _ in range(count)]
        for point, cluster in enumerate(self.label):
            self.members[cluster].append(point)
        self.forward: list[dict[int, float]] = [{} for _ in range(count)]  # p
        self.backward: list[dict[int, float]] = [{} for _ in range(count)]  # q
        for point, (row, values) in enumerate(zip(indices, weights, strict=True)):
            forward = self.forward[self.label[point]]
            for other, weight in zip(row, values, strict=True):
                if weight > 0:
                    forward[other] = forward.get(other, 0.0) + weight
                    backward = self.backward[self.label[other]]
                    backward[point] = backward.get(point, 0.0) + weight
        self.sums: list[dict[int, float]] = [{} for _ in range(count)]  # U of a cluster to others
        self.into: list[set[int]] = [set() for _ in range(count)]  # clusters with a sum to this one
        self.near: list[dict[int, float]] = [{} for _ in range(count)]  # affinities
        self.alive = set(range(count))
        for cluster in range(count):
            self._sum_up(cluster)
        for cluster in range(count):
            for other in self._neighbors(cluster):
                self.near[cluster][other] = self._affinity(cluster, other)
        self.version = [0] * count
        self.queue: list[tuple[float, int, int, int]] = []  # minus the score, cluster, its version, partner
        for cluster in range(count):
            self._score(cluster)

    def run(self, num_clusters: int) -> bool:
        """Merge until ``num_clusters`` are left; return whether there was an affinity for every merge."""
        while len(self.alive) > num_clusters:
            pair = self._best()
            if pair is None:
                return False
            self._merge(*pair)
        return True

    def _best(self) -> tuple[int, int] | None:
        while self.queue:
            _, cluster, version, partner = heapq.heappop(self.queue)
            if cluster in self.alive and version == self.version[cluster]:
                return cluster, partner
        return None

    def _merge(self, kept: int, gone: int) -> None:
        for steps in (self.forward, self.backward):
            small, large = sorted((steps[kept], steps[gone]), key=len)
            for point, value in small.items():
                large[point] = large.get(point, 0.0) + value
            steps[kept], steps[gone] = large, {}
        touched = (self._neighbors(kept) | self._neighbors(gone)) - {kept, gone}
        for point in self.members[gone]:
            self.label[point] = kept
        self.members[kept] += self.members[gone]
        self.members[gone] = []
        self.alive.discard(gone)
        # Sums of others to the two add up; those of the two themselves are taken over all points once more.
        for other in (self.into[kept] | self.into[gone]) - {kept, gone}:
            sums = self.sums[other]
            sums[kept] = sums.get(kept, 0.0) + sums.pop(gone, 0.0)
            self.into[kept].add(other)
        self.into[kept] -= {kept, gone}
        for cluster in (kept, gone):
            for other in self.sums[cluster]:
                self.into[other].discard(cluster)
        self.sums[gone], self.into[gone], self.near[gone] = {}, set(), {}
        self._sum_up(kept)
        self.near[kept] = {}
        for other in touched | self._neighbors(kept):
            near = self.near[other]
            near.pop(gone, None)
            value = self._affinity(kept, other)
            if value > 0:
                near[kept] = self.near[kept][other] = value
            else:
                near.pop(kept, None)
            self._score(other)
        self._score(kept)

    def _sum_up(self, cluster: int) -> None:
        forward, backward = self.forward[cluster], self.backward[cluster]
        small, large = sorted((forward, backward), key=len)
        sums: dict[int, float] = {}
        for point, value in small.items():
            other = self.label[point]
            if other != cluster and point in large:
                sums[other] = sums.get(other, 0.0) + value * large[point]
        self.sums[cluster] = sums
        for other in sums:
            self.into[other].add(cluster)

    def _neighbors(self, cluster: int) -> set:
        return self.into[cluster].union(self.sums[cluster])

    def _affinity(self, one: int, other: int) -> float:
        return (
            self.sums[one].get(other, 0.0) / len(self.members[one]) ** 2
            + self.sums[other].get(one, 0.0) / len(self.members[other]) ** 2
        )

    def _score(self, cluster: int) -> None:
        """Queue the cluster by its largest affinity, and by how far that is above the next ones."""
        self.version[cluster] += 1
        near = self.near[cluster]
        if not near:
            return
        best = heapq.nlargest(self.num_candidates, near.items(), key=lambda item: (item[1], -item[0]))
        partner, top = best[0]
        score = top
        if self.num_candidates > 1:
            # Neighbors that are not there have affinity 0.
            others = sum(value for _, value in best[1:])
            score += top - others / (self.num_candidates - 1)
        heapq.heappush(self.queue, (-score, cluster, self.version[cluster], partner))


def chain_labels(nearest: list) -> list:
    """Number the connected parts of the graph in which every point is linked to its nearest neighbor."""
    parent = list(range(len(nearest)))

    def root(point: int) -> int:
        while parent[point] != point:
            parent[point] = parent[parent[point]]
            point = parent[point]
        return point

    for point, other in enumerate(nearest):
        one, two = root(point), root(other)
        parent[max(one, two)] = min(one, two)
    number: dict[int, int] = {}
    return [number.setdefault(root(point), len(number)) for point in range(len(nearest))]
