"""A folder is a data set without code; each way in which it can be wrong says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.data.errors import DatasetError, ImageReadError, LabelError
from twostage.data.folder import FolderDataset

MakeFolder = Callable[..., Path]


def test_flat_folder(make_folder: MakeFolder) -> None:
    dataset = FolderDataset(make_folder())
    assert dataset.name == "mine"
    assert len(dataset) == 3
    assert dataset.image_ids == ["a", "b", "c"]
    assert dataset.vocabulary.shown == ("sky", "couch", "tree")
    sample = dataset[1]
    assert sample.image.shape == (3, 1, 4)
    assert sample.image.unique().tolist() == [20]
    assert sample.image_id == "b"
    assert sample.source.endswith("images/b.png")
    assert sample.labels is not None
    assert sample.labels.dtype == torch.int32
    assert sample.labels.tolist() == [[-1, 1, 1, 0]]
    sixteen_bits = dataset[2].labels
    assert sixteen_bits is not None
    assert sixteen_bits.tolist() == [[2, -1], [1, 2]]
    assert [s.image_id for s in dataset] == ["a", "b", "c"]  # ends with IndexError, as sequences do


def test_splits(make_folder: MakeFolder) -> None:
    root = make_folder("train", "val")
    dataset = FolderDataset(root, "val")
    assert dataset.name == "mine@val"
    assert dataset[0].source.endswith("images/val/a.png")
    with pytest.raises(DatasetError, match=r"name one of its splits: .*mine@train, .*mine@val"):
        FolderDataset(root)
    with pytest.raises(DatasetError, match=r"no split 'vall'.*Splits: train, val.*Did you mean 'val'"):
        FolderDataset(root, "vall")


def test_the_only_split_needs_no_name_and_flat_folders_have_none(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    assert FolderDataset(make_folder("train")).name == "mine@train"
    flat = tmp_path / "flat"
    (tmp_path / "mine" / "images" / "train").rename(tmp_path / "images")
    (tmp_path / "mine" / "masks" / "train").rename(tmp_path / "masks")
    flat.mkdir()
    for name in ("images", "masks"):
        (tmp_path / name).rename(flat / name)
    (tmp_path / "mine" / "classes.json").rename(flat / "classes.json")
    with pytest.raises(DatasetError, match="has no splits: leave the split out"):
        FolderDataset(flat, "train")


def test_suffixes_are_matched_in_any_case_and_hidden_files_ignored(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "images" / "a.png").rename(root / "images" / "a.PNG")
    (root / "images" / "._b.png").write_bytes(b"junk of an archive")
    (root / "images" / "notes.txt").write_text("x")
    assert FolderDataset(root).image_ids == ["a", "b", "c"]


def test_missing_parts(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: there is no such folder"):
        FolderDataset(tmp_path / "nowhere")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DatasetError, match=r"expected a folder called images, found only: pictures"):
        FolderDataset(tmp_path)
    root = make_folder()
    (root / "classes.json").unlink()
    with pytest.raises(DatasetError, match=r"classes\.json: no class list here"):
        FolderDataset(root)


def test_no_images(make_folder: MakeFolder) -> None:
    root = make_folder()
    for path in (root / "images").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DatasetError, match=r"images: no images here. Files found: a\.txt, b\.txt, c\.txt"):
        FolderDataset(root)


def test_no_pairs(make_folder: MakeFolder) -> None:
    root = make_folder()
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"mask_{path.name}"))
    with pytest.raises(DatasetError, match=r"no mask matches.*a\.png.*mask_a.*stem"):
        FolderDataset(root)
    with pytest.raises(DatasetError, match="no mask matches"):
        FolderDataset(root, masks="paired")


def test_jpeg_masks_are_shown_as_what_they_are(make_folder: MakeFolder) -> None:
    root = make_folder()
    for path in (root / "masks").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(DatasetError, match=r"other files: a\.jpg, b\.jpg, c\.jpg.*\.png"):
        FolderDataset(root)


def test_images_without_mask(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "masks" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 images have no mask: b\.png.*paired.*optional"):
        FolderDataset(root)
    assert FolderDataset(root, masks="paired").image_ids == ["a", "c"]
    dataset = FolderDataset(root, masks="optional")
    assert dataset[1].labels is None
    assert dataset[0].labels is not None


def test_no_masks_at_all_is_fine_where_no_truth_is_needed(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "masks").rename(root / "unused")
    assert all(sample.labels is None for sample in FolderDataset(root, masks="optional"))


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_stems_that_repeat(make_folder: MakeFolder, kind: str) -> None:
    root = make_folder()
    Image.new("L", (8, 6)).save(root / kind / "a.tif")
    with pytest.raises(DatasetError, match=r"a\.png and .*a\.tif share the stem 'a'"):
        FolderDataset(root)


def test_sizes_that_disagree_name_both_files(make_folder: MakeFolder) -> None:
    root = make_folder()
    Image.fromarray(np.full((8, 6), 3, dtype=np.uint8)).save(root / "masks" / "a.png")
    with pytest.raises(LabelError, match=r"images/a\.png is 8 x 6.*masks/a\.png is 6 x 8"):
        FolderDataset(root)[0]


def test_undeclared_values(make_folder: MakeFolder) -> None:
    root = make_folder()
    Image.fromarray(np.array([[3, 5, 5, 200]], dtype=np.uint8)).save(root / "masks" / "b.png")
    with pytest.raises(LabelError, match=r"masks/b\.png: values 5, 200 \(3 pixels\).*undeclared=\"ignore\""):
        FolderDataset(root)[1]
    labels = FolderDataset(root, undeclared="ignore")[1].labels
    assert labels is not None
    assert labels.tolist() == [[0, -1, -1, -1]]


def test_colour_masks_and_broken_photos_are_named(make_folder: MakeFolder) -> None:
    root = make_folder()
    Image.new("RGB", (8, 6)).save(root / "masks" / "a.png")
    (root / "images" / "b.png").write_bytes(b"")
    dataset = FolderDataset(root)
    with pytest.raises(ImageReadError, match=r"masks/a\.png.*Colours are not labels"):
        dataset[0]
    with pytest.raises(ImageReadError, match=r"images/b\.png"):
        dataset[1]


def test_unknown_options(make_folder: MakeFolder) -> None:
    with pytest.raises(DatasetError, match=r"masks='option' is unknown.*'optional'"):
        FolderDataset(make_folder(), masks="option")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"undeclared='ignored' is unknown.*'ignore'"):
        FolderDataset(make_folder(), undeclared="ignored")  # type: ignore[arg-type]


def test_the_readme_example_is_a_class_list(make_folder: MakeFolder) -> None:
    readme = Path(__file__).parents[2] / "datasets" / "README.md"
    example = readme.read_text(encoding="utf-8").split("```json\n", 1)[1].split("```", 1)[0]
    root = make_folder()
    (root / "classes.json").write_text(example)
    assert len(FolderDataset(root, undeclared="ignore").vocabulary) == len(json.loads(example)["classes"])
