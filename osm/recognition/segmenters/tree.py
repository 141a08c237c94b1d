"""Bottom-up merging of image regions into a tree of segments, the most similar pair first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tree:
    """A merge tree. Nodes 0 to n - 1 are the n regions. The other nodes are merges, in the order they were made.

    Attributes:
        members: for each node, the numbers of the regions in it.
        areas: for each node, its area in pixels.
        persistence: for each node, the cost at which it was merged into its parent minus the cost at which it was made.
    """

    members: list[np.ndarray]
    areas: np.ndarray
    persistence: np.ndarray

    def smallest_with(self, regions: set[int]) -> int | None:
        """Return the smallest node that contains all these regions, or None if there is none."""
        having = [k for k, members in enumerate(self.members) if regions <= set(members.tolist())]
        return min(having, key=lambda k: self.areas[k], default=None)


def neighbours(labels: np.ndarray) -> list[set[int]]:
    """Return, for each region of an int label map (H, W), the set of regions that touch it."""
    pairs = np.concatenate(
        [
            np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()], 1),
            np.stack([labels[:-1].ravel(), labels[1:].ravel()], 1),
        ]
    )
    found: list[set[int]] = [set() for _ in range(int(labels.max()) + 1)]
    for a, b in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist():
        found[a].add(b)
        found[b].add(a)
    return found


def merged(features: np.ndarray, areas: np.ndarray, touching: Sequence[set[int]]) -> Tree:
    """Merge touching regions until no two regions touch.

    The cost of merging two regions is the squared distance of their features times sqrt(a * b / (a + b)), where a and b
    are their relative areas. Ward's method multiplies by a * b / (a + b) itself, which favours small regions too much
    over similar ones.

    Args:
        features: float (n, F).
        areas: float (n,), in pixels.
        touching: for each region, the regions that touch it.
    """
    means, sizes = list(features), list(areas / areas.sum())
    near = [set(found) for found in touching]
    alive = [True] * len(means)
    members = [np.array([k]) for k in range(len(means))]
    height, above = [0.0] * len(means), [np.nan] * len(means)

    def cost(a: int, b: int) -> float:
        apart = means[a] - means[b]
        return float(apart @ apart) * (sizes[a] * sizes[b] / (sizes[a] + sizes[b])) ** 0.5

    heap = [(cost(a, b), a, b) for a in range(len(means)) for b in near[a] if a < b]
    heapq.heapify(heap)
    highest = 0.0
    while heap:
        price, a, b = heapq.heappop(heap)
        if not (alive[a] and alive[b]):
            continue
        highest = max(highest, price)  # the cost of a merge can be below the costs of earlier merges
        new, size = len(means), sizes[a] + sizes[b]
        means.append((means[a] * sizes[a] + means[b] * sizes[b]) / size)
        sizes.append(size)
        members.append(np.concatenate([members[a], members[b]]))
        alive[a] = alive[b] = False
        alive.append(True)
        above[a] = above[b] = highest
        height.append(highest)
        above.append(np.nan)
        near.append((near[a] | near[b]) - {a, b})
        for other in near[new]:
            near[other] -= {a, b}
            near[other].add(new)
            heapq.heappush(heap, (cost(other, new), other, new))
    lasting = np.where(np.isnan(above), highest, above) - np.array(height)
    return Tree(members, np.array(sizes) * areas.sum(), lasting)
