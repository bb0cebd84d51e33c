"""Every kind of file that people have, and every way in which it can be broken."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from twostage.data.errors import ImageReadError
from twostage.data.image_io import read_image


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_hwc(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.ndim == 3
    assert image.is_contiguous()
    return image.permute(1, 2, 0).numpy()


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    pixels = noise(5, 7)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(as_hwc(tmp_path / "x.png"), pixels)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_turns_the_photo_upright(tmp_path: Path, orientation: int, undo: object) -> None:
    stored = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(as_hwc(tmp_path / "x.png"), undo(stored))  # type: ignore[operator]


YCBCR = pytest.param(
    "YCbCr",
    marks=pytest.mark.skipif(
        int(PIL.__version__.split(".")[0]) < 13,
        reason="before version 13, Pillow does not read the uncompressed YCbCr TIFF that it writes",
    ),
)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "CMYK", YCBCR, "HSV", "LA", "RGBA", "PA"])
def test_every_mode_gives_three_channels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise(3, 4)).convert(mode)
    path = tmp_path / ("x.png" if mode in {"L", "1", "P", "RGB", "LA", "RGBA"} else "x.tif")
    if mode in {"HSV", "PA"}:
        image = image.convert("RGB")
    image.save(path)
    assert as_hwc(path).shape == (3, 4, 3)


def test_grey_is_repeated_and_one_pixel_is_enough(tmp_path: Path) -> None:
    Image.fromarray(np.array([[37]], dtype=np.uint8)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(as_hwc(tmp_path / "x.png"), [[[37, 37, 37]]])


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    np.testing.assert_array_equal(as_hwc(tmp_path / "x.png")[0, :, 0], np.round(values[0] / 257))


def test_sixteen_bits_widened_by_the_file_are_read_and_real_32_bits_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(as_hwc(tmp_path / "x.tif")[0, :, 0], [0, 255])
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(np.array([[0.5]], dtype=np.float32)).save(tmp_path / "float.tif")
    for name in ("wide.tif", "float.tif"):
        with pytest.raises(ImageReadError, match=rf"{name}.*32 bits.*8-bit PNG"):
            read_image(tmp_path / name)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    got = as_hwc(tmp_path / "x.png")[0].astype(int)
    np.testing.assert_array_equal(got[0], [200, 0, 0])
    np.testing.assert_array_equal(got[1], [255, 255, 255])
    assert abs(got[2] - 127).max() <= 1


def test_palette_with_a_transparent_entry_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.png", transparency=1)
    np.testing.assert_array_equal(as_hwc(tmp_path / "x.png"), [[[10, 20, 30], [255, 255, 255]]])


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    red, green, blue = as_hwc(tmp_path / "x.jpg")[8, 8].astype(int)
    assert red > 240
    assert max(green, blue) < 15


def test_a_mode_that_cannot_become_rgb_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    Image.new("LAB", (2, 2)).save(tmp_path / "x.tif")
    monkeypatch.setattr(Image.Image, "convert", refuse)  # what older Pillow does
    with pytest.raises(ImageReadError, match=r"x\.tif: .*Save it as an RGB"):
        read_image(tmp_path / "x.tif")


def jpeg_bytes() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"not an image.*0 bytes"),
        (b"hello, this is a text", "not an image.*21 bytes"),
        (jpeg_bytes()[: len(jpeg_bytes()) // 2], "cut off.*again"),
        (jpeg_bytes()[:12], "not an image|cut off"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "not an image|broken"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"bad photo\.jpg: .*({says})"):
        read_image(path)


def test_damaged_png_data_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(stream, "PNG")
    broken = bytearray(stream.getvalue())
    broken[200:260] = b"\x00" * 60
    (tmp_path / "x.png").write_bytes(bytes(broken))
    with pytest.raises(ImageReadError, match=r"x\.png: broken"):
        read_image(tmp_path / "x.png")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"nowhere\.jpg: there is no such file"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageReadError, match="cannot be opened"):
        read_image(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_forbidden_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(ImageReadError, match="cannot be opened"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("limit", [50, 20])  # the second is where Pillow itself raises
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageReadError, match=rf"x\.png: larger than {limit} pixels.*MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "x.png")
