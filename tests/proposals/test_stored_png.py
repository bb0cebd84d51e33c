"""Folders of PNGs: numbered regions, single masks in two layouts, and what is neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.data.errors import ImageReadError
from twostage.proposals._cache_files import CacheError, write_npz
from twostage.proposals.cached import CachedConfig, CachedProposals
from twostage.types import Proposals

REGIONS = np.array([[0, 0, 3, 3], [7, 7, 3, 255], [7, 7, 0, 255]], np.uint8)


def save(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image = Image.fromarray(array, "P") if array.dtype == np.uint8 else image
        image.putpalette([(5 * value) % 256 for value in range(768)])
    image.save(path)


def opened(path: Path, **options: Any) -> CachedProposals:
    return CachedProposals(CachedConfig(str(path), **options))


def read(path: Path, name: str, size_hw: tuple[int, int] = (3, 4), **options: Any) -> Proposals:
    return opened(path, **options).propose_for([name], [size_hw])[0]


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("kind", ["grey", "palette", "16 bit"])
def test_numbered_regions(tmp_path: Path, kind: str) -> None:
    values = REGIONS.astype(np.uint16) * 200 if kind == "16 bit" else REGIONS
    save(tmp_path / "dog.png", values, palette=kind == "palette")
    factor = 200 if kind == "16 bit" else 1
    found = read(tmp_path, "dog")
    assert [mask.tolist() for mask in found.masks] == [(v == REGIONS).tolist() for v in (3, 7, 255)]
    assert found.scores.tolist() == [1, 1, 1]
    assert found.source == "cached"
    assert len(read(tmp_path, "dog", background=())) == 4
    assert len(read(tmp_path, "dog", background=(0, 255 * factor))) == 2
    assert len(read(tmp_path, "dog.png")) == 3


def test_a_photo_without_regions(tmp_path: Path) -> None:
    save(tmp_path / "dog.png", np.zeros((3, 4), np.uint8))
    assert read(tmp_path, "dog").masks.shape == (0, 3, 4)


def masks_of(folder: Path, pattern: str, count: int = 12) -> list[np.ndarray]:
    """Mask n has its first n + 1 pixels; written in an order that sorting by letters would break."""
    made = [(np.arange(12) <= n).reshape(3, 4) for n in range(count)]
    for number, mask in enumerate(made):
        save(folder / pattern.format(number), mask.astype(np.uint8) * 255)
    return made


def test_a_folder_for_each_image(tmp_path: Path) -> None:
    made = masks_of(tmp_path / "dog", "{}.png")
    save(tmp_path / "cat" / "only.png", np.eye(3, 4, dtype=np.uint8))
    assert np.array_equal(read(tmp_path, "dog").masks.numpy(), np.stack(made))
    assert read(tmp_path, "cat").masks.tolist() == [np.eye(3, 4, dtype=bool).tolist()]


@pytest.mark.parametrize("pattern", ["dog_{}.png", "dog-{}.png", "dog.{}.png", "dog__{:03d}.png"])
def test_masks_side_by_side(tmp_path: Path, pattern: str) -> None:
    made = masks_of(tmp_path, pattern)
    save(tmp_path / "IMG_0042_0.png", np.ones((3, 4), np.uint8))
    assert np.array_equal(read(tmp_path, "dog", png="masks").masks.numpy(), np.stack(made))
    assert read(tmp_path, "IMG_0042", png="masks").masks.all()
    if "_{}" in pattern:
        with pytest.raises(CacheError, match=r"Did you mean 'dog_\d+'.*IMAGE_NUMBER\.png, set PROPOSALS"):
            read(tmp_path, "dog")


def test_scores_of_the_segment_anything_script(tmp_path: Path) -> None:
    masks_of(tmp_path / "dog", "{}.png", 3)
    (tmp_path / "dog" / "metadata.csv").write_text(
        "id,area,predicted_iou,stability_score\n0,1,0.5,0.9\n2,3,0.75,0.9\n"
    )
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "metadata.csv").write_text("id,area,predicted_iou\n")
    assert read(tmp_path, "dog").scores.tolist() == [0.5, 1.0, 0.75]
    assert read(tmp_path, "nothing", (5, 6)).masks.shape == (0, 5, 6)
    (tmp_path / "dog" / "metadata.csv").write_text("id,predicted_iou\n0,high\n")
    with pytest.raises(CacheError, match=r"metadata\.csv: cannot be read as a table"):
        read(tmp_path, "dog")


def test_soft_edges_are_cut_in_the_middle(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "0.png", np.array([[0, 40, 127, 128, 200, 255]], np.uint8))
    save(tmp_path / "dog" / "1.png", np.full((1, 6), 9, np.uint8))
    assert read(tmp_path, "dog", (1, 6)).masks.tolist() == [[[False] * 3 + [True] * 3], [[True] * 6]]


def test_stored_by_this_program_comes_first(tmp_path: Path) -> None:
    """A folder of `twostage proposals` holds pictures beside the masks."""
    write_npz(tmp_path / "dog.npz", Proposals(torch.ones(1, 3, 4, dtype=torch.bool), torch.ones(1)))
    save(tmp_path / "dog_overlay.png", np.zeros((3, 4, 3), np.uint8))
    assert len(read(tmp_path, "dog")) == 1


def broken(folder: Path, what: str) -> dict[str, Any]:
    """Something wrong with a folder; the options to open it with."""
    if what == "numbers":
        save(folder / "dog" / "0.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
    elif what == "sizes":
        save(folder / "dog" / "0.png", np.zeros((3, 4), np.uint8))
        save(folder / "dog" / "1.png", np.zeros((3, 5), np.uint8))
    elif what == "both":
        save(folder / "dog.png", REGIONS)
        save(folder / "cat" / "0.png", REGIONS)
    elif what == "nameless":
        save(folder / "dog.png", REGIONS)
        return {"png": "masks"}
    elif what == "twice":
        save(folder / "dog.png", REGIONS)
        save(folder / "dog.tif", REGIONS)
    elif what == "option":
        return {"png": "mask"}
    elif what == "background":
        return {"background": ("sky",)}
    elif what == "other photo":
        save(folder / "dog.png", np.zeros((300, 400), np.uint8))
    return {}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("numbers", r"0\.png: expected one mask, .* found 12 values up to 11\. Numbered regions"),
        ("sizes", r"1\.png: \(3, 5\) \(height, width\), but 0\.png is \(3, 4\)"),
        ("both", r"holds PNGs \(dog\.png\) and folders of PNGs \(cat\)"),
        ("nameless", r"dog\.png: expected IMAGE_NUMBER\.png"),
        ("twice", "is of the same image"),
        ("option", "png='mask' is unknown. Did you mean 'masks'"),
        ("background", "whole numbers"),
        ("nothing", "no proposals are stored here"),
        ("other photo", "'dog' is 300 x 300 .* masks are 400 x 300"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, what: str, says: str) -> None:
    options = broken(tmp_path, what)
    with pytest.raises(CacheError, match=says):
        read(tmp_path, "dog", (300, 300) if what == "other photo" else (3, 4), **options)


@pytest.mark.parametrize("name", ["dog.png", "dog/0.png"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, np.random.default_rng(0).integers(0, 2, (40, 40), dtype=np.uint8))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    with pytest.raises(ImageReadError, match=name):
        read(tmp_path, "dog")
    save(tmp_path / name, np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(ImageReadError, match="Colours are not labels"):
        read(tmp_path, "dog")
