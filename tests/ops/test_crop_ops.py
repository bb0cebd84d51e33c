"""Crops against a bicubic resize written out tap by tap, and against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.ops.crops import Aspect, Fill, cut_region, make_canvas, resize_region

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def cubic(distance: float, a: float = -0.75) -> float:
    x = abs(distance)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def slow_bicubic(region: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) float64 -> (H, W, 3), sixteen taps a pixel, indices clamped to the region."""
    height, width = region.shape[:2]
    out = np.zeros((*size_hw, 3))
    for y in range(size_hw[0]):
        for x in range(size_hw[1]):
            v, u = (y + 0.5) * height / size_hw[0] - 0.5, (x + 0.5) * width / size_hw[1] - 0.5
            top, left = int(np.floor(v)), int(np.floor(u))
            for j in range(top - 1, top + 3):
                for i in range(left - 1, left + 3):
                    pixel = region[min(max(j, 0), height - 1), min(max(i, 0), width - 1)]
                    out[y, x] += cubic(v - j) * cubic(u - i) * pixel
    return out


def slow_crop(
    image: np.ndarray, alpha: np.ndarray, box: list[int], fill: Fill, size_hw: tuple[int, int]
) -> np.ndarray:
    """In the order of the paper's system: fill in 0..255, cut, normalise, resize."""
    colour = 255 * np.array(MEAN) if fill == "mean" else np.zeros(3)
    filled = image.astype(float) * alpha[..., None] + (1 - alpha[..., None]) * colour
    x0, y0, x1, y1 = box
    normal = (filled[y0:y1, x0:x1] / 255 - np.array(MEAN)) / np.array(STD)
    return slow_bicubic(normal, size_hw)


def scene(height: int = 40, width: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return image, torch.rand(height, width, generator=generator)


@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("box", [[5, 3, 47, 30], [0, 0, 60, 40], [7, 8, 8, 9], [10, 0, 12, 40]])
def test_checklist_08_crop_is_normalised_then_squashed_bicubic(
    fill: Fill, soft: bool, box: list[int]
) -> None:
    image, mask = scene()
    alpha = mask if soft else mask > 0.5
    canvas = make_canvas(image, MEAN, STD, fill)
    out = torch.full((3, 24, 24), torch.nan)
    resize_region(cut_region(canvas, alpha, box), out, canvas.fill)
    expected = slow_crop(image.permute(1, 2, 0).numpy(), alpha.double().numpy(), box, fill, (24, 24))
    np.testing.assert_allclose(out.permute(1, 2, 0).numpy(), expected, atol=2e-5)


def test_the_mean_fill_is_exactly_zero() -> None:
    image, _ = scene()
    canvas = make_canvas(image, MEAN, STD, "mean")
    assert canvas.fill is None
    region = cut_region(canvas, torch.zeros(40, 60, dtype=torch.bool), [2, 2, 30, 30])
    assert torch.equal(region.abs(), torch.zeros(3, 28, 28))


def test_pixels_outside_the_box_do_not_matter() -> None:
    image, mask = scene()
    changed = image.clone()
    changed[:, :10], changed[:, :, 50:] = 0, 255
    crops = []
    for picture in (image, changed):
        out = torch.empty(3, 16, 16)
        resize_region(cut_region(make_canvas(picture, MEAN, STD, "mean"), mask, [4, 10, 50, 33]), out, None)
        crops.append(out)
    assert torch.equal(*crops)


def test_antialias_is_pillows_bicubic() -> None:
    region = torch.randn(3, 67, 91, generator=torch.Generator().manual_seed(1))
    out = torch.empty(3, 24, 24)
    resize_region(region, out, None, antialias=True)
    for channel in range(3):
        picture = Image.fromarray(region[channel].numpy()).resize((24, 24), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(out[channel].numpy(), np.asarray(picture), atol=1e-5)


@pytest.mark.parametrize(("shape", "inner"), [((40, 20), (24, 12)), ((10, 60), (4, 24)), ((1, 100), (1, 24))])
def test_padding_keeps_the_proportions(shape: tuple[int, int], inner: tuple[int, int]) -> None:
    region = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    fill = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    out = torch.empty(3, 24, 24)
    aspect: Aspect = "pad"
    resize_region(region, out, fill, aspect)
    top, left = (24 - inner[0]) // 2, (24 - inner[1]) // 2
    expected = slow_bicubic(region.double().permute(1, 2, 0).numpy(), inner)
    inside = out[:, top : top + inner[0], left : left + inner[1]]
    np.testing.assert_allclose(inside.permute(1, 2, 0).numpy(), expected, atol=2e-5)
    rest = torch.ones(24, 24, dtype=torch.bool)
    rest[top : top + inner[0], left : left + inner[1]] = False
    assert torch.equal(out[:, rest], fill[:, 0].expand(3, int(rest.sum())))


def test_padding_without_a_fill_colour_is_zero() -> None:
    out = torch.full((3, 8, 8), torch.nan)
    resize_region(torch.ones(3, 4, 8), out, None, "pad")
    assert out[:, :2].abs().max() == 0
    assert out[:, 2:6].min() > 0.999
