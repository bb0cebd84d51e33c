"""Overlays, panels and mosaics: colours, orientation, sizes and words, looked up in the pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import ImageFont

from twostage.data.errors import LabelError
from twostage.types import Proposals
from twostage.visualize import class_colours, lettering, overlay, proposal_mosaic, side_by_side
from twostage.visualize.legend import Entry, key_of, with_legend
from twostage.visualize.overlay import borders
from twostage.visualize.palette import VOID_COLOUR, picture_colours
from twostage.vocabulary import Vocabulary

WORDS = ("cat", "sofa", "other")
HARD_NAMES = (
    "猫と犬",
    "مرحبا",
    "line\nbreak\tand \x00 more",
    "🐈" * 30,
    "e\u0301\u202e",
    "x" * 500,
    "\ud800",
)


def photo(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).byte()


def corner_labels(height: int, width: int) -> np.ndarray:
    """ "cat" top left, "sofa" top right, "other" bottom right, nothing bottom left."""
    labels = np.full((height, width), -1, np.int32)
    labels[: height // 2, : width // 2] = 0
    labels[: height // 2, width // 2 :] = 1
    labels[height // 2 :, width // 2 :] = 2
    return labels


def lab(colours: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((colours.astype(np.float32) / 255)[None], cv2.COLOR_RGB2LAB)[0]


def test_pixels_are_the_blend_of_photo_and_class_colour_in_the_right_corner() -> None:
    image = photo(600, 800)
    picture = overlay(image, torch.from_numpy(corner_labels(600, 800)), WORDS, alpha=0.4, legend=False)
    assert picture.shape == (600, 800, 3)
    assert picture.dtype == np.uint8
    colours = class_colours(WORDS).astype(np.float64)
    for (y, x), position in {(100, 150): 0, (100, 650): 1, (500, 650): 2}.items():
        expected = 0.6 * image[:, y, x].numpy() + 0.4 * colours[position]
        np.testing.assert_allclose(picture[y, x], expected, atol=0.51)
    grey = 0.6 * image[:, 500, 150].float().mean().item() + 0.4 * VOID_COLOUR[0]
    np.testing.assert_allclose(picture[500, 150], grey, atol=0.51)


def test_classes_are_parted_by_light_lines() -> None:
    picture = overlay(torch.zeros(3, 600, 800).byte(), corner_labels(600, 800), WORDS, legend=False)
    assert (picture[100, 400] > 180).all()
    assert (picture[300, 600] > 180).all()
    edge = borders(np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]], np.int32), 1)
    assert edge.tolist() == [[False, False, True], [False, False, True], [True, True, True]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (512, 512)),
        ((48, 64), (384, 512)),
        ((64, 9), (512, 72)),
        ((512, 300), (512, 300)),
        ((2048, 7), (2048, 7)),
        ((3000, 4096), (1500, 2048)),
        ((1, 5000), (1, 2048)),
    ],
)
def test_small_photos_grow_by_whole_factors_and_huge_ones_shrink(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    labels = np.zeros(size, np.int64)
    plain = overlay(photo(*size), labels, WORDS, legend=False)
    assert plain.shape == (*expected, 3)
    full = overlay(photo(*size), labels, WORDS)
    assert full.shape[0] >= expected[0]
    assert full.shape[1] >= expected[1]
    assert full.size > plain.size
    assert np.array_equal(full[: expected[0], : expected[1]], plain)


def test_enlarging_keeps_label_pixels_whole() -> None:
    labels = np.array([[0, 1], [2, -1]], np.int32)
    picture = overlay(torch.zeros(3, 2, 2).byte(), labels, WORDS, alpha=1.0, legend=False)
    colours = class_colours(WORDS)
    assert np.array_equal(picture[100, 100], colours[0])
    assert np.array_equal(picture[100, 400], colours[1])
    assert np.array_equal(picture[400, 100], colours[2])
    assert tuple(picture[400, 400]) == VOID_COLOUR


def test_legend_shows_the_classes_present_and_no_others() -> None:
    labels = corner_labels(600, 800)
    picture = overlay(photo(600, 800), labels, WORDS)
    legend = picture[600:].reshape(-1, 3)
    for colour in (*class_colours(WORDS), VOID_COLOUR):
        assert (legend == colour).all(axis=1).sum() > 200
    labels[labels == 1] = 0
    legend = overlay(photo(600, 800), labels, WORDS)[600:].reshape(-1, 3)
    assert (legend == class_colours(WORDS)[1]).all(axis=1).sum() == 0


def test_key_is_sorted_by_area_with_no_class_last() -> None:
    labels = np.array([[-1, -1, -1, -1, -1, 0, 1, 1, 1, 0]])
    _, entries = key_of([labels], WORDS)
    assert [(entry.name, round(entry.share), entry.amount) for entry in entries] == [
        ("sofa", 30, "30.0 %"),
        ("cat", 20, "20.0 %"),
        ("(no class)", 50, "50.0 %"),
    ]
    assert Entry("x", VOID_COLOUR, 0.04).amount == "<0.1 %"


def test_long_legends_are_cut_and_none_leaves_the_picture_alone() -> None:
    many = [f"class {number}" for number in range(120)]
    labels = np.arange(120 * 40).reshape(60, 80) % 120
    assert overlay(photo(60, 80), labels, many).shape[0] < 1500
    plain = np.zeros((5, 5, 3), np.uint8)
    assert with_legend(plain, []) is plain


@pytest.mark.parametrize("name", HARD_NAMES)
@pytest.mark.parametrize("only_the_default_font", [False, True])
def test_names_of_any_kind_are_drawn(
    name: str, only_the_default_font: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if only_the_default_font:
        monkeypatch.setattr(lettering, "_FONTS", ())
        lettering.fonts.cache_clear()
    picture = overlay(photo(64, 64), np.zeros((64, 64), int), [name])
    assert picture.shape[1] < 1200
    assert picture.shape[0] < 700
    lettering.fonts.cache_clear()


def test_words_are_cleaned_and_cut_to_their_room() -> None:
    assert lettering.clean(" two\nlines\t ") == "two lines"
    short = lettering.shorten("a name that is far too long", 80, 14)
    assert short.endswith("…")
    assert len(short) > 4
    assert lettering.text_width(short, 14) <= 80
    assert lettering.shorten("cat", 80, 14) == "cat"


def test_a_font_that_has_the_letters_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    default = ImageFont.load_default(14)
    monkeypatch.setattr(lettering, "fonts", lambda size: (default,))
    assert lettering.font_for("cat", 14) is default
    assert not lettering._can_draw(default, "猫")
    assert lettering._can_draw(default, "c")


def test_colours_are_lasting_and_apart() -> None:
    names = [f"word {number}" for number in range(20)]
    colours = class_colours(names)
    assert np.array_equal(colours, class_colours(list(names)))
    assert np.array_equal(colours[:7], class_colours(names[:7]))
    shades = lab(np.concatenate([colours, [VOID_COLOUR]]).astype(np.uint8))
    apart = np.linalg.norm(shades[:, None] - shades[None], axis=-1) + 1000 * np.eye(21)
    assert apart.min() > 20
    colours[0] = 0
    assert class_colours(names)[0].any()


def test_long_lists_have_different_colours_and_pictures_settle_clashes() -> None:
    names = [f"word {number}" for number in range(400)]
    colours = class_colours(names)
    assert len(np.unique(colours, axis=0)) > 250
    shades = lab(colours)
    near = np.linalg.norm(shades[1:] - shades[0], axis=-1).argmin() + 1
    settled = picture_colours(names, [0, int(near)])
    assert np.array_equal(settled[0], colours[0])
    assert np.linalg.norm(lab(settled)[near] - shades[0]) > 25
    unchanged = np.delete(np.arange(400), [0, near])
    assert np.array_equal(settled[unchanged], colours[unchanged])


def test_short_lists_keep_their_colours_in_every_picture() -> None:
    names = [f"word {number}" for number in range(15)]
    assert np.array_equal(picture_colours(names, [9, 3, 12, 0]), class_colours(names))


def test_side_by_side_shows_photo_truth_and_prediction() -> None:
    image, labels = torch.zeros(3, 600, 600).byte(), np.zeros((600, 600), np.int32)
    sheet = side_by_side(image, labels, labels + 1, Vocabulary((("cat",), ("sofa",))), alpha=1.0)
    gap = sheet.shape[1] - 1800
    assert 0 < gap < 60
    colours = class_colours(("cat", "sofa"))
    step = 600 + gap // 2
    assert not sheet[300, 300].any()
    assert np.array_equal(sheet[300, 300 + step], colours[0])
    assert np.array_equal(sheet[300, 300 + 2 * step], colours[1])
    two = side_by_side(image, None, labels, ["cat"])
    assert two.shape[1] < 1300


def test_wide_photos_are_stacked() -> None:
    labels = np.zeros((200, 600), np.int32)
    sheet = side_by_side(photo(200, 600), labels, labels, ["cat"])
    assert sheet.shape[1] < 900
    assert sheet.shape[0] > 600


def test_mosaic_shows_the_best_first_lit_where_the_mask_is() -> None:
    image = torch.full((3, 256, 256), 200, dtype=torch.uint8)
    masks = torch.zeros(3, 256, 256)
    masks[0, :128], masks[1, 128:], masks[2, :, :128] = 1, 1, 1
    sheet = proposal_mosaic(image, Proposals(masks, torch.tensor([0.2, 0.9, 0.5])), count=2)
    assert sheet.shape[1] == 3 * 256 + 12
    top = sheet.shape[0] - 256
    first, second = sheet[top:, 262:518], sheet[top:, 524:]
    assert tuple(first[200, 100]) == (200, 200, 200)
    assert tuple(first[50, 100]) == (50, 50, 50)
    assert tuple(second[50, 50]) == (200, 200, 200)
    assert tuple(second[50, 200]) == (50, 50, 50)


def test_mosaic_of_nothing_is_the_photo_and_bool_masks_do() -> None:
    image = photo(40, 90)
    assert proposal_mosaic(image, Proposals(torch.zeros(0, 40, 90), torch.zeros(0))).shape[1] == 256
    masks = torch.ones(7, 40, 90, dtype=torch.bool)
    assert proposal_mosaic(image, Proposals(masks, torch.ones(7))).shape[1] == 4 * 256 + 18


def test_what_does_not_fit_is_refused() -> None:
    image = photo(8, 9)
    with pytest.raises(LabelError, match=r"image is \(8, 9\) and its label map \(9, 8\)"):
        overlay(image, np.zeros((9, 8), int), WORDS)
    with pytest.raises(LabelError, match=r"expected integer labels -1\.\.2 for 3 names, got 0\.\.3"):
        overlay(image, np.full((8, 9), 3) * (np.arange(9) > 2), WORDS)
    with pytest.raises(LabelError, match="expected integer labels"):
        overlay(image, np.zeros((8, 9)), WORDS)
    for wrong in (image.float(), image[:1], torch.zeros(3, 0, 4).byte()):
        with pytest.raises(LabelError, match="expected RGB uint8"):
            overlay(wrong, np.zeros((8, 9), int), WORDS)
    with pytest.raises(LabelError, match="its proposals"):
        proposal_mosaic(image, Proposals(torch.zeros(1, 9, 8), torch.ones(1)))
