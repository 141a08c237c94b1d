"""The interface for frozen vision towers, which encode image windows as tokens, and checks for new towers.

Shapes: W windows of side w, p patch (stride), P = 1 or 0 class tokens, G = (w/p)^2 patch tokens, C width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osm.config import FieldError
from osm.errors import OsmError, shown
from osm.models.file_hashes import installed_version, remembered_check
from osm.models.model_config import LARGEST, TowerConfig, check_sizes

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Tower(nn.Module):
    """The interface of a tower: `forward(windows (W, 3, w, w)) -> (class tokens (W, P, C), patches (W, (w/p)^2, C))`.

    `osm.models.towers.TOWERS` maps the name of each kind of tower to its class. The model freezes the tower and keeps
    it in eval mode. A tower needs at least one parameter, because its input is cast to the dtype of its parameters.

    Attributes:
        Config: the dataclass of the settings for this kind of tower.
        patch: p, the side of a patch in pixels (the stride of the tokens).
        width: C, the width of a token.
        class_tokens: P, the number of class tokens per window.
        mean: the mean that is subtracted from the RGB input in 0..1.
        std: the standard deviation by which the RGB input is divided after the mean is subtracted.
        window: the only supported window size, or None if every multiple of p is supported.
        classes: the number of classes that the tower can tell apart (`tokens_and_classes`); 0 = none.
        source: where the weights were found (`osm.models.weights.Found.source`); empty for a tower without weights.
        weight_files: the files of the weights, if they are known; their hash is remembered until they change.
        tried: the window sizes for which `check_tokens` has already run the tower.
    """

    Config: ClassVar[type[TowerConfig]]
    patch: int
    width: int
    class_tokens: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    window: int | None = None
    classes: int = 0
    source: str = ""
    weight_files: tuple[Path, ...] = ()
    tried: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: Any, window: int) -> Tower:
        """Build a tower and load its weights.

        Args:
            config: an instance of `cls.Config`.
            window: w, the side of the windows in pixels.

        Raises:
            OsmError: the weights are not found or do not fit, or the tower does not support windows of this size.
        """
        raise NotImplementedError

    @classmethod
    def blank(cls, config: Any, window: int) -> Tower:
        """Build a tower of the same shape without weights, on torch's default device. `osm plan` uses it.

        The default implementation loads the weights, because not every tower can be built without them.

        Args:
            config, window: see `of`.
        """
        return cls.of(config, window)

    def tokens_and_classes(self, windows_W3ww: Tensor, weights_WG: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the patch tokens (W, G, C) and the logits (W, `classes`) of the classifier that the tower came with.

        The logits are None if the tower has no classifier.

        Args:
            weights_WG: the weight of each cell in the mean that the classifier reads. The weights of a window sum to 1.
        """
        return self(windows_W3ww)[1], None

    def check_window(self, window: int) -> None:
        """Raise OsmError if the tower does not support windows of this size."""
        if self.window is not None and window != self.window:
            raise OsmError(f"--sliding_window_size {window}: this tower only supports windows of {self.window} pixels")


@dataclass(frozen=True)
class PretrainedTowerConfig(TowerConfig):
    """Settings for a pretrained tower from a library such as timm or open_clip.

    Attributes:
        weights: the name under which the weights are searched. Empty = `name`.
        options: sizes that replace the sizes which the library defines for a model with this name.
    """

    weights: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    refused: ClassVar[frozenset[str]] = frozenset()
    """The names of library options that are not sizes, so that `options` must not set them."""

    def __post_init__(self) -> None:
        # A checkpoint's config is not trusted, so it may set the sizes of a model, but not which files are read.
        sizes = (bool, int, float, str)
        for name, value in self.options.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            fits = all(isinstance(item, sizes) and (isinstance(item, str) or abs(item) <= LARGEST) for item in values)
            if name in self.refused or not fits:
                what = "is not a size of the model (a number, a word, or a list)"
                raise FieldError(f"options: {name}: {shown(value)} {what}")


@dataclass(frozen=True)
class RandomTowerConfig(TowerConfig):
    """Settings for a tiny tower with random weights, used in tests and to try out a data pipeline.

    Attributes:
        patch: the side of a patch in pixels.
        width: the width of a token.
        class_token: whether each window has a class token, which is the mean of the window's patch tokens.
        seed: the seed of the random weights.
        classes: the number of classes of a random linear classifier; 0 = no classifier.
    """

    kind: str = field(default="random", kw_only=True)
    patch: int = 14
    width: int = 32
    class_token: bool = True
    seed: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, "patch width")
        check_classes(self.classes)

    def token_shape(self, input_size: int) -> tuple[int, int]:
        return (input_size // self.patch) ** 2, self.width

    def least_parameters(self) -> int:
        return (3 * self.patch**2 + self.classes) * self.width


class RandomTower(Tower):
    """A tiny tower whose random weights depend only on a seed. Without a seed, it keeps torch's initial values."""

    Config = RandomTowerConfig

    def __init__(self, patch: int, width: int, class_token: bool, seed: int | None, classes: int = 0) -> None:
        super().__init__()
        self.patch, self.width, self.class_tokens, self.classes = patch, width, int(class_token), classes
        self.embedding = nn.Conv2d(3, width, patch, patch)
        self.classifier = nn.Linear(width, classes) if classes else None
        if seed is None:
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (3 * patch * patch) ** -0.5)

    @classmethod
    def of(cls, config: RandomTowerConfig, window: int) -> RandomTower:
        return cls(config.patch, config.width, config.class_token, config.seed, config.classes)

    @classmethod
    def blank(cls, config: RandomTowerConfig, window: int) -> RandomTower:
        return cls(config.patch, config.width, config.class_token, None, config.classes)

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        patches_WGC = self.embedding(windows_W3ww).flatten(2).transpose(1, 2)
        patches_WGC = F.layer_norm(patches_WGC, patches_WGC.shape[-1:])
        return patches_WGC.mean(1, keepdim=True)[:, : self.class_tokens], patches_WGC

    def tokens_and_classes(self, windows_W3ww: Tensor, weights_WG: Tensor) -> tuple[Tensor, Tensor | None]:
        _, patches_WGC = self(windows_W3ww)
        if self.classifier is None:
            return patches_WGC, None
        return patches_WGC, self.classifier(torch.einsum("wg,wgc->wc", weights_WG.to(patches_WGC.dtype), patches_WGC))


def check_classes(classes: int) -> None:
    """Raise FieldError if a number of classes is out of range."""
    if not 0 <= classes <= LARGEST:
        raise FieldError(f"classes {shown(classes)} is not 0 to {LARGEST}")


# A tower with more parameters than `_LARGE` is first run on the meta device, which computes only shapes.
_LARGE = 1_000_000
_MARGIN = 8
"""How many times fewer values the weights may have than the tower's options imply (because of grouped layers)."""


def check_tokens(tower: Tower, window: int, about: str, files: Sequence[Path] = (), what: str = "") -> None:
    """Run one window of zeros through a tower, and compare the shapes of its tokens with the tower's attributes.

    The check changes neither torch's random state nor the tower's training mode or weights.

    Args:
        window: w, the side of the window in pixels.
        about: the beginning of error messages, which specifies the model and the window size.
        files: the weight files of the tower. A check that has passed is not repeated until the files change.
        what: everything else that determines the tower.

    Raises:
        OsmError: the tower fails on such a window, or its tokens do not have the shapes (1, P, C) and (1, (w/p)^2, C).
    """
    if window in tower.tried:
        return
    versions = " ".join(f"{name} {installed_version(name)}" for name in ("torch", "timm")) if files else ""
    sizes = f"{tower.patch} {tower.width} {tower.class_tokens}"
    remembered_check(files, f"tokens {what} {sizes} {window} {versions}", lambda: _check_tokens(tower, window, about))
    tower.tried |= {window}


def _check_tokens(tower: Tower, window: int, about: str) -> None:
    training = tower.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            prefix_WPC, patches_WGC = _try(tower.eval(), window)
    except OsmError as error:
        raise OsmError(f"{about}: {error}") from None
    except Exception as error:  # a model that does not suit such windows may raise any exception
        raise OsmError(f"{about}: the model does not run ({one_line(error)})") from None
    finally:
        tower.train(training)
    expected = (1, (window // tower.patch) ** 2, tower.width)
    if tuple(patches_WGC.shape) != expected:
        raise OsmError(
            f"{about}: the patch tokens have shape {tuple(patches_WGC.shape)}, but the tower's attributes imply "
            f"{expected} (one token per cell of {tower.patch} pixels)"
        )
    expected = (1, tower.class_tokens, tower.width)
    if tuple(prefix_WPC.shape) != expected:
        raise OsmError(
            f"{about}: the class tokens have shape {tuple(prefix_WPC.shape)}, but the tower's attributes imply "
            f"{expected}"
        )


def one_line(error: Exception) -> str:
    """Return an error's message as a single line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or repr(error)[:300]


def _try(tower: Tower, window: int) -> tuple[Tensor, Tensor]:
    tensors = [*tower.parameters(), *tower.buffers()]
    like = next(tower.parameters(), torch.zeros(0))
    shape = (1, 3, window, window)
    if sum(parameter.numel() for parameter in tower.parameters()) > _LARGE:
        # We run a copy, because a model may cache tensors in `forward`, and they would stay on the meta device.
        meta: dict[int, Any] = {
            id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
        }
        try:
            return copy.deepcopy(tower, meta)(torch.zeros(shape, dtype=like.dtype, device="meta"))
        except Exception:  # models that hold plain tensors or read values cannot run on the meta device
            pass
    return tower(torch.zeros(shape, dtype=like.dtype, device=like.device))


def check_complete(name: str, lacking: Sequence[str]) -> None:
    """Raise OsmError if a weight file lacks entries that the tower needs."""
    if lacking:
        raise OsmError(f"weights for {name} are missing {len(lacking)} entries (the first is {lacking[0]!r})")


def check_options(options: Mapping[str, Any], state: Mapping[str, Tensor] | None, name: str) -> None:
    """Compare the sizes in a tower's `options` with the weights that will be loaded into it.

    Args:
        state: the weights, or None for a tower that keeps its random initial values.
        name: the name of the weights, for the error message.

    Raises:
        OsmError: the tower would be far larger than the weights.
    """
    if state is None:
        return
    widths, depths = [0], [0]
    for option, value in options.items():
        numbers = [one for one in (value if isinstance(value, (list, tuple)) else [value]) if type(one) is int]
        if any(word in option for word in ("dim", "width", "channels", "features")):
            widths += numbers
        elif any(word in option for word in ("depth", "layers", "blocks")):
            depths.append(sum(numbers))
    least = max(1, max(depths)) * max(widths) ** 2
    there = sum(value.numel() for value in state.values())
    if max(depths) > len(state) or least > _MARGIN * there:
        raise OsmError(
            f"model.tower.options {shown(dict(options))}: a tower of this size does not match the weights of {name!r}, "
            f"which have {there} values in {len(state)} entries"
        )
