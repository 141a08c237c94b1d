"""Regions that are merged pair by pair, the likest first, as a tree of segments."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tree:
    """Nodes 0 to n - 1 are the regions, the others the merged ones in their order.

    Attributes:
        members: of each node the regions in it. areas: in pixels. persistence: how much more its merging with others
            cost than what it was made by.
    """

    members: list[np.ndarray]
    areas: np.ndarray
    persistence: np.ndarray

    def smallest_with(self, regions: set[int]) -> int | None:
        """The smallest node that has all these regions; None where no node does."""
        having = [k for k, members in enumerate(self.members) if regions <= set(members.tolist())]
        return min(having, key=lambda k: self.areas[k], default=None)


def neighbours(labels: np.ndarray) -> list[set[int]]:
    """Which regions of a label map (H, W) touch each other."""
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
    """Merges touching regions until none are left that touch.

    The cost of a pair is its squared distance times the root of its smallness (Ward's takes that itself, which puts
    size before likeness).

    Args:
        features: (n, F). areas: (n,) in pixels. touching: of each region its neighbours.
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
        highest = max(highest, price)  # a merge may cost less than those it is made of
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
