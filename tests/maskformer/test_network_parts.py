"""Backbones, pixel decoder, positions and attention, each against something independent."""

import math

import pytest
import torch
from torch import Tensor, nn

from twostage.maskformer.backbone import build_backbone
from twostage.maskformer.config import MaskFormerConfig, MaskFormerError
from twostage.maskformer.heads import pool_under_masks
from twostage.maskformer.network import MaskFormer
from twostage.maskformer.pixel_decoder import PixelDecoder
from twostage.maskformer.position import sine_positions
from twostage.maskformer.resnet import VARIANTS, ConvNorm, ResNet
from twostage.maskformer.small import SmallBackbone
from twostage.maskformer.transformer import Attention, DecoderLayer, Memory, open_where_positive


def test_positions_by_the_formula() -> None:
    height, width, channels = 3, 5, 16
    got = sine_positions(height, width, channels)
    for c in range(channels):
        index = c % 8
        for y in range(height):
            for x in range(width):
                place = (y + 1) / (height + 1e-6) if c < 8 else (x + 1) / (width + 1e-6)
                angle = place * 2 * math.pi / 10000 ** (2 * (index // 2) / 8)
                wanted = math.sin(angle) if index % 2 == 0 else math.cos(angle)
                assert got[c, y, x].item() == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(MaskFormerError, match="multiple of 4"):
        sine_positions(2, 2, 6)


def test_parameters_as_published() -> None:
    """Trainable parameters of the published networks; R101c split into its parts."""

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(MaskFormer(MaskFormerConfig(backbone="r50"))) == 42_004_416
    network = MaskFormer(MaskFormerConfig(backbone="r101c"))
    assert count(network) == 61_067_712
    body = network.backbone
    assert [count(part) for part in (body.stem, body.res2, body.res3, body.res4, body.res5)] == [
        112_320,
        233_472,
        1_212_416,
        26_017_792,
        14_942_208,
    ]
    assert count(network.pixel_decoder) == 7_540_480
    heads = (network.decoder, network.query_embed, network.memory_projections, network.mask_embed)
    assert count(*heads, network.class_head.perceptron) == 11_008_512
    assert network.class_head.no_object.numel() == 512
    convolutions = [m for m in body.res5.modules() if isinstance(m, ConvNorm) and m.kernel_size == (3, 3)]
    assert [(m.stride[0], m.dilation[0], m.padding[0]) for m in convolutions] == [
        (2, 1, 1),
        (1, 2, 2),
        (1, 4, 4),
    ]


def test_resnet50_equals_torchvision() -> None:
    """With the same weights and frozen statistics, against torchvision's independent implementation."""
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet50(weights=None).eval().double()
    ours = ResNet(VARIANTS["r50"]).double()
    draw = torch.Generator().manual_seed(0)
    for name, value in theirs.state_dict().items():
        if name.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias")):
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    table = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "downsample.0": "shortcut"}
    norms = {"bn1": "conv1", "bn2": "conv2", "bn3": "conv3", "downsample.1": "shortcut"}
    renamed = {}
    for name, value in theirs.state_dict().items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        stage, _, rest = name.partition(".")
        head, kind = (name if not stage.startswith("layer") else rest.split(".", 1)[1]).rsplit(".", 1)
        place = "stem" if not stage.startswith("layer") else f"res{int(stage[5:]) + 1}.{rest.split('.')[0]}"
        renamed[
            f"{place}.{table[head]}.{kind}" if head in table else f"{place}.{norms[head]}.norm.{kind}"
        ] = value
    ours.load_state_dict(renamed, strict=True)
    x = torch.randn(1, 3, 64, 96, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        wanted = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage, got in zip(
            (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), ours(x), strict=True
        ):
            wanted = stage(wanted)
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("name", "strides"), [("r101c", (4, 8, 16, 32)), ("small", (4, 8, 16, 32)), ("small2", (2, 4, 8, 16))]
)
def test_backbone_levels(name: str, strides: tuple[int, ...]) -> None:
    body = SmallBackbone(stride=2) if name == "small2" else build_backbone(MaskFormerConfig(backbone=name))
    assert tuple(body.strides) == strides
    with torch.no_grad():
        levels = body(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(body.channels, strides, strict=True)
    ]


def test_small_backbone_is_small() -> None:
    assert 0.8e6 < sum(p.numel() for p in SmallBackbone().parameters()) < 1.3e6
    with pytest.raises(MaskFormerError, match="stride 2 or 4"):
        SmallBackbone(stride=3)


def test_pixel_decoder_by_hand() -> None:
    """Laterals without activation, nearest enlargement, ReLU after the 3x3, only a bias at the end."""
    torch.manual_seed(0)
    decoder = PixelDecoder((4, 6), pixel_dim=256, mask_dim=5)
    fine, coarse = torch.randn(1, 4, 6, 8), torch.randn(1, 6, 3, 4)
    features, pyramid = decoder([fine, coarse])

    def normed(part: nn.Module, x: Tensor) -> Tensor:
        y = nn.functional.conv2d(x, part.conv.weight, padding=part.conv.weight.shape[-1] // 2)
        return nn.functional.group_norm(y, 32, part.norm.weight, part.norm.bias, eps=1e-5)

    top = normed(decoder.outputs[1], coarse).relu()
    merged = normed(decoder.laterals[0], fine) + top.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    below = normed(decoder.outputs[0], merged).relu()
    torch.testing.assert_close(pyramid, [below, top])
    last = decoder.mask_features
    torch.testing.assert_close(features, nn.functional.conv2d(below, last.weight, last.bias, padding=1))


def test_decoder_layer_equals_torchs() -> None:
    """torch's own post-norm decoder layer computes the same when no positions are added."""
    torch.manual_seed(0)
    ours = DecoderLayer(16, 4, 32, dropout=0.0)
    theirs = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    theirs.load_state_dict(
        {k.replace("cross_attn", "multihead_attn"): v for k, v in ours.state_dict().items()}
    )
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    got = ours(x, torch.zeros(5, 16), Memory(memory, torch.zeros(7, 16)), None)
    torch.testing.assert_close(got, theirs(x, memory), rtol=1e-4, atol=1e-5)


def test_attention_looks_only_where_allowed() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, dropout=0.0)
    query, memory = torch.randn(1, 2, 8), torch.randn(1, 5, 8)
    allowed = torch.tensor([[[1, 0, 1, 0, 0], [1, 1, 1, 1, 1]]]).bool()
    got = attention(query, memory, memory, allowed)
    alone = attention(query[:, :1], memory[:, [0, 2]], memory[:, [0, 2]])
    torch.testing.assert_close(got[:, 0], alone[:, 0])
    torch.testing.assert_close(got[:, 1], attention(query, memory, memory)[:, 1])


def test_empty_masks_open_everywhere() -> None:
    logits = torch.tensor([[-1.0, 2.0, 0.0], [-1.0, -2.0, -3.0]])
    assert open_where_positive(logits).tolist() == [[False, True, False], [True, True, True]]


def test_pooling_under_masks() -> None:
    features = torch.randn(1, 3, 2, 2)
    logits = torch.full((1, 1, 2, 2, 2), -100.0)
    logits[0, 0, 0, 0] = 100.0  # the first query holds the upper row, the second nothing
    pooled = pool_under_masks(logits, features)
    torch.testing.assert_close(pooled[0, 0, 0], features[0, :, 0].mean(dim=1))
    assert pooled[0, 0, 1].abs().max() < 1e-6


@pytest.mark.parametrize("first_open", [0, 600, 1023])
def test_attention_with_long_closed_stretches(first_open: int) -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2, 0.0).eval()
    query, memory = torch.randn(1, 3, 16), torch.randn(1, 1024, 16)
    allowed = torch.zeros(1, 3, 1024, dtype=torch.bool)
    allowed[:, :, first_open:] = True
    with torch.no_grad():
        found = attention(query, memory, memory, allowed)
        alone = attention(query, memory[:, first_open:], memory[:, first_open:])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
