"""Fits the classifier of the known names again, after the model has been trained (`osm refit_names`).

In training, a step contains few masks of each dataset, because the LLM takes most of the time. Here, the tower runs
once per image and mask, and the classifier is then trained alone, on many masks in each step. The masks are those of
whole images, as in naming, instead of crops. A linear discriminant of the same masks is added to it. Nothing but the
classifier changes: what the LLM reads of a name stays the same.

Shapes: R masks, K known names, X inputs, H hidden units, A classes of the tower, C tower width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osm.data.processor import Processor
from osm.data.shard_index import Indexes
from osm.data.whole_images import whole_images
from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError
from osm.forms import form_class
from osm.models.bridges.direct import DirectPath
from osm.models.bridges.known_names import KnownNames
from osm.models.bridges.pooling import RegionFeatures
from osm.models.masks import context_mask
from osm.models.osm import OmniScientModel
from osm.terminal import ProgressBar, message_logger
from osm.training.discriminant import WeightedInputs, linear_discriminant
from osm.training.optimization import advance, make_schedule
from osm.training.refit_options import RefitOptions

logger = message_logger(__name__)

_MASKS_AT_ONCE = 16


class ClassifierInputs(NamedTuple):
    """What the classifier reads of R masks: the arguments of `KnownNames.logits`."""

    inputs_RX: Tensor
    hidden_RH: Tensor
    class_logits_RA: Tensor | None

    def changed(self, change: Callable[[Tensor], Tensor]) -> ClassifierInputs:
        """Return the result of a function for each tensor."""
        logits_RA = None if self.class_logits_RA is None else change(self.class_logits_RA)
        return ClassifierInputs(change(self.inputs_RX), change(self.hidden_RH), logits_RA)

    @staticmethod
    def joined(parts: Sequence[ClassifierInputs]) -> ClassifierInputs:
        """Concatenate the rows of several parts, which all have logits or all have none."""
        logits = [part.class_logits_RA for part in parts if part.class_logits_RA is not None]
        return ClassifierInputs(
            torch.cat([part.inputs_RX for part in parts]),
            torch.cat([part.hidden_RH for part in parts]),
            torch.cat(logits) if logits else None,
        )


@dataclass(frozen=True)
class NameExamples:
    """The inputs of R masks in float16, and their names.

    Attributes:
        inputs: what the classifier reads.
        targets_R: the index of each mask's name; K = any other name.
    """

    inputs: ClassifierInputs
    targets_R: Tensor

    def __len__(self) -> int:
        return len(self.targets_R)

    def count_known(self, names: int) -> int:
        """Return the number of masks that have one of the K = `names` known names."""
        return int((self.targets_R < names).sum())

    def rows(self, rows_R: Tensor, device: torch.device) -> ClassifierInputs:
        """Return the inputs of some masks in float32 on a device."""
        return self.inputs.changed(lambda part: part[rows_R].to(device).float())


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
        OsmError: no mask has a name, or the inputs of the classifier are not finite.
    """
    known: Sequence[str] = model.config.bridge.direct_names  # type: ignore[attr-defined]
    index_of = {name: number for number, name in enumerate(known)}
    phrased = form_class(row.form).phrased
    found: list[ClassifierInputs] = []
    targets: list[Tensor] = []
    skipped: Counter[str] = Counter()
    count = left_out = 0
    indexes = Indexes()
    with ProgressBar(f"masks of {row.name}", sum(len(indexes[shard]) for shard in shards), "images") as progress:
        for scene in whole_images(row, shards):
            progress.step()
            if isinstance(scene, SampleError):
                skipped[scene.reason] += 1
                continue
            targets_R = torch.tensor([index_of.get(one.label.target, len(known)) for one in scene.segments])
            masks_R1SS = processor.canvas_masks(np.stack([one.mask for one in scene.segments]))
            kept_R = masks_R1SS.flatten(1).any(1)  # a mask can vanish at the model's input size
            if phrased and targets_R.min() < len(known):
                kept_R &= targets_R < len(known)
            left_out += int((~kept_R).sum())
            kept = kept_R.nonzero().flatten()[: options.most - count]
            found += _inputs(model, processor.pixel_values(processor.canvas(scene.image)[None]), masks_R1SS[kept])
            targets.append(targets_R[kept])
            count += len(kept)
            if count >= options.most:
                break
    if not count:
        why = f" (skipped: {dict(skipped)})" if skipped else ""
        raise OsmError(f"--shards {row.name}: no image has a mask with a name{why}")
    examples = NameExamples(ClassifierInputs.joined(found), torch.cat(targets))
    if not all(part is None or part.isfinite().all() for part in examples.inputs):
        raise OsmError(
            f"--shards {row.name}: the model's features of the masks are not finite in float16; its training may "
            "have diverged"
        )
    named = examples.count_known(len(known))
    counts = f"{count} masks, {named} of them with a known name; {left_out} masks left out"
    logger.info("%s: images: %d; %s", row.name, len(targets), counts)
    if not named:
        logger.warning("--shards %s: none of the masks has a known name; all are trained as other names", row.name)
    if skipped:
        logger.info("%s: skipped %s", row.name, dict(skipped))
    return examples


def _inputs(model: OmniScientModel, pixels_13SS: Tensor, masks_R1SS: Tensor) -> Iterator[ClassifierInputs]:
    """Run the tower on an image and on its masks, and yield the inputs of a few masks at a time in float16."""
    if not len(masks_R1SS):
        return
    path, device = direct_path(model, "the model"), model.device
    pixels_13SS = pixels_13SS.to(device)
    tokens_1LC = model.encode_image(pixels_13SS)
    for part_R1SS in masks_R1SS.to(device).split(_MASKS_AT_ONCE):
        index_R = torch.zeros(len(part_R1SS), dtype=torch.long, device=device)
        around_R1SS = context_mask(part_R1SS, model.config.context_enlarge_ratio)
        features = model.mask_features(part_R1SS, around_R1SS, pixels_13SS, index_R)
        assert isinstance(features, RegionFeatures)
        read = path.classifier_inputs(tokens_1LC, tokens_1LC.mean(1), index_R, features)
        yield ClassifierInputs(*read, features.class_logits_RA).changed(lambda part: part.half().cpu())


def refit(
    path: DirectPath, sets: Mapping[str, NameExamples], weights: Mapping[str, float], options: RefitOptions
) -> None:
    """Train the classifier of a direct path from random initialization, and add a linear discriminant to it.

    Two calls give equal results.

    Args:
        sets: the masks of each dataset. Each step takes the same number of masks of every dataset.
        weights: the weight of each dataset, in the loss and in the discriminant. Only their ratios matter.

    Raises:
        OsmError: no mask has a known name; or the linear discriminant does not exist.
    """
    known = path.known
    assert known is not None
    if not any(examples.count_known(len(known.embeddings)) for examples in sets.values()):
        masks = ", ".join(f"{name}: {len(examples)}" for name, examples in sets.items())
        raise OsmError(
            f"--shards: none of the masks ({masks}) has a known name of the model; check that each SET is the dataset "
            "of its shards"
        )
    device = known.linear.weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        known.reset_classifier()
        trained = [known.linear.weight, known.linear.bias, known.mlp_out.weight]
        optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)
        schedule = make_schedule(optimizer, "cosine", options.steps // 10, options.steps)
        total = sum(weights[name] for name in sets)
        with ProgressBar("known names", options.steps, "steps") as progress:
            for _ in range(options.steps):
                optimizer.zero_grad()
                for name, examples in sets.items():
                    rows_R = torch.randint(len(examples), (options.masks,))
                    inputs_RX, hidden_RH, class_logits_RA = examples.rows(rows_R, device)
                    inputs_RX, hidden_RH = (F.dropout(values, options.dropout) for values in (inputs_RX, hidden_RH))
                    logits_RK = known.logits(inputs_RX, hidden_RH, class_logits_RA)
                    targets_R = examples.targets_R[rows_R].to(device)
                    loss = F.cross_entropy(logits_RK, targets_R, label_smoothing=options.smoothing)
                    (weights[name] / total * loss).backward()
                optimizer.step()
                advance(schedule)
                progress.step()
    if options.discriminant:
        _add_discriminant(known, sets, weights, options)


@torch.no_grad()
def _add_discriminant(
    known: KnownNames, sets: Mapping[str, NameExamples], weights: Mapping[str, float], options: RefitOptions
) -> None:
    # The discriminant compares numbers of masks with `prior_masks`, so weights of (10, 3) would differ from (1, 0.3).
    largest = max(weights[name] for name in sets)
    parts = [
        WeightedInputs(examples.inputs.inputs_RX, examples.targets_R, weights[name] / largest)
        for name, examples in sets.items()
    ]
    found = linear_discriminant(parts, known.linear.out_features, options.shrinkage, options.prior_masks)
    for parameter, values in ((known.linear.weight, found.weight_KX), (known.linear.bias, found.bias_K)):
        parameter += options.discriminant * values.to(parameter)


@torch.no_grad()
def accuracy(path: DirectPath, examples: NameExamples) -> float:
    """Return the share of the masks whose name is the classifier's likeliest class."""
    assert path.known is not None
    device = path.known.linear.weight.device
    right = 0
    for rows_R in torch.arange(len(examples)).split(4096):
        found_R = path.known.logits(*examples.rows(rows_R, device)).argmax(1).cpu()
        right += int((found_R == examples.targets_R[rows_R]).sum())
    return right / len(examples)
