"""SAMs small enough for a test: random weights, through their packages' public classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIDE = 64


def tiny_sam(seed: int = 0) -> Any:
    """A real `segment_anything` Sam of pictures of 64 pixels."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(seed)
    cells, width = SIDE // 16, 16
    encoder = ImageEncoderViT(
        img_size=SIDE, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_chans=width, global_attn_indexes=(0,)
    )
    prompts = PromptEncoder(
        embed_dim=width, image_embedding_size=(cells, cells), input_image_size=(SIDE, SIDE), mask_in_chans=4
    )
    decoder = MaskDecoder(
        transformer_dim=width,
        transformer=TwoWayTransformer(depth=1, embedding_dim=width, num_heads=2, mlp_dim=16),
        iou_head_depth=2,
        iou_head_hidden_dim=16,
    )
    return Sam(encoder, prompts, decoder).eval()


# What a random one says is not to be sorted out by how sure it is.
ANY = {"points_per_side": 4, "pred_iou_thresh": -100.0, "stability_score_thresh": 0.0, "min_mask_region_area": 20}


def tiny_sam2(folder: Path) -> Path:
    """A random Sam2Model with its processor, in a folder."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 4],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    decoder = {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 32,
        "iou_head_depth": 2,
    }
    prompts = {"hidden_size": 32, "image_size": 128, "patch_size": 16}
    torch.manual_seed(0)
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    Sam2Model(config).eval().save_pretrained(folder)
    images = Sam2ImageProcessor(size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32})
    Sam2Processor(images, target_size=128).save_pretrained(folder)
    return folder
