"""The learning rate of both pre-trainings."""

from __future__ import annotations

import math


def warm_cosine(step: int, total: int) -> float:
    """The share of the peak: up over the first twentieth of the steps, then down a cosine to 0."""
    warm = max(1, total // 20)
    return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
