"""The towers that `scripts/tower_families.py` tests: small models of the families of timm and open_clip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TowerCase:
    """A tower with random weights, and its expected properties.

    Attributes:
        kind, name, strides, window: as in a model config. The weights have the native window size of the model.
        patch: expected patch size; 0 if the tower must be rejected.
        class_tokens: expected number of class tokens.
        cheap: whether every test run includes the tower.
        options: of the tower config, to build fewer layers than the model has.
    """

    kind: str
    name: str
    strides: tuple[int, ...]
    window: int
    patch: int
    class_tokens: int = 0
    cheap: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key of the case in the file of results."""
        return f"{self.kind}:{self.name}:{','.join(map(str, self.strides))}:{self.window}"


def _timm(name: str, window: int, patch: int, class_tokens: int = 0, cheap: bool = False, **options: Any) -> TowerCase:
    return TowerCase("timm", name, (), window, patch, class_tokens, cheap, options)


def _maps(name: str, window: int, *strides: int, refused: bool = False, cheap: bool = False) -> TowerCase:
    return TowerCase("timm", name, strides, window, 0 if refused else strides[0], 0, cheap)


def _clip(name: str, window: int, patch: int, class_tokens: int = 0, **options: Any) -> TowerCase:
    return TowerCase("open_clip", name, (), window, patch, class_tokens, False, options)


CASES = (
    # ViTs with one grid of tokens
    _timm("vit_tiny_patch16_224", 64, 16, 1, cheap=True),
    _timm("vit_small_patch14_reg4_dinov2", 56, 14, 1),
    _timm("vit_wee_patch16_reg1_gap_256", 64, 16, 0, cheap=True),
    _timm("vit_little_patch16_reg4_gap_256", 64, 16),
    _timm("vit_small_patch16_dinov3", 64, 16, 1),
    _timm("vit_base_patch16_siglip_224", 64, 16),
    _timm("vit_tiny_r_s16_p8_224", 64, 32, 1, cheap=True),
    _timm("vitamin_small_224", 64, 16, 0),
    _timm("vit_base_mci_224", 64, 16, 1),
    _timm("deit_tiny_distilled_patch16_224", 64, 16, 1),
    _timm("deit3_small_patch16_224", 64, 16, 1),
    _timm("beit_base_patch16_224", 64, 16, 1, depth=2),
    _timm("beitv2_base_patch16_224", 224, 16, 1, depth=2),
    _timm("eva02_tiny_patch14_224", 56, 14, 1),
    _timm("vit_medium_patch16_rope_reg1_gap_256", 64, 16),
    _timm("vit_relpos_small_patch16_224", 64, 16),
    _timm("flexivit_small", 64, 16, 1),
    _timm("naflexvit_base_patch16_gap", 64, 16, depth=2),
    _timm("tnt_s_legacy_patch16_224", 224, 16, 1),
    _timm("cait_xxs24_224", 224, 16, 1),
    _timm("mvitv2_tiny", 224, 32),
    _timm("tf_efficientnet_lite0", 64, 0),
    _timm("mixer_s32_224", 224, 0),
    # convolutional networks
    _maps("resnet18", 64, 8, 16, cheap=True),
    _maps("tf_efficientnet_lite0", 64, 16, 32),
    _maps("convnext_atto", 64, 8, 16),
    _maps("convnextv2_atto", 64, 8, 16),
    _maps("regnety_002", 64, 8, 16),
    _maps("mobilenetv4_conv_small", 64, 8, 16),
    _maps("efficientvit_b0", 64, 8, 16),
    _maps("fastvit_t8", 64, 8, 16),
    _maps("repvit_m0_9", 64, 8, 16),
    _maps("dla46_c", 64, 8, 16, cheap=True),
    _maps("hrnet_w18_small", 64, 8, 16),
    _maps("inception_v3", 64, 8, 16, refused=True),
    # hierarchical transformers
    _maps("swin_tiny_patch4_window7_224", 128, 8, 16),
    _maps("swinv2_tiny_window8_256", 128, 8, 16),
    _maps("swinv2_cr_tiny_224", 224, 8, 16),
    _maps("mambaout_femto", 64, 8, 16, cheap=True),
    _maps("csatv2", 64, 8, 16),
    _maps("hiera_tiny_224", 224, 8, 16),
    _maps("hiera_tiny_224", 128, 8, 16, refused=True),
    _maps("twins_svt_small", 64, 8, 16),
    _maps("levit_128s", 224, 16, 32),
    _maps("levit_128s", 128, 16, refused=True, cheap=True),
    _maps("visformer_tiny", 224, 8, 16),
    _maps("visformer_tiny", 64, 8, 16, refused=True),
    _maps("xcit_nano_12_p16_224", 64, 16, cheap=True),
    _maps("mvitv2_tiny", 224, 8, 16),
    _maps("efficientformer_l1", 224, 8, 16),
    _maps("efficientformerv2_s0", 224, 8, 16),
    _maps("efficientformerv2_s0", 128, 8, 16, refused=True),
    _maps("coatnet_nano_rw_224", 128, 8, 16),
    _maps("maxvit_rmlp_pico_rw_256", 128, 8, 16),
    _maps("gcvit_xxtiny", 224, 8, 16),
    _maps("gcvit_xxtiny", 128, 8, 16, refused=True),
    _maps("davit_tiny", 64, 8, 16),
    _maps("focalnet_tiny_srf", 64, 8, 16),
    _maps("pvt_v2_b0", 64, 8, 16),
    _maps("tiny_vit_5m_224", 224, 8, 16),
    _maps("sequencer2d_s", 224, 7, 14),
    _maps("vit_tiny_patch16_224", 64, 16),
    # open_clip
    _clip("ViT-S-16", 64, 16, 1),
    _clip("ViT-B-32", 64, 32, 1, layers=2),
    _clip("ViT-B-16-SigLIP", 128, 16),
    _clip("EVA02-B-16", 128, 16, 1),
    _clip("ViTamin-S", 128, 16),
    _clip("MobileCLIP-B", 128, 16, 1),
    _clip("PE-Core-T-16-384", 192, 16, 1),
    _clip("MobileCLIP-S1", 256, 0),
)
