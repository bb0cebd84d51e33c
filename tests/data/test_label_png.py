"""Label maps keep their numbers on the way to disk and back; what cannot be a label map is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.data.errors import ImageReadError, LabelError
from twostage.data.image_io import read_label_png, write_label_png


def noise(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("labels", "void", "bits"),
    [
        ([[-1, 0, 254]], 255, 8),
        ([[-1, 0, 255]], 0xFFFF, 16),
        ([[-1, 300, 7]], 255, 16),
        ([[-1, 1, 2]], 0, 8),
        ([[-1]], 255, 8),
        ([[5]], 65535, 16),
    ],
)
def test_labels_survive_the_way_to_disk(
    tmp_path: Path, labels: list[list[int]], void: int, bits: int
) -> None:
    path = tmp_path / "deep" / "x.png"
    given = torch.tensor(labels, dtype=torch.int32)
    write_label_png(path, given, void)
    assert path.read_bytes()[24] == bits  # from the header: Pillow's mode for 16 bits depends on its version
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
