"""Collate samples from one dataset into a batch, and merge batches from several datasets.

Shapes: N images, R rows (one per mask), S input size, T text tokens, L vision tokens, C vision channels.
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
    """A batch of N images and R masks, from one dataset or merged from several.

    Attributes:
        datasets: name of each row's dataset, a list of R texts.
        modes: mode in which each row is answered, a list of R texts. A mode is the dataset's own mode or the
            open-vocabulary mode `any`.
        canvas: padded images, uint8 (N, 3, S, S). None with a feature cache, unless the model has zoom windows.
        tokens: vision tokens from the feature cache, float16 (N, L, C). None without a feature cache.
        image_index: index of each row's image in 0..N-1, int64 (R).
        masks: the mask of each row on its image's canvas, bool (R, 1, S, S).
        text: token ids and labels of the R prompts and answers.
        keys: keys of the N samples.
        targets: the answer of each row, a list of R texts.
        skipped: number of samples skipped since the previous batch, by reason.
        worker: index of the data-loader worker that made the batch.
        drawn: number of samples that this worker had drawn from its stream when it finished the batch.
    """

    datasets: list[str]
    modes: list[str]
    canvas: Tensor | None
    tokens: Tensor | None
    image_index: Tensor
    masks: Tensor
    text: Text
    keys: list[str]
    targets: list[str]
    skipped: Counter[str] = field(default_factory=Counter)
    worker: int = 0
    drawn: int = 0

    def __len__(self) -> int:
        return len(self.modes)

    def to(self, device: torch.device) -> Batch:
        """Return a copy of the batch on a device. A batch in pinned memory is copied asynchronously."""
        return self._moved(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return a copy of the batch in pinned memory, so that the transfer to the GPU can be asynchronous.

        The DataLoader calls this method.
        """
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
    """Merge several batches into one batch that contains all their images and masks.

    The texts are padded to the length of the longest one. The merged batch is in pinned memory if the first given
    batch is in pinned memory. A single batch is returned unchanged.
    """
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
        sum((b.targets for b in batches), []),
        sum((b.skipped for b in batches), Counter()),
    )


def _concatenate(parts: list[Tensor], pinned: bool) -> Tensor:
    """Concatenate tensors along the first axis; the result is in pinned memory if `pinned` is true."""
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
    """Collate samples from one dataset into a batch.

    The first half of the masks trains the vocabulary mode named after the dataset. The second half of the masks trains
    the open-vocabulary mode `any`.

    Args:
        name: name of the dataset.
        supervise: `all` or `answer`, see `Processor.training_text`.
        number: index of the batch. If the batch has a single row, its mode alternates with this index.
    """
    counts = [len(sample.targets) for sample in samples]
    rows = sum(counts)
    own = rows // 2 if rows > 1 else (number + 1) % 2
    images = [sample.pixels for sample in samples if sample.pixels is not None]
    targets = [target for sample in samples for target in sample.targets]
    text = processor.training_text(
        [prompt for sample in samples for prompt in sample.prompts],
        targets,
        supervise,
    )
    return Batch(
        [name] * rows,
        [name] * own + [ANY_MODE] * (rows - own),
        processor.padded_batch(images) if images else None,
        None,
        torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        torch.cat([sample.masks for sample in samples]),
        text,
        [sample.key for sample in samples],
        targets,
    )
