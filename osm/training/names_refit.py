"""Fits the classifier of the known names again, after the model has been trained (`osm refit_names`).

In training, a step contains few masks of each dataset, because the LLM takes most of the time. Here, the tower runs
once per image and mask, and the classifier is then trained alone, on many masks in each step. The masks are those of
whole images, as in naming, instead of crops. Nothing but the classifier changes: what the LLM reads of a name stays the
same.

Shapes: R masks, K known names, X inputs, H hidden units, A classes of the tower, C tower width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osm.data.processor import Processor
from osm.data.shards import read_shard
from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError
from osm.forms import form_class, read_sample
from osm.io.views import View
from osm.models.bridges.direct import DirectPath
from osm.models.bridges.pooling import RegionFeatures
from osm.models.masks import context_mask
from osm.models.osm import OmniScientModel
from osm.terminal import ProgressBar, message_logger
from osm.training.refit_options import RefitOptions

logger = message_logger(__name__)

_MASKS_AT_ONCE = 16


@dataclass(frozen=True)
class NameExamples:
    """What the classifier reads of R masks, and their names.

    Attributes:
        inputs_RX: float16.
        hidden_RH: float16.
        class_logits_RA: float16; None if the tower's classes are not used.
        targets_R: the index of each mask's name; K = any other name.
    """

    inputs_RX: Tensor
    hidden_RH: Tensor
    class_logits_RA: Tensor | None
    targets_R: Tensor

    def __len__(self) -> int:
        return len(self.targets_R)


def direct_path(model: OmniScientModel, where: str) -> DirectPath:
    """Return the direct path of a model with known names. Raises OsmError if it has none."""
    path = getattr(model.bridge, "direct", None)
    if not isinstance(path, DirectPath) or path.known is None:
        raise OsmError(f"{where}: the model has no known names; train it with --known_names")
    return path


@torch.no_grad()
def read_examples(
    model: OmniScientModel, processor: Processor, row: Dataset, shards: Sequence[str], options: RefitOptions
) -> NameExamples:
    """Run the tower on the images of a dataset's shards and on their masks. Samples that cannot be read are skipped.

    In a dataset with phrases instead of classes, a name that is not known can mean the same as a known name of another
    mask in the image, as `golden retriever` and `dog`. Such masks are left out.

    Raises:
        OsmError: no mask has a name.
    """
    known: Sequence[str] = model.config.bridge.direct_names  # type: ignore[attr-defined]
    index_of = {name: number for number, name in enumerate(known)}
    found: list[NameExamples] = []
    skipped: Counter[str] = Counter()
    count = left_out = 0
    images = sum(1 for shard in shards for _ in read_shard(shard))
    with ProgressBar(f"masks of {row.name}", images, "images") as progress:
        for scene in _images(row, shards, np.random.default_rng(options.seed), skipped):
            progress.step()
            if scene is None:
                continue
            image, masks, names = scene
            targets_R = torch.tensor([index_of.get(name, len(known)) for name in names])
            kept_R = torch.ones(len(names), dtype=torch.bool)
            if form_class(row.form).phrased and targets_R.min() < len(known):
                kept_R = targets_R < len(known)
            left_out += int((~kept_R).sum())
            kept = kept_R.nonzero().flatten()[: options.most - count]
            found.append(_examples(model, processor, image, masks[kept.numpy()], targets_R[kept]))
            count += len(found[-1])
            if count >= options.most:
                break
    if not count:
        raise OsmError(f"--shards {row.name}: no image has a mask with a name")
    logger.info("%s: %d masks of %d images; %d masks left out", row.name, count, len(found), left_out)
    if skipped:
        logger.info("%s: skipped %s", row.name, dict(skipped))
    logits = [one.class_logits_RA for one in found if one.class_logits_RA is not None]
    return NameExamples(
        torch.cat([one.inputs_RX for one in found]),
        torch.cat([one.hidden_RH for one in found]),
        torch.cat(logits) if logits else None,
        torch.cat([one.targets_R for one in found]),
    )


def _images(
    row: Dataset, shards: Sequence[str], rng: np.random.Generator, skipped: Counter[str]
) -> Iterator[tuple[Any, np.ndarray, list[str]] | None]:
    """Yield the image, the masks (K, H, W) and their names for each sample, or None if the sample is skipped.

    Args:
        skipped: counts the skipped samples by reason.
    """
    for shard in shards:
        for raw in read_shard(shard):
            try:
                if isinstance(raw, SampleError):
                    raise raw
                scene = read_sample(row.form, raw.members, row.label_set, row.rules)
                whole = View(scene.width, scene.height, 0, 0, scene.width, scene.height, False)
                segments = scene.pick(whole, 10**6, rng, fixed_view=True)
                if not segments:
                    raise SampleError(type(scene).nothing_usable, "no annotation is usable")
                yield scene.image(), np.stack([one.mask for one in segments]), [one.label.target for one in segments]
            except SampleError as error:
                skipped[error.reason] += 1
                yield None


def _examples(
    model: OmniScientModel, processor: Processor, image: Any, masks: np.ndarray, targets_R: Tensor
) -> NameExamples:
    """Run the tower on an image and its masks (R, H, W)."""
    path, device = direct_path(model, "the model"), model.device
    pixels_13SS = processor.pixel_values(processor.canvas(image)[None].to(device))
    tokens_1LC = model.encode_image(pixels_13SS)
    inputs: list[Tensor] = []
    hidden: list[Tensor] = []
    logits: list[Tensor] = []
    kept: list[Tensor] = []
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        masks_R1SS = processor.canvas_masks(masks[start : start + _MASKS_AT_ONCE]).to(device)
        seen_R = masks_R1SS.flatten(1).any(1)  # a mask can vanish at the model's input size
        kept.append(seen_R.cpu())
        masks_R1SS = masks_R1SS[seen_R]
        if not len(masks_R1SS):
            continue
        index_R = torch.zeros(len(masks_R1SS), dtype=torch.long, device=device)
        around_R1SS = context_mask(masks_R1SS, model.config.context_enlarge_ratio)
        features = model.mask_features(masks_R1SS, around_R1SS, pixels_13SS, index_R)
        assert isinstance(features, RegionFeatures)
        for values, tensor in zip(
            (inputs, hidden, logits),
            (*path.classifier_inputs(tokens_1LC, tokens_1LC.mean(1), index_R, features), features.class_logits_RA),
            strict=True,
        ):
            if tensor is not None:
                values.append(tensor.half().cpu())
    empty = path.mlp_in.weight.new_zeros(0, 0).half().cpu()
    return NameExamples(
        torch.cat(inputs) if inputs else empty.reshape(0, path.mlp_in.in_features),
        torch.cat(hidden) if hidden else empty.reshape(0, path.mlp_in.out_features),
        torch.cat(logits) if logits else None,
        targets_R[torch.cat(kept)] if kept else targets_R,
    )


def refit(
    path: DirectPath, sets: Mapping[str, NameExamples], weights: Mapping[str, float], options: RefitOptions
) -> None:
    """Train the classifier of a direct path from random initialization. Two calls give equal results.

    Args:
        sets: the masks of each dataset. Each step takes the same number of masks of every dataset.
        weights: the weight of each dataset's loss.
    """
    known = path.known
    assert known is not None
    device = known.linear.weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        known.reset_classifier()
        trained = [known.linear.weight, known.linear.bias, known.mlp_out.weight]
        optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)
        warmup = max(options.steps // 10, 1)
        shape = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, warmup, options.steps))
        total = sum(weights[name] for name in sets)
        with ProgressBar("known names", options.steps, "steps") as progress:
            for _ in range(options.steps):
                optimizer.zero_grad()
                for name, examples in sets.items():
                    rows_R = torch.randint(len(examples), (options.masks,))
                    loss = _loss(path, examples, rows_R, options, device)
                    (weights[name] / total * loss).backward()
                optimizer.step()
                shape.step()
                progress.step()


def _loss(
    path: DirectPath, examples: NameExamples, rows_R: Tensor, options: RefitOptions, device: torch.device
) -> Tensor:
    assert path.known is not None
    inputs_RX, hidden_RH = (
        F.dropout(values[rows_R].to(device).float(), options.dropout)
        for values in (examples.inputs_RX, examples.hidden_RH)
    )
    logits_RA = None if examples.class_logits_RA is None else examples.class_logits_RA[rows_R].to(device)
    logits_RK = path.known.logits(inputs_RX, hidden_RH, logits_RA)
    return F.cross_entropy(logits_RK, examples.targets_R[rows_R].to(device), label_smoothing=options.smoothing)


def _share(step: int, warmup: int, steps: int) -> float:
    """Return the learning rate of a step, relative to the largest: a linear warmup, and then a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * float(np.cos(np.pi * (step - warmup) / max(steps - warmup, 1)))


@torch.no_grad()
def accuracy(path: DirectPath, examples: NameExamples) -> float:
    """Return the share of the masks whose name is the classifier's likeliest class."""
    assert path.known is not None
    device = path.known.linear.weight.device
    right = 0
    for rows_R in torch.arange(len(examples)).split(4096):
        logits_RA = None if examples.class_logits_RA is None else examples.class_logits_RA[rows_R].to(device)
        inputs_RX, hidden_RH = (each[rows_R].to(device).float() for each in (examples.inputs_RX, examples.hidden_RH))
        found_R = path.known.logits(inputs_RX, hidden_RH, logits_RA).argmax(1).cpu()
        right += int((found_R == examples.targets_R[rows_R]).sum())
    return right / len(examples)
