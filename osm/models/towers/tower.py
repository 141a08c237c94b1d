"""Frozen vision towers: anything that turns windows into patch tokens, and a class token where it has one.

Shapes: W windows of side w, p patch (stride), P = 1 or 0 class tokens, C width.

Towers of timm and open_clip are built in `osm.models.towers.timm_tower` and `osm.models.towers.open_clip_tower`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osm.errors import OsmError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Tower(nn.Module):
    """Interface: `forward(windows (W, 3, w, w)) -> (class tokens (W, P, C), patches (W, (w/p)^2, C))`.

    Attributes:
        patch, width: p and C. class_tokens: P.
        mean, std: of the RGB input in 0..1, (x - mean) / std.
        window: the only window size the tower takes, or None for any multiple of p.
        tried: the window sizes at which `check_tokens` has run the tower.
    """

    patch: int
    width: int
    class_tokens: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    window: int | None = None
    tried: frozenset[int] = frozenset()

    def check_window(self, window: int) -> None:
        """Raises OsmError where windows of this side do not fit the tower."""
        if self.window is not None and window != self.window:
            raise OsmError(f"--sliding_window_size {window}: this tower takes windows of {self.window} pixels")


class InstructBlipTower(Tower):
    """InstructBLIP's ViT at its native size, final layer norm included."""

    def __init__(self, vision_model: nn.Module) -> None:
        super().__init__()
        self.vision_model = vision_model
        config = vision_model.config
        self.patch, self.width, self.class_tokens = config.patch_size, config.hidden_size, 1
        self.window = config.image_size

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vision_model(pixel_values=windows).last_hidden_state
        return tokens[:, :1], tokens[:, 1:]


class RandomTower(Tower):
    """A tiny tower of random values, drawn from a seed: for tests, and for trying a data pipeline."""

    def __init__(self, patch: int, width: int, class_token: bool, seed: int) -> None:
        super().__init__()
        self.patch, self.width, self.class_tokens = patch, width, int(class_token)
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Conv2d(3, width, patch, patch)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (3 * patch * patch) ** -0.5)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.embedding(windows).flatten(2).transpose(1, 2)
        patches = F.layer_norm(patches, patches.shape[-1:])
        return patches.mean(1, keepdim=True)[:, : self.class_tokens], patches


# Above this many parameters a tower is tried on the meta device, which computes shapes alone.
_LARGE = 100_000_000


def check_tokens(tower: Tower, window: int, about: str) -> None:
    """Runs one window of zeros through a tower, and compares what comes out with what the tower promises.

    Torch's random state, the tower's mode and its weights stay as they are.

    Args:
        about: the sentence's subject in errors: which model, with which windows.

    Raises:
        OsmError: the tower does not run on such windows, or its tokens are not (1, P, C) and (1, (w/p)^2, C).
    """
    if window in tower.tried:
        return
    training = tower.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            prefix, patches = _try(tower.eval(), window)
    except OsmError as error:
        raise OsmError(f"{about}: {error}") from None
    except Exception as error:  # a model that such windows do not suit raises what its sums happen to cause
        raise OsmError(f"{about}: the model does not run ({said(error)})") from None
    finally:
        tower.train(training)
    expected = (1, (window // tower.patch) ** 2, tower.width)
    if tuple(patches.shape) != expected:
        raise OsmError(
            f"{about}: it gives patches of shape {tuple(patches.shape)}, where {expected} are promised "
            f"(one for each cell of {tower.patch} pixels)"
        )
    expected = (1, tower.class_tokens, tower.width)
    if tuple(prefix.shape) != expected:
        raise OsmError(f"{about}: it gives class tokens of shape {tuple(prefix.shape)}, where {expected} are promised")
    tower.tried |= {window}


def said(error: Exception) -> str:
    """What a library's error says, on one line of bounded length."""
    return " ".join(str(error).split())[:300] or repr(error)[:300]


def _try(tower: Tower, window: int) -> tuple[Tensor, Tensor]:
    tensors = [*tower.parameters(), *tower.buffers()]
    like = next(tower.parameters(), torch.zeros(0))
    shape = (1, 3, window, window)
    if sum(parameter.numel() for parameter in tower.parameters()) > _LARGE:
        # A copy, so that what a model caches in its forward is not left on the meta device.
        meta: dict[int, object] = {
            id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
        }
        try:
            return copy.deepcopy(tower, meta)(torch.zeros(shape, dtype=like.dtype, device="meta"))
        except Exception:  # not every model can: some hold plain tensors, some read values
            pass
    return tower(torch.zeros(shape, dtype=like.dtype, device=like.device))


def check_complete(name: str, lacking: Sequence[str]) -> None:
    """Raises OsmError where a file lacks entries of a tower."""
    if lacking:
        raise OsmError(f"weights for {name} lack {len(lacking)} entries, the first is {lacking[0]!r}")
