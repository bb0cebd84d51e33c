"""Geometry by hand, colours against the standard library's arithmetic, equal bits for equal seeds."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twostage.data.errors import DataError
from twostage.data.sample import Sample
from twostage.data.transforms import (
    TrainTransformConfig,
    distort_colours,
    resize_for_test,
    resized_hw,
    to_training,
)

STILL = TrainTransformConfig(short_edges=(8,), max_size=1000, crop_size_hw=(8, 8), flip=0.0, colour=False)
ALL = torch.arange(256)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def numbered(height: int, width: int) -> Sample:
    """Every pixel its own number, in the picture (red: row, green: column) and in the labels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    return Sample(image, (rows * 16 + columns).to(torch.int32), "x")


@pytest.mark.parametrize(
    ("height", "width", "short", "limit", "expected"),
    [
        (480, 640, 640, 2560, (640, 853)),  # 853.33
        (640, 480, 640, 2560, (853, 640)),
        (427, 640, 512, 2048, (512, 767)),  # 767.4
        (100, 1000, 500, 2000, (200, 2000)),
        (1000, 100, 500, 2000, (2000, 200)),
        (2, 3, 1, 100, (1, 2)),  # 1.5 rounds up
        (1, 1000, 10, 50, (1, 50)),  # 0.05 pixels would vanish
        (7, 7, 7, 7, (7, 7)),
    ],
)
def test_sizes(height: int, width: int, short: int, limit: int, expected: tuple[int, int]) -> None:
    assert resized_hw(height, width, short, limit) == expected


def test_resize_for_test_keeps_even_areas_and_averages_when_shrinking() -> None:
    image = torch.full((3, 10, 20), 77, dtype=torch.uint8)
    assert torch.equal(resize_for_test(image, 5, 100), torch.full((3, 5, 10), 77, dtype=torch.uint8))
    stripes = torch.zeros((3, 8, 8), dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    centre = resize_for_test(stripes, 2, 100)[:, 0, :]
    assert ((centre.int() - 100).abs() <= 10).all()  # without antialiasing it would be 0 or 200
    assert resize_for_test(image, 0, 5) is image
    assert resize_for_test(image[:, :1, :1], 3, 100).shape == (3, 3, 3)


def test_nothing_changes_when_every_knob_is_still() -> None:
    sample = numbered(8, 8)
    image, labels = to_training(sample, STILL, rng(), ALL)
    assert image.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(image, sample.image)
    assert sample.labels is not None
    assert torch.equal(labels, sample.labels.long())


def test_flip_mirrors_both() -> None:
    sample = numbered(8, 8)
    image, labels = to_training(sample, replace(STILL, flip=1.0), rng(), ALL)
    assert torch.equal(image, sample.image.flip(-1))
    assert sample.labels is not None
    assert torch.equal(labels, sample.labels.long().flip(-1))


def test_padding_is_right_and_below_grey_and_void() -> None:
    sample = numbered(8, 8)
    image, labels = to_training(sample, replace(STILL, crop_size_hw=(11, 10)), rng(), ALL)
    assert image.shape == (3, 11, 10)
    assert torch.equal(image[:, :8, :8], sample.image)
    assert image[:, 8:].unique().tolist() == [128]
    assert image[:, :, 8:].unique().tolist() == [128]
    assert labels[8:].unique().tolist() == [-1]
    assert labels[:, 8:].unique().tolist() == [-1]


def test_crops_keep_picture_and_labels_together_and_reach_every_place() -> None:
    sample = numbered(8, 12)
    config = replace(STILL, crop_size_hw=(5, 4))
    corners = set()
    for seed in range(400):
        image, labels = to_training(sample, config, rng(seed), ALL)
        assert torch.equal(image[0].long() * 16 + image[1].long(), labels)
        corners.add((int(image[0, 0, 0]), int(image[1, 0, 0])))
    assert corners == {(top, left) for top in range(4) for left in range(9)}


def test_every_short_edge_is_drawn_and_labels_follow_by_nearest() -> None:
    config = replace(STILL, short_edges=(4, 8, 16), crop_size_hw=(16, 16))
    sample = numbered(8, 8)
    sides = set()
    for seed in range(40):
        _, labels = to_training(sample, config, rng(seed), ALL)
        side = int((labels[:, 0] >= 0).sum())
        sides.add(side)
        if side == 16:
            assert sample.labels is not None
            doubled = sample.labels.long().repeat_interleave(2, 0).repeat_interleave(2, 1)
            assert torch.equal(labels, doubled)
    assert sides == {4, 8, 16}


def test_classes_are_renamed_and_void_stays() -> None:
    labels = torch.tensor([[0, 1, 2, -1]] * 8, dtype=torch.int32).repeat(1, 2)
    sample = Sample(torch.zeros((3, 8, 8), dtype=torch.uint8), labels, "x")
    _, got = to_training(sample, STILL, rng(), torch.tensor([1, -1, 0]))
    assert got[0].tolist() == [1, -1, 0, -1] * 2


def test_one_pixel_image() -> None:
    sample = Sample(torch.full((3, 1, 1), 9, dtype=torch.uint8), torch.zeros((1, 1), dtype=torch.int32), "x")
    image, labels = to_training(sample, replace(STILL, short_edges=(3,)), rng(), ALL)
    assert image[:, :3, :3].unique().tolist() == [9]
    assert int((labels == 0).sum()) == 9


def test_same_generator_state_same_bits_and_the_sample_is_left_alone() -> None:
    config = TrainTransformConfig(short_edges=(20, 30), crop_size_hw=(24, 24))
    pixels = torch.from_numpy(rng(5).integers(0, 256, (3, 25, 33), dtype=np.uint8))
    labels = torch.from_numpy(rng(6).integers(-1, 4, (25, 33)).astype(np.int32))
    before: tuple[Tensor, Tensor] = (pixels.clone(), labels.clone())
    results = [to_training(Sample(pixels, labels, "x"), config, rng(seed), ALL) for seed in (1, 1, 2)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])
    assert torch.equal(pixels, before[0])
    assert torch.equal(labels, before[1])


def colours(**knobs: Any) -> TrainTransformConfig:
    """Every step happens, and only the named ones do anything."""
    still = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0}
    return TrainTransformConfig(colour_chance=1.0, **{**still, **knobs})


GREYS = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)


def test_no_chance_no_change() -> None:
    noise = rng().integers(0, 256, (4, 5, 3), dtype=np.uint8)
    config = TrainTransformConfig(colour_chance=0.0)
    np.testing.assert_array_equal(distort_colours(noise, config, rng()), noise)


def test_brightness_adds_one_number_and_stops_at_the_ends() -> None:
    offsets = []
    for seed in range(50):
        got = distort_colours(GREYS, colours(brightness=32.0), rng(seed))[0, :, 0].astype(int)
        offset = got[128] - 128
        np.testing.assert_array_equal(got[40:216], np.arange(40, 216) + offset)
        assert got.min() >= 0
        assert got.max() <= 255
        assert got[0] == max(0, offset)
        offsets.append(offset)
    assert min(offsets) < -20
    assert max(offsets) > 20
    assert max(map(abs, offsets)) <= 32


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_contrast_multiplies(factor: float) -> None:
    got = distort_colours(GREYS, colours(contrast=(factor, factor)), rng())[0, :, 0]
    np.testing.assert_array_equal(got, np.clip(np.floor(np.arange(256) * factor), 0, 255))


def expected_colour(rgb: tuple[int, int, int], saturation: float, hue_steps: int) -> np.ndarray:
    hue, satur, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    return 255 * np.array(colorsys.hsv_to_rgb((hue + hue_steps / 180) % 1, min(1, satur * saturation), value))


VIVID = ((200, 40, 90), (10, 250, 128), (3, 60, 255), (255, 255, 0), (120, 90, 100))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_saturation_multiplies(factor: float) -> None:
    image = np.array([VIVID], dtype=np.uint8)
    got = distort_colours(image, colours(saturation=(factor, factor)), rng())[0]
    for pixel, rgb in zip(got, VIVID, strict=True):
        np.testing.assert_allclose(
            pixel, expected_colour(rgb, factor, 0), atol=6
        )  # hue in steps of two degrees


def test_hue_turns_within_its_range() -> None:
    image = np.array([VIVID], dtype=np.uint8)
    steps_seen = set()
    for seed in range(200):
        got = distort_colours(image, colours(hue=18), rng(seed))[0].astype(float)
        errors = [
            max(
                abs(pixel - expected_colour(rgb, 1.0, step)).max()
                for pixel, rgb in zip(got, VIVID, strict=True)
            )
            for step in range(-25, 26)
        ]
        steps_seen.add(int(np.argmin(errors)) - 25)
        assert min(errors) <= 6
    assert min(steps_seen) <= -17
    assert max(steps_seen) >= 17
    assert max(map(abs, steps_seen)) <= 19


def test_contrast_comes_first_or_last() -> None:
    """Clipping before or after the saturation shrinks gives two different pictures; both must occur."""
    image = np.array([VIVID], dtype=np.uint8)
    config = colours(contrast=(1.7, 1.7), saturation=(0.3, 0.3))
    results = {distort_colours(image, config, rng(seed)).tobytes() for seed in range(30)}
    assert len(results) == 2


@pytest.mark.parametrize(
    "knobs",
    [
        {"short_edges": ()},
        {"short_edges": (0,)},
        {"max_size": 0},
        {"crop_size_hw": (0, 5)},
        {"flip": 1.5},
        {"colour_chance": -0.1},
    ],
)
def test_impossible_knobs_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(knobs))):
        TrainTransformConfig(**knobs)


def test_training_without_labels_is_refused() -> None:
    sample = Sample(torch.zeros((3, 4, 4), dtype=torch.uint8), None, "x", "photos/x.jpg")
    with pytest.raises(DataError, match=r"photos/x\.jpg: training needs labels"):
        to_training(sample, STILL, rng(), ALL)
