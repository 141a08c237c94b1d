"""Pre-trains osm-nano's vision tower on drawn scenes.

One linear head classifies the object kind and another the attribute. Each head is applied to every token and to the
mean token of every mask. The linear heads read the same tokens as the bridge and are discarded after training.

Shapes: N images, S image size in pixels, L tokens per image, C tower width, I masks per image.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osm.errors import OsmError
from osm.models.model_config import ModelConfig
from osm.models.towers.timm_tower import TimmTowerConfig, timm_tower
from osm.models.towers.tower import Tower
from osm.models.windows import SlidingWindows
from osm.synthetic.pretraining.nano_training import read_state, warmup_cosine, write_state
from osm.synthetic.scenes.compose import draw_scene
from osm.synthetic.scenes.scene_names import ATTRIBUTES, STUFF, THINGS, Pair, choose_pairs
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

KINDS = (*THINGS, *STUFF)
NOTHING = -100  # the label that the loss ignores
MAX_MASKS = 12
TEST_SCENES = 200  # scenes on which the trained tower is tested


@dataclass(frozen=True)
class TowerTraining:
    """The training settings of the tower. Each epoch randomly scales, crops and flips the same drawn scenes."""

    scenes: int = 8000
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 1_000_003
    threads: int = 2


@dataclass
class SceneArrays:
    """Scenes as arrays: images (N, S, S, 3) uint8, segment ids (N, S, S) uint8, labels (N, I + 1, 2) int8.

    The labels are the object kind and the attribute of each segment id.
    """

    images: np.ndarray
    ids: np.ndarray
    labels: np.ndarray


def draw_all(config: TowerTraining, size: int, folder: Path) -> SceneArrays:
    """Draw and save all scenes, or load them if an earlier run with the same settings has already saved them.

    Raises:
        OsmError: the saved scenes cannot be read.
    """
    names = {"images": "scenes_images.npy", "ids": "scenes_ids.npy", "labels": "scenes_labels.npy"}
    mark = folder / "scenes.json"
    wanted = json.dumps({"count": config.scenes, "seed": config.seed, "size": size})
    if not (mark.is_file() and mark.read_text() == wanted):
        drawn = SceneArrays(
            np.zeros((config.scenes, size, size, 3), np.uint8),
            np.zeros((config.scenes, size, size), np.uint8),
            np.full((config.scenes, MAX_MASKS + 1, 2), NOTHING, np.int8),
        )
        jobs = ((size, config.seed, index) for index in range(config.scenes))
        with (
            multiprocessing.get_context("spawn").Pool(config.threads) as pool,
            ProgressBar("scenes", config.scenes, "scenes") as progress,
        ):
            for index, (image, ids, labels) in enumerate(pool.imap(_draw, jobs, chunksize=16)):
                drawn.images[index], drawn.ids[index], drawn.labels[index] = image, ids, labels
                progress.step()
        mark.unlink(missing_ok=True)
        for field, name in names.items():
            np.save(folder / name, getattr(drawn, field))
        mark.write_text(wanted)
    try:
        return SceneArrays(**{field: np.load(folder / name, mmap_mode="r") for field, name in names.items()})
    except (OSError, ValueError, EOFError) as error:
        raise OsmError(
            f"--work {folder}: the saved scenes cannot be read ({error}); delete the file {mark.name} in this folder"
        ) from None


def _draw(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size, seed, index = job
    scene = draw_scene(size, choose_pairs("seen"), seed, index)
    labels = np.full((MAX_MASKS + 1, 2), NOTHING, np.int8)
    for number, what in scene.segments.items():
        if isinstance(what, Pair):
            labels[number] = KINDS.index(what.thing), ATTRIBUTES.index(what.attribute)
        else:
            labels[number, 0] = KINDS.index(what)
    return scene.image, scene.ids.astype(np.uint8), labels


@dataclass
class TowerBatch:
    """Normalized images (N, 3, S, S), segment ids (N, S, S), and each segment's kind and attribute (N, I + 1, 2)."""

    images: Tensor
    ids: Tensor
    labels: Tensor


def batches(drawn: SceneArrays, config: TowerTraining, epoch: int, tower: Tower) -> Iterator[TowerBatch]:
    """Yield the batches of an epoch. The sample order and augmentation depend only on the seed and the epoch."""
    rng = np.random.default_rng([config.seed, epoch])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (tower.mean, tower.std))
    order = rng.permutation(len(drawn.images))
    for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
        chosen = np.sort(order[start : start + config.batch_size])
        images = torch.from_numpy(drawn.images[chosen]).permute(0, 3, 1, 2).float() / 255
        ids = torch.from_numpy(drawn.ids[chosen])
        images, ids = _view(images, ids, rng)
        yield TowerBatch((images - mean) / std, ids.long(), torch.from_numpy(drawn.labels[chosen]).long())


def _view(images: Tensor, ids: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Scale a batch by a random factor, crop or pad it to its original size, and flip it with probability 0.5."""
    size = images.shape[-1]
    scaled = int(round(size * rng.uniform(0.8, 1.2)))
    if scaled != size:
        images = F.interpolate(images, size=scaled, mode="bilinear", antialias=True)
        ids = F.interpolate(ids[:, None].float(), size=scaled, mode="nearest")[:, 0].to(torch.uint8)
    top, left = (int(v) for v in rng.integers(0, max(scaled - size, 0) + 1, 2))
    images, ids = images[..., top : top + size, left : left + size], ids[..., top : top + size, left : left + size]
    pad = size - images.shape[-1]
    images, ids = F.pad(images, (0, pad, 0, pad)), F.pad(ids, (0, pad, 0, pad))
    return (images.flip(-1), ids.flip(-1)) if rng.random() < 0.5 else (images, ids)


class TowerTask(nn.Module):
    """The vision tower with two linear heads that classify object kind and attribute."""

    def __init__(self, tower: Tower, model: ModelConfig) -> None:
        super().__init__()
        self.tower = tower
        self.windows = SlidingWindows(
            model.input_size, model.sliding_window_size, model.sliding_window_stride, tower.patch
        )
        self.kind, self.attribute = nn.Linear(tower.width, len(KINDS)), nn.Linear(tower.width, len(ATTRIBUTES))

    def forward(self, batch: TowerBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and the accuracies over all masks for object kind and attribute."""
        patches = self.tower(self.windows.split(batch.images))[1].float()
        tokens = self.windows.merge(patches)
        patch = self.tower.patch
        token_ids = batch.ids[:, patch // 2 :: patch, patch // 2 :: patch].flatten(1)
        token_labels = batch.labels.gather(1, token_ids[..., None].expand(-1, -1, 2)).flatten(0, 1)
        loss = self._loss(tokens.flatten(0, 1), token_labels)[0]
        cover = _cover(batch.ids, patch)
        area = cover.sum(-1)
        pooled = (cover @ tokens) / area.clamp(min=1)[..., None]
        # Masks of 100 pixels or fewer are ignored, as when training osm-nano.
        wanted = torch.where((area > 100)[..., None], batch.labels[:, 1:], NOTHING)
        pooled_loss, right = self._loss(pooled.flatten(0, 1), wanted.flatten(0, 1))
        return loss + 2 * pooled_loss, right

    def _loss(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        total, right = tokens.new_zeros(()), {}
        for column, name in enumerate(("kind", "attribute")):
            counted = labels[:, column] != NOTHING
            scores, target = getattr(self, name)(tokens[counted]), labels[counted, column]
            total = total + F.cross_entropy(scores, target)
            right[name] = float((scores.argmax(-1) == target).float().mean())
        return total, right


def _cover(ids: Tensor, patch: int) -> Tensor:
    """Convert segment ids (N, S, S) to the number of pixels of each mask in each token's patch, shape (N, I, L)."""
    images, size = len(ids), ids.shape[-1]
    row = torch.arange(size) // patch
    place = row[:, None] * (size // patch) + row
    index = (ids * (size // patch) ** 2 + place).flatten(1)
    counts = torch.zeros(images, (MAX_MASKS + 1) * (size // patch) ** 2)
    counts.scatter_add_(1, index, torch.ones(()).expand_as(index))
    return counts.view(images, MAX_MASKS + 1, -1)[:, 1:]


def pretrain_tower(model: ModelConfig, config: TowerTraining, folder: Path) -> dict[str, Any]:
    """Train the tower, or resume an interrupted training run after its last complete epoch.

    Args:
        model: the config of the model; its `tower` is built with random weights from the seed.
        config: the training settings.
        folder: the folder for scenes and checkpoints.

    Returns:
        `state_dict`, `accuracy` (on scenes with a different seed) and `seconds`.

    Raises:
        OsmError: there are fewer scenes than a batch needs, or saved files are broken or were written with different
            settings.
    """
    steps = config.scenes // config.batch_size
    if steps == 0:
        raise OsmError(f"--scenes {config.scenes}: one batch needs {config.batch_size}")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    sizes = model.tower
    if not isinstance(sizes, TimmTowerConfig):
        raise OsmError(f"model.tower.kind {sizes.kind!r}: only timm towers can be pre-trained here")
    tower = timm_tower(sizes.name, sizes.strides, model.sliding_window_size, None, sizes.options)
    task = TowerTask(tower, model)
    started = time.monotonic()
    drawn = draw_all(config, model.input_size, folder)
    optimizer = torch.optim.AdamW(task.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    total = steps * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, total))
    path = folder / "tower.pt"
    first, spent = _resume(path, config, task, optimizer, schedule)
    started -= spent
    for epoch in range(first, config.epochs):
        task.train()
        for step, batch in enumerate(batches(drawn, config, epoch, tower)):
            with torch.autocast("cpu", torch.bfloat16):
                loss, right = task(batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 40 == 0:
                rate = {name: round(value, 3) for name, value in right.items()}
                seconds = time.monotonic() - started
                logger.info(f"tower epoch {epoch} step {step}/{steps}: {loss:.3f} {rate} {seconds:.0f} s")
        document = {
            "task": task.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": schedule.last_epoch,
            "epoch": epoch + 1,
            "config": asdict(config),
            "seconds": time.monotonic() - started,
        }
        write_state(path, document)
    return {
        "state_dict": cast(nn.Module, tower.model).state_dict(),
        "accuracy": evaluate(task, model.input_size, config),
        "seconds": round(time.monotonic() - started),
    }


def _resume(path: Path, config: TowerTraining, task: nn.Module, optimizer: Any, schedule: Any) -> tuple[int, float]:
    """Load the checkpoint if it exists, and return the next epoch and the training time so far in seconds."""
    if not path.is_file():
        return 0, 0.0
    document = read_state(path, asdict(config))
    task.load_state_dict(document["task"])
    optimizer.load_state_dict(document["optimizer"])
    schedule.load_state_dict(
        {**schedule.state_dict(), "last_epoch": document["step"], "_step_count": document["step"] + 1}
    )
    return document["epoch"], document["seconds"]


@torch.no_grad()
def evaluate(task: TowerTask, size: int, config: TowerTraining) -> dict[str, float]:
    """Return the accuracies over all masks for object kind and attribute, measured on scenes not used in training."""
    task.eval()
    tower = task.tower
    images, ids, labels = zip(*(_draw((size, config.seed + 1, index)) for index in range(TEST_SCENES)), strict=True)
    drawn = SceneArrays(np.stack(images), np.stack(ids), np.stack(labels))
    sums: dict[str, float] = {}
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (tower.mean, tower.std))
    parts = range(0, TEST_SCENES, 20)
    for start in parts:
        pixels = torch.from_numpy(drawn.images[start : start + 20]).permute(0, 3, 1, 2).float() / 255
        batch = TowerBatch(
            (pixels - mean) / std,
            torch.from_numpy(drawn.ids[start : start + 20]).long(),
            torch.from_numpy(drawn.labels[start : start + 20]).long(),
        )
        for name, value in task(batch)[1].items():
            sums[name] = sums.get(name, 0.0) + value / len(parts)
    return {name: round(value, 4) for name, value in sums.items()}
