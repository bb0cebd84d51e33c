"""Networks of the hub so small that a test can afford them, made from transformers' own configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="the extra twostage[hf] is not installed")
T = transformers


def _swin() -> object:
    return T.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


WIDTHS = {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1, "num_attention_heads": 2}


def mask2former(queries: int = 6) -> nn.Module:
    config = T.Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        decoder_layers=2,
        num_queries=queries,
        num_labels=3,
        **WIDTHS,
    )
    return T.Mask2FormerForUniversalSegmentation(config)


def maskformer() -> nn.Module:
    decoder = T.DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
    )
    config = T.MaskFormerConfig(
        backbone_config=_swin(),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=3,
        decoder_config=decoder,
    )
    return T.MaskFormerForInstanceSegmentation(config)


def oneformer() -> nn.Module:
    config = T.OneFormerConfig(
        backbone_config=_swin(),
        num_queries=7,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        decoder_layers=2,
        query_dec_layers=1,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=64,
        num_labels=3,
        **WIDTHS,
    )
    return T.OneFormerForUniversalSegmentation(config)


EOMT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "num_blocks": 1,
    "num_queries": 4,
    "num_register_tokens": 1,
    "num_labels": 3,
}


def eomt() -> nn.Module:
    return T.EomtForUniversalSegmentation(T.EomtConfig(mlp_ratio=2, **EOMT))


def eomt_dinov3() -> nn.Module:
    config = T.EomtDinov3Config(intermediate_size=16, **EOMT)
    return T.EomtDinov3ForUniversalSegmentation(config)


DECODER = {
    "hidden_size": 32,
    "mlp_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
    "iou_head_depth": 2,
}
PROMPTS = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}


def sam() -> nn.Module:
    vision = T.SamVisionConfig(
        hidden_size=16,
        output_channels=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[0],
        num_pos_feats=16,
        mlp_dim=16,
    )
    return T.SamModel(
        T.SamConfig(
            vision_config=vision,
            prompt_encoder_config=T.SamPromptEncoderConfig(**PROMPTS),
            mask_decoder_config=T.SamMaskDecoderConfig(**DECODER),
        )
    )


def _hiera() -> object:
    backbone = T.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
    )
    return T.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )


def sam2() -> nn.Module:
    return T.Sam2Model(
        T.Sam2Config(
            vision_config=_hiera(),
            prompt_encoder_config=T.Sam2PromptEncoderConfig(**PROMPTS),
            mask_decoder_config=T.Sam2MaskDecoderConfig(**DECODER),
        )
    )


def sam2_video() -> nn.Module:
    """The tracker, as SAM 2 is published."""
    return T.Sam2VideoModel(
        T.Sam2VideoConfig(
            vision_config=_hiera(),
            prompt_encoder_config=PROMPTS,
            mask_decoder_config=DECODER,
            image_size=64,
            memory_attention_hidden_size=32,
            memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=16,
            memory_attention_rope_feat_sizes=[4, 4],
            memory_encoder_hidden_size=32,
            memory_encoder_output_channels=16,
            mask_downsampler_embed_dim=32,
            memory_fuser_embed_dim=32,
            memory_fuser_num_layers=1,
        )
    )


OF_QUERIES: dict[str, Callable[[], nn.Module]] = {
    "mask2former": mask2former,
    "maskformer": maskformer,
    "oneformer": oneformer,
    "eomt": eomt,
    "eomt_dinov3": eomt_dinov3,
}
OF_POINTS: dict[str, Callable[[], nn.Module]] = {"sam": sam, "sam2": sam2, "sam2_video": sam2_video}


def saved(make: Callable[[], nn.Module], folder: Path) -> Path:
    """A network of random weights that differ enough for masks to differ, as its maker would publish it."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1 / weight[0].numel() ** 0.5)
    network.save_pretrained(folder)  # type: ignore[operator]
    return folder
