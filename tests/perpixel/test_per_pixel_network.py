"""The per-pixel network: sizes, cosines, loss and start, against slow loops and counts from the paper."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from twostage.maskformer.config import MaskFormerError
from twostage.perpixel.config import PerPixelConfig, PerPixelError
from twostage.perpixel.network import PerPixelNetwork
from twostage.types import TextBank

SMALL = PerPixelConfig(
    backbone="small", small_widths=(8, 8, 16, 16), pixel_dim=16, mask_dim=16, embedding_dim=8
)


def make(**changes: object) -> PerPixelNetwork:
    torch.manual_seed(0)
    return PerPixelNetwork(dataclasses.replace(SMALL, **changes)).eval()


def bank(classes: int = 3, dim: int = 8, scale: float = 7.0) -> TextBank:
    rows = torch.randn(classes, dim, generator=torch.Generator().manual_seed(1))
    return TextBank(functional.normalize(rows, dim=1), torch.arange(classes), classes, scale)


def images(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        # stem, res2 to res5, pixel decoder as counted for the paper's MaskFormer; the last convolution is new
        ("r101c", 112_320 + 233_472 + 1_212_416 + 26_017_792 + 14_942_208 + 7_540_480 + 256 * 512 + 512),
    ],
)
def test_parameters_of_the_paper(backbone: str, count: int) -> None:
    with torch.device("meta"):
        network = PerPixelNetwork(PerPixelConfig(backbone=backbone))
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count
    assert network.predictor.weight.shape == (512, 256, 1, 1)
    assert network.stride == 4


def test_the_last_convolution_starts_as_msra_has_it() -> None:
    network = make(mask_dim=64, embedding_dim=512)
    assert float(network.predictor.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert not network.predictor.bias.any()


@pytest.mark.parametrize(
    ("stride", "step", "size", "grid"),
    [
        (4, 1, (32, 48), (8, 12)),
        (4, 1, (33, 47), (9, 12)),
        (2, 1, (21, 30), (11, 15)),
        (4, 32, (33, 47), (16, 16)),
        (4, 1, (1, 1), (1, 1)),
    ],
)
def test_one_cell_for_each_stride(
    stride: int, step: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Nothing is padded unless asked for: the last cells reach beyond the image."""
    network = make(small_stride=stride, size_divisibility=step)
    output = network(images(2, 3, *size))
    assert output.embeddings.shape == (2, 8, *grid)
    assert output.input_hw == (size if step == 1 else (64, 64))
    assert output.stride == stride
    assert network.logits(output, bank()).shape == (2, 3, *grid)


def test_r50_agrees_on_odd_sizes() -> None:
    torch.manual_seed(0)
    network = PerPixelNetwork(PerPixelConfig(backbone="r50", pixel_dim=16, mask_dim=16, embedding_dim=8))
    assert network(images(1, 3, 35, 50)).embeddings.shape == (1, 8, 9, 13)


def test_logits_are_a_hundred_cosines() -> None:
    network, text = make(), bank()
    output = network(images(1, 3, 8, 12))
    logits = network.logits(output, text)
    for y in range(2):
        for x in range(3):
            pixel = output.embeddings[0, :, y, x]
            for k in range(3):
                expected = 100 * torch.dot(pixel, text.features[k]) / pixel.norm()
                torch.testing.assert_close(logits[0, k, y, x], expected, rtol=1e-4, atol=1e-4)


def test_the_loss_by_hand() -> None:
    """Cosines per cell, enlarged four times and cut, then the mean over labelled pixels only."""
    network, text = make(), bank()
    output = network(images(2, 3, 10, 13))
    labels = torch.randint(-1, 3, (2, 10, 13), generator=torch.Generator().manual_seed(3))
    labels[0, :5] = -1
    loss = network.loss(output, text, labels)
    unit = functional.normalize(output.embeddings, dim=1)
    logits = 100 * torch.einsum("bdhw,kd->bkhw", unit, text.features)
    full = functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    terms = [
        -full[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b in range(2)
        for y in range(10)
        for x in range(13)
        if labels[b, y, x] >= 0
    ]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-5, atol=1e-5)


def test_padding_is_not_learned() -> None:
    """Labels of the image's own size, a batch padded to 32: the border takes no part."""
    network, text = make(size_divisibility=32), bank()
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    output = network(images(1, 3, 20, 20))
    full = output.enlarged(network.logits(output, text))
    assert full.shape == (1, 3, 32, 32)
    expected = functional.cross_entropy(full[..., :20, :20], labels)
    torch.testing.assert_close(network.loss(output, text, labels), expected)


def test_nothing_labelled_is_no_loss_but_a_gradient() -> None:
    network = make()
    loss = network.loss(network(images(1, 3, 16, 16)), bank(), torch.full((1, 16, 16), -1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_autocast_leaves_cosines_in_full_precision() -> None:
    network, text = make(), bank()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images(1, 3, 16, 16))
        logits = network.logits(output, text)
    assert output.embeddings.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    exact = 100 * functional.cosine_similarity(
        output.embeddings[0, :, 1, 2].float()[None].expand(3, -1), text.features
    )
    torch.testing.assert_close(logits[0, :, 1, 2], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"mask_kernel": 2}, PerPixelError, "expected 1 or 3, got 2"),
        ({"embedding_dim": 0}, PerPixelError, "embedding_dim: expected 1 or more, got 0"),
        ({"backbone": "smal"}, MaskFormerError, "Did you mean 'small'"),
    ],
)
def test_options_that_cannot_be(change: dict[str, object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make(**change)


def test_what_does_not_fit() -> None:
    network = make()
    output = network(images(1, 3, 8, 8))
    with pytest.raises(PerPixelError, match="embedding_dim is 8, the text has 5 columns"):
        network.logits(output, bank(dim=5))
    with pytest.raises(PerPixelError, match="label 3 among 3 classes"):
        network.loss(output, bank(), torch.full((1, 8, 8), 3))
    with pytest.raises(MaskFormerError, match="expected RGB images"):
        network(torch.zeros(1, 4, 8, 8))
