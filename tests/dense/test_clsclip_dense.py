"""ClsCLIP as a dense head, and ClsCLIP+ over boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twostage.clsclip.config import ClsClipError
from twostage.dense import _frame, _zoom
from twostage.dense.clsclip import ClsClipDense
from twostage.errors import TwostageError
from twostage.readout import vit
from twostage.types import Proposals, TextBank


def bank(classes: int = 3, dim: int = 128) -> TextBank:
    rows = torch.randn(classes, dim, generator=torch.Generator().manual_seed(1))
    return TextBank(functional.normalize(rows, dim=1), torch.arange(classes), classes)


def photo(height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw)


class Boxes:
    """Proposals: filled boxes (x0, y0, x1, y1), the same for every photo."""

    def __init__(self, *boxes: tuple[int, int, int, int]) -> None:
        self.boxes = boxes

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        made = []
        for image in images:
            masks = torch.zeros(len(self.boxes), *image.shape[1:], dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, self.boxes, strict=True):
                mask[y0:y1, x0:x1] = True
            made.append(Proposals(masks, torch.ones(len(self.boxes))))
        return made


def head(found: Any = None, **options: Any) -> ClsClipDense:
    tiny = ClsClipDense.tiny()
    config = replace(tiny.config, **options)
    return ClsClipDense(config, tiny.clip, lambda: tiny.network, lambda: found)


@pytest.mark.parametrize(("image_size", "grid"), [(64, (8, 8)), (0, (5, 8)), (48, (6, 6))])
def test_foreground_minus_background_of_every_class(image_size: int, grid: tuple[int, int]) -> None:
    own, text, image = head(image_size=image_size, chunk=2), bank(5), photo(40, 61)
    [found] = own.predict([image], text)
    assert found.logits.shape == (5, *grid)
    size = (8 * grid[0], 8 * grid[1])
    pixels = _frame.to_pixels(image, size, own.clip.mean, own.clip.std)[None]
    with torch.no_grad():
        for label in range(5):
            both = own.network.eval()(own.clip.visual, pixels, text.features[label : label + 1])[0]
            torch.testing.assert_close(found.logits[label], both[1] - both[0], rtol=1e-4, atol=1e-5)


def test_a_class_takes_its_best_synonym() -> None:
    own, text = head(), bank(3)
    both = TextBank(text.features, torch.tensor([0, 1, 0]), 2)
    [single], [merged] = own.predict([photo(40, 40)], text), own.predict([photo(40, 40)], both)
    assert torch.equal(merged.logits[1], single.logits[1])
    assert torch.equal(merged.logits[0], torch.maximum(single.logits[0], single.logits[2]))


def test_many_classes_share_the_blocks_before_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    own, ran = head(chunk=8), []
    blocks, run = vit.blocks(own.clip.visual), vit.run_block

    def counted(block: Any, tokens: Tensor, *rest: Any) -> Tensor:
        ran.append((blocks.index(block), len(tokens)))
        return run(block, tokens, *rest)

    monkeypatch.setattr(vit, "run_block", counted)
    own.predict([photo(40, 40)], bank(20))
    assert [entry for entry in ran if entry[0] == 0] == [(0, 1)]
    assert [count for number, count in ran if number == 5] == [8, 8, 4]
    assert max(count for _, count in ran) == 8, "memory follows `chunk`"


def sure(own: ClsClipDense, monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[int, ...]]:
    """Replaces the looks by `answer(number of the look, classes asked)`; gives the sizes that were seen."""
    seen: list[tuple[int, ...]] = []

    def look(pixels: Tensor, text: TextBank) -> Tensor:
        seen.append(tuple(pixels.shape[-2:]))
        made: Tensor = answer(len(seen) - 1, text.num_classes)
        return made

    monkeypatch.setattr(own, "_maps", look)
    return seen


def test_union_over_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 0 is found in the boxes it fills, class 1 fills none and keeps its look at the whole photo."""
    own = head(Boxes((8, 8, 24, 24), (16, 8, 32, 24), (40, 40, 44, 44)), zoom=True, padding=0.0, crop_size=32)
    whole = torch.full((2, 8, 8), -4.0)
    whole[0, 1:3, 1:4] = 4.0
    whole[1, 7, 7] = 3.0
    answers = {0: whole, 1: torch.full((1, 4, 4), 2.0), 2: torch.full((1, 4, 4), 5.0)}
    seen = sure(own, monkeypatch, lambda number, count: answers[number].clone())
    [found] = own.predict([photo(64, 64)], bank(2))
    assert seen == [(64, 64), (32, 32), (32, 32)], "the third box is no class's"
    assert found.logits.shape == (2, 32, 32)
    expected = torch.full((32, 32), -10.0)
    expected[4:12, 4:12] = 2.0
    expected[4:12, 8:16] = 5.0
    assert torch.equal(found.logits[0], expected)
    again = functional.interpolate(whole[None], (32, 32), mode="bilinear", align_corners=False)[0, 1]
    assert torch.equal(found.logits[1], again)


@pytest.mark.parametrize("found", [Boxes(), Boxes((0, 0, 4, 64))])
def test_without_a_usable_box_the_whole_photo_counts(found: Boxes) -> None:
    text, image = bank(3), photo(64, 64)
    [whole] = head().predict([image], text)
    [zoomed] = head(found, zoom=True, box_score=0.0).predict([image], text)
    expected = functional.interpolate(whole.logits[None], (32, 32), mode="bilinear", align_corners=False)[0]
    assert torch.equal(zoomed.logits, expected)


def test_only_the_best_classes_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    own = head(Boxes((0, 0, 32, 32)), zoom=True, max_classes=2, box_score=0.0)
    peaks = torch.tensor([1.0, 3.0, -1.0, 2.0])[:, None, None].expand(4, 8, 8)
    counts = []

    def answer(number: int, count: int) -> Tensor:
        counts.append(count)
        return peaks.clone() if number == 0 else torch.full((count, 2, 2), 7.0)

    sure(own, monkeypatch, answer)
    [found] = own.predict([photo(64, 64)], bank(4))
    assert counts == [4, 2]
    assert found.logits.flatten(1).amax(dim=1).tolist() == pytest.approx([-10.0, 7.0, -10.0, 7.0])


def test_boxes_grow_by_a_tenth_and_stay_inside() -> None:
    boxes = torch.tensor([[10, 20, 30, 60], [0, 0, 64, 64], [5, 5, 6, 6]])
    assert _zoom.grown(boxes, 0.1, (64, 64)).tolist() == [[9, 18, 31, 62], [0, 0, 64, 64], [4, 4, 7, 7]]
    assert torch.equal(_zoom.grown(boxes, 0.0, (64, 64)), boxes)


def test_which_class_looks_at_which_box() -> None:
    """Against the mean probability under each mask, pixel by pixel."""
    maps = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(4)) * 3
    masks = torch.rand(6, 16, 16, generator=torch.Generator().manual_seed(5)) > 0.7
    masks[3] = False
    plan = _zoom.plan(maps, Proposals(masks, torch.ones(6)), 3, 0.5, 1)
    rows = []
    for mask in masks:
        inside = [maps[:, y, x].sigmoid() for y in range(16) for x in range(16) if mask[y, x]]
        score = torch.stack(inside).mean(dim=0) if inside else torch.zeros(3)
        if bool((score >= 0.5).any()):
            rows.append((score >= 0.5).tolist())
    assert plan.asked.tolist() == rows
    assert len(rows) > 0


def test_without_training(caplog: pytest.LogCaptureFixture) -> None:
    own = head(injection="pinv")
    assert "no publication supports" in caplog.text
    [found] = own.predict([photo(40, 56)], bank(3))
    assert found.logits.shape == (3, 8, 8)
    assert float(found.logits.abs().max()) <= 100.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"injection": "pinf"}, "Did you mean 'pinv'"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"max_classes": 0}, "max_classes must be at least 1"),
        ({"padding": -0.1}, "padding must be at least 0"),
        ({"box_score": 1.5}, r"probability in \[0, 1\], got 1.5"),
        ({"zoom": True, "injection": "pinv"}, "choose injection learned, or zoom false"),
        ({"blocks": (5, 2)}, "first < end"),
        ({"zoom": True}, r"PROPOSALS\.NAME is empty"),
    ],
)
def test_options_that_make_no_head(options: dict[str, Any], told: str) -> None:
    with pytest.raises(TwostageError, match=told):
        head(**options)


def test_what_does_not_fit() -> None:
    own = head()
    with pytest.raises(ClsClipError, match="expected text features 128 wide, got 5"):
        own.predict([photo(32, 32)], bank(2, 5))
    with pytest.raises(TwostageError, match="image 0 should be RGB uint8"):
        own.predict([photo(32, 32).float()], bank())
    with torch.no_grad():
        own.network.maps[0].weight[0] = torch.nan
    with pytest.raises(ClsClipError, match="use an earlier checkpoint"):
        own.predict([photo(32, 32)], bank())
