"""A network made ready to be asked only, against itself before."""

from __future__ import annotations

import copy

import pytest
import torch

from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.lean import make_lean
from twostage.maskformer.network import MaskFormer
from twostage.maskformer.resnet import ConvNorm, FrozenBatchNorm

SMALL = {"pixel_dim": 32, "mask_dim": 32, "hidden_dim": 32, "num_queries": 6, "decoder_layers": 2}
SMALL |= {"num_heads": 2, "feedforward_dim": 32, "embedding_dim": 8, "class_hidden_dim": 16}


def network(backbone: str, **options: object) -> MaskFormer:
    torch.manual_seed(0)
    made = MaskFormer(MaskFormerConfig(backbone=backbone, **SMALL, **options)).eval()
    for part in made.modules():
        if isinstance(part, FrozenBatchNorm):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
            part.weight.uniform_(0.2, 0.6)
            part.bias.normal_(std=0.1)
    return made


@pytest.mark.parametrize("backbone", ["r50", "small"])
@torch.no_grad()
def test_folded_norms_change_nothing(backbone: str) -> None:
    plain = network(backbone)
    photo = torch.randint(0, 256, (1, 3, 70, 50), dtype=torch.uint8)
    before = plain(photo, last_only=True)
    lean = make_lean(copy.deepcopy(plain))
    assert not any(isinstance(part, (ConvNorm, FrozenBatchNorm)) for part in lean.modules())
    after = lean(photo, last_only=True)
    assert torch.allclose(before.mask_logits, after.mask_logits, rtol=1e-3, atol=1e-4)
    assert torch.allclose(before.embeddings, after.embeddings, rtol=1e-3, atol=1e-4)
    assert before.padded_hw == after.padded_hw


@pytest.mark.parametrize(
    "options", [{}, {"memory": "multi", "masked_attention": True, "pooled_class": True}], ids=str
)
@torch.no_grad()
def test_half_of_the_bits_in_the_convolutions_only(options: dict) -> None:
    plain = network("small", **options)
    lean = make_lean(copy.deepcopy(plain), torch.bfloat16)
    photo = torch.randint(0, 256, (1, 3, 70, 50), dtype=torch.uint8)
    before, after = plain(photo, last_only=True), lean(photo, last_only=True)
    for name in ("mask_logits", "embeddings", "mask_features"):
        one, other = getattr(before, name), getattr(after, name)
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert float((one - other).norm() / one.norm()) < 0.05
    kinds = {name.split(".")[0]: value.dtype for name, value in lean.named_parameters()}
    assert kinds["backbone"] == kinds["pixel_decoder"] == torch.bfloat16
    assert kinds["decoder"] == kinds["mask_embed"] == kinds["class_head"] == torch.float32
