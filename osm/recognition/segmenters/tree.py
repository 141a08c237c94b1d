"""Bottom-up merging of image regions into a tree of segments, starting with the most similar pair of regions."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tree:
    """A merge tree.

    Nodes 0 to n - 1 are the n regions; each later node merges two earlier nodes, in the order of merging.

    Attributes:
        members: for each node, the numbers of the regions in the node.
        areas: for each node, its area in pixels.
        persistence: for each node, the cost of merging the node into its parent minus the cost of creating the node.
    """

    members: list[np.ndarray]
    areas: np.ndarray
    persistence: np.ndarray


def neighbours(labels: np.ndarray) -> list[set[int]]:
    """Return, for each region of an integer label map (H, W), the set of adjacent regions."""
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
    """Merge adjacent regions, cheapest pair first, until no two regions are adjacent.

    The cost of merging two regions is the squared distance between their features times sqrt(a * b / (a + b)), where a
    and b are their relative areas. Ward's method uses the factor a * b / (a + b) without the square root, which merges
    small regions too early even if they are dissimilar.

    Args:
        features: the features of the regions, float (n, F).
        areas: the areas of the regions in pixels, float (n,).
        touching: for each region, the set of adjacent regions.
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
        highest = max(highest, price)  # a merge can be cheaper than earlier merges
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
