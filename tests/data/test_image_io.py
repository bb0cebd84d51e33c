"""Every kind of file that people have, and every way in which it can be broken."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.data.errors import ImageReadError, LabelError
from twostage.data.image_io import read_image, read_label_png, write_label_png


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


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "CMYK", "YCbCr", "HSV", "LA", "RGBA", "PA"])
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


@pytest.mark.parametrize(
    ("labels", "void", "bits"),
    [
        ([[-1, 0, 254]], 255, "L"),
        ([[-1, 0, 255]], 0xFFFF, "I;16"),
        ([[-1, 300, 7]], 255, "I;16"),
        ([[-1, 1, 2]], 0, "L"),
        ([[-1]], 255, "L"),
        ([[5]], 65535, "I;16"),
    ],
)
def test_labels_survive_the_way_to_disk(
    tmp_path: Path, labels: list[list[int]], void: int, bits: str
) -> None:
    path = tmp_path / "deep" / "x.png"
    given = torch.tensor(labels, dtype=torch.int32)
    write_label_png(path, given, void)
    with Image.open(path) as image:
        assert image.mode == bits
    got = read_label_png(path)
    assert got.dtype == torch.int32
    assert torch.equal(got, torch.where(given == -1, void, given))
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("labels", "void", "says"),
    [
        (np.zeros((2, 2, 1), dtype=np.int64), 255, "expected labels"),
        (np.zeros((2, 2)), 255, "of integers"),
        (np.zeros((0, 2), dtype=np.int64), 255, "expected labels"),
        (np.array([[-2]]), 255, r"expected labels -1\.\.65535"),
        (np.array([[70000]]), 255, r"expected labels -1\.\.65535"),
        (np.array([[1]]), 70000, "void 70000"),
        (np.array([[255]]), 255, "void=65535"),
    ],
)
def test_labels_that_no_png_can_hold_are_refused(
    tmp_path: Path, labels: np.ndarray, void: int, says: str
) -> None:
    with pytest.raises(LabelError, match=says):
        write_label_png(tmp_path / "x.png", labels, void)
    assert not (tmp_path / "x.png").exists()


def packed_grey_png(path: Path, values: np.ndarray, bits: int) -> None:
    """A PNG of 1, 2 or 4 bits a pixel, written chunk by chunk, since Pillow writes none of grey."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\x00" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_numbers(tmp_path: Path, bits: int) -> None:
    values = np.arange(2**bits, dtype=np.int64).reshape(2, -1)
    packed_grey_png(tmp_path / "x.png", values, bits)
    np.testing.assert_array_equal(read_label_png(tmp_path / "x.png").numpy(), values)


def test_palette_masks_give_their_index_and_tif_works(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 2, 1]], dtype=np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "x.png")
    assert read_label_png(tmp_path / "x.png").tolist() == [[0, 2, 1]]
    Image.fromarray(np.array([[846, 65535]], dtype=np.uint16)).save(tmp_path / "x.tif")
    assert read_label_png(tmp_path / "x.tif").tolist() == [[846, 65535]]


def test_colour_masks_and_jpeg_masks_are_refused(tmp_path: Path) -> None:
    for name, channels in (("rgb.png", 3), ("rgba.png", 4)):
        Image.fromarray(noise(2, 2, channels)).save(tmp_path / name)
        with pytest.raises(ImageReadError, match=rf"{name}.*one integer a pixel.*Colours are not labels"):
            read_label_png(tmp_path / name)
    Image.new("L", (2, 2)).save(tmp_path / "x.jpg")
    with pytest.raises(ImageReadError, match=r"x\.jpg.*changes label values"):
        read_label_png(tmp_path / "x.jpg")
