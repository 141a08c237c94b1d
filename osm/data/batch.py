"""Samples of one set as a batch, and batches of several sets as one.

Shapes: N images, R rows (masks), S input size, T text tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from osm.data.processor import Processor, Text
from osm.data.sample import Sample
from osm.datasets.table import ANY_MODE


@dataclass
class Batch:
    """One batch of one set (or several, merged): N images, R masks.

    Attributes:
        datasets: (R), the set of each row. modes: (R), the mode it answers in.
        canvas: uint8 (N, 3, S, S), or None where `tokens` (N, L, C), float16, came from a cache.
        image_index: (R,), the image of each row. masks: bool (R, 1, S, S).
        skipped: samples left out since the last batch, by reason.
        worker, drawn: which worker made it, and how many samples it had drawn of its stream by then.
    """

    datasets: list[str]
    modes: list[str]
    canvas: Tensor | None
    tokens: Tensor | None
    image_index: Tensor
    masks: Tensor
    text: Text
    keys: list[str]
    skipped: Counter[str] = field(default_factory=Counter)
    worker: int = 0
    drawn: int = 0

    def __len__(self) -> int:
        return len(self.modes)

    def to(self, device: torch.device) -> Batch:
        return self._moved(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader, so that the copy to the GPU need not wait."""
        return self._moved(lambda x: x.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        text = Text(*(move(t) for t in vars(self.text).values()))
        return replace(
            self,
            canvas=None if self.canvas is None else move(self.canvas),
            tokens=None if self.tokens is None else move(self.tokens),
            image_index=move(self.image_index),
            masks=move(self.masks),
            text=text,
        )


def merge(batches: Sequence[Batch]) -> Batch:
    """Returns one batch of all images and rows, texts padded to the longest; of pinned batches a pinned one."""
    if len(batches) == 1:
        return batches[0]
    pinned = batches[0].masks.is_pinned()
    index, images = [], 0
    for batch in batches:
        index.append(batch.image_index + images)
        images += len(batch.keys)

    def together(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return _concatenate(present, pinned) if present else None

    text = Text(
        *(
            _concatenate(_pad_right([getattr(b.text, name) for b in batches], -100 if name == "labels" else 0), pinned)
            for name in vars(batches[0].text)
        )
    )
    return Batch(
        sum((b.datasets for b in batches), []),
        sum((b.modes for b in batches), []),
        together([b.canvas for b in batches]),
        together([b.tokens for b in batches]),
        _concatenate(index, pinned),
        _concatenate([b.masks for b in batches], pinned),
        text,
        sum((b.keys for b in batches), []),
        sum((b.skipped for b in batches), Counter()),
    )


def _concatenate(parts: list[Tensor], pinned: bool) -> Tensor:
    """Concatenates along the first axis, into pinned memory where a GPU is to copy the result without waiting."""
    if not pinned:
        return torch.cat(parts)
    first = parts[0]
    channels_last = first.ndim == 4 and not first.is_contiguous()
    out = torch.empty(
        (sum(len(part) for part in parts), *first.shape[1:]),
        dtype=first.dtype,
        pin_memory=True,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    return torch.cat(parts, out=out)


def _pad_right(parts: list[Tensor], value: int) -> list[Tensor]:
    length = max(part.shape[1] for part in parts)
    return [F.pad(part, (0, length - part.shape[1]), value=value) for part in parts]


def make_batch(samples: Sequence[Sample], name: str, processor: Processor, supervise: str, number: int) -> Batch:
    """Samples of one set as a batch: the first half of its rows in the set's own mode, the rest in `any`.

    Args:
        number: of the batch; a single row takes both modes in turn.
    """
    counts = [len(sample.targets) for sample in samples]
    rows = sum(counts)
    own = rows // 2 if rows > 1 else (number + 1) % 2
    pictures = [sample.pixels for sample in samples if sample.pixels is not None]
    text = processor.training_text(
        [prompt for sample in samples for prompt in sample.prompts],
        [target for sample in samples for target in sample.targets],
        supervise,
    )
    return Batch(
        [name] * rows,
        [name] * own + [ANY_MODE] * (rows - own),
        processor.padded_batch(pictures) if pictures else None,
        None,
        torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        torch.cat([sample.masks for sample in samples]),
        text,
        [sample.key for sample in samples],
    )
