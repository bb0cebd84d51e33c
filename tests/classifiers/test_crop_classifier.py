"""The crop classifier around a stand-in for CLIP: which crop goes where, in what chunks, how normalised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.classifiers.crops import CropClassifier
from twostage.interfaces import ImageTextModel, RegionClassifier
from twostage.types import Proposals, TextBank


class Recorder:
    """An image model that keeps what it was shown; its feature is the pixels themselves, pooled."""

    image_size = (16, 16)
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    dim = 12

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.batches.append(pixels.clone())
        return F.normalize(F.adaptive_avg_pool2d(pixels, (2, 2)).flatten(1) + 0.1, dim=1)


def scene(count: int, height: int = 30, width: int = 44, seed: int = 0) -> tuple[Tensor, Proposals]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(count, height, width)
    for mask in masks:
        y, x = (
            int(torch.randint(0, height - 8, (1,), generator=generator)),
            int(torch.randint(0, width - 8, (1,), generator=generator)),
        )
        mask[y : y + 7, x : x + 5] = torch.rand(7, 5, generator=generator) * 0.4 + 0.55
    return image, Proposals(masks, torch.ones(count))


def bank(dim: int = 12, classes: int = 5) -> TextBank:
    rows = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    return TextBank(F.normalize(rows, dim=1), torch.arange(classes), classes)


def classifier(**options: Any) -> tuple[CropClassifier, Recorder]:
    model = Recorder()
    return CropClassifier(CropClassifier.Config(**options), model), model


def one_by_one(image: Tensor, mask: Tensor, model: Recorder, threshold: float = 0.5) -> Tensor:
    """The crop as its definition reads: the whole picture filled and normalised, then cut, then resized."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    binary = mask > threshold
    filled = torch.where(binary, image.float(), 255 * mean)
    ys, xs = binary.nonzero(as_tuple=True)
    cut = ((filled / 255 - mean) / std)[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return F.interpolate(cut[None], (16, 16), mode="bicubic", align_corners=False)[0]


def test_roles_are_filled() -> None:
    assert isinstance(CropClassifier.tiny(), RegionClassifier)
    assert isinstance(CropClassifier.tiny().clip, ImageTextModel)


def test_every_mask_gets_its_own_crop_and_row() -> None:
    image, proposals = scene(5)
    made, model = classifier(chunk=2)
    text = bank()
    scores = made.classify([image], [proposals], text)[0]
    crops = torch.stack([one_by_one(image, mask, model) for mask in proposals.masks])
    torch.testing.assert_close(torch.cat(model.batches), crops, rtol=1e-5, atol=2e-6)
    expected = 100 * Recorder().encode_images(crops) @ text.features.T
    torch.testing.assert_close(scores.logits, expected, rtol=1e-5, atol=1e-3)


def test_checklist_05_stage_two_softmax_has_no_extra_column() -> None:
    image, proposals = scene(3)
    scores = classifier()[0].classify([image], [proposals], bank())[0]
    assert scores.no_object is None
    torch.testing.assert_close(scores.probs().sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_chunks_are_bounded_and_run_across_images(chunk: int) -> None:
    scenes = [scene(4, seed=1), scene(0, seed=2), scene(5, 20, 33, seed=3)]
    images, proposals = [s[0] for s in scenes], [s[1] for s in scenes]
    made, model = classifier(chunk=chunk)
    together = made.classify(images, proposals, bank())
    sizes = [len(batch) for batch in model.batches]
    assert sum(sizes) == 9
    assert all(size == chunk for size in sizes[:-1])
    assert sizes[-1] <= chunk
    for image, found, scores in zip(images, proposals, together, strict=True):
        alone = classifier(chunk=7)[0].classify([image], [found], bank())[0]
        torch.testing.assert_close(alone.logits, scores.logits)
        assert torch.equal(alone.valid, scores.valid)


def test_empty_masks_keep_their_rows_and_cost_nothing() -> None:
    image, proposals = scene(5)
    proposals.masks[1] = 0
    proposals.masks[4] = 0.5  # not strictly above the threshold
    made, model = classifier()
    scores = made.classify([image], [proposals], bank())[0]
    assert scores.valid.tolist() == [True, False, True, True, False]
    assert torch.equal(scores.logits[[1, 4]], torch.zeros(2, 5))
    assert len(torch.cat(model.batches)) == 3


def test_nothing_to_name() -> None:
    image, proposals = scene(2)
    proposals.masks.zero_()
    made, model = classifier()
    assert not made.classify([image], [proposals], bank())[0].valid.any()
    assert made.classify([], [], bank()) == []
    assert len(made.classify([image], [proposals[:0]], bank())[0]) == 0
    assert model.batches == []


def test_a_single_pixel_image() -> None:
    image = torch.full((3, 1, 1), 200, dtype=torch.uint8)
    made, model = classifier()
    made.classify([image], [Proposals(torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1))], bank())
    colour = (200 / 255 - torch.tensor(model.mean)) / torch.tensor(model.std)
    torch.testing.assert_close(model.batches[0][0], colour.view(3, 1, 1).expand(3, 16, 16))


def test_hard_masks_equal_soft_ones_at_the_threshold() -> None:
    image, proposals = scene(3)
    hard = Proposals(proposals.masks > 0.6, proposals.scores)
    soft = classifier(mask_threshold=0.6)[0].classify([image], [proposals], bank())[0]
    assert torch.equal(classifier()[0].classify([image], [hard], bank())[0].logits, soft.logits)


def test_matting_blends_by_the_soft_mask() -> None:
    image, proposals = scene(1)
    made, model = classifier(matting=True)
    made.classify([image], [proposals], bank())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    mask = proposals.masks[0]
    blended = (mask * image + (1 - mask) * 255 * mean) / 255
    ys, xs = (mask > 0.5).nonzero(as_tuple=True)
    cut = ((blended - mean) / std)[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    crop = F.interpolate(cut[None], (16, 16), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(model.batches[0][0], crop, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "antialias"},
        {"aspect": "pad"},
        {"mask_fill": "zero"},
        {"mask_expand_ratio": 1.5},
        {"image_size": 8},
    ],
)
def test_each_option_reaches_the_crops(options: dict[str, Any]) -> None:
    image, proposals = scene(2, 60, 90)
    proposals.masks[0, 5:50, 3:80] = 0.9
    proposals.masks[0, 20:30, 30:40] = 0
    plain, changed = classifier(), classifier(**options)
    for made, _ in (plain, changed):
        made.classify([image], [proposals], bank())
    before, after = plain[1].batches[0], changed[1].batches[0]
    edge = options.get("image_size", 16)
    assert after.shape == (2, 3, edge, edge)
    assert after.shape != before.shape or (after - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "papr"}, "Did you mean 'paper'"),
        ({"mask_fill": "maen"}, "Did you mean 'mean'"),
        ({"aspect": "keep"}, "aspect 'keep'"),
        ({"mask_expand_ratio": 0.0}, "above 0"),
        ({"chunk": -1}, "chunk must not be negative"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CropClassifier.Config(**options)


def test_inputs_that_do_not_fit_are_refused() -> None:
    image, proposals = scene(2)
    made, _ = classifier()
    with pytest.raises(ValueError, match="one Proposals an image"):
        made.classify([image], [], bank())
    with pytest.raises(ValueError, match="RGB uint8"):
        made.classify([image.float()], [proposals], bank())
    with pytest.raises(ValueError, match="resize the masks"):
        made.classify([image[:, :-1]], [proposals], bank())
