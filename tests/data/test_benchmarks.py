"""Benchmark splits from disk, on miniature trees in the layout that the preparation writes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twostage.data import catalog, presence, vocabularies
from twostage.data.benchmarks import BENCHMARKS, DERIVED, SEEN_ONLY
from twostage.data.errors import DatasetError, LabelError
from twostage.data.image_io import write_label_png
from twostage.data.loader import training_vocabulary
from twostage.data.prepared import PreparedDataset
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.metrics import compute

COUNTS = {
    "coco_stuff": (118_287, 5_000),
    "voc": (10_582, 1_449),
    "pascal_context_59": (4_998, 5_105),
    "pascal_context_459": (4_998, 5_105),
    "ade20k_150": (20_210, 2_000),
    "ade20k_847": (25_574, 2_000),
    "cityscapes": (2_975, 500),
}


def put(root: Path, name: str, stem: str, labels: list[list[int]], sub: str = "") -> None:
    """An even grey photo and its label map (-1 is void) where the table says."""
    row = BENCHMARKS[name]
    folder = row.image_folder(root) / sub
    folder.mkdir(parents=True, exist_ok=True)
    array = np.array(labels, np.int32)
    Image.new("RGB", array.shape[::-1], (9, 9, 9)).save(folder / f"{stem}{row.image_suffix}")
    write_label_png(row.label_folder(root) / f"{stem}.png", array, row.void)


def test_the_table() -> None:
    splits = [f"{name}_{split}" for name in COUNTS for split in ("train", "val")]
    assert sorted(BENCHMARKS) == sorted([*splits, "voc21_val"])
    for name, row in BENCHMARKS.items():
        family, split = name.rsplit("_", 1)
        assert row.class_list == family
        assert row.photos == COUNTS[family.removesuffix("21")][split == "val"]
        assert row.void == (65535 if len(row.classes.vocabulary) > 255 else 255)
        assert name in catalog.names()
    assert len({row.labels for row in BENCHMARKS.values()}) == len(BENCHMARKS)


READ: dict[str, tuple[list[int], list[int]]] = {
    # data set: stored values (-1 is void), and what they are read as
    "voc21_val": ([0, 1, 20, -1], [0, 1, 20, -1]),
    "voc21_plain_val": ([0, 1, 20, -1], [0, 1, 20, -1]),
    "voc20_val": ([0, 14, 19, -1], [0, 14, 19, -1]),
    "voc20_plain_val": ([0, 14, 19, -1], [0, 14, 19, -1]),
    "pascal_context_60_val": ([0, 58, -1, 7], [1, 59, 0, 8]),
    "coco_object_val": ([0, 79, 80, 170, -1, 62], [1, 80, 0, 0, 0, 63]),
    "coco_object_plain_val": ([0, 79, 80, 170, -1, 62], [1, 80, 0, 0, 0, 63]),
}


def test_derived_readings_are_tested_here() -> None:
    assert set(READ) == {*DERIVED, "voc21_val"}
    for name, row in DERIVED.items():
        assert row.name == name
        assert f"{row.class_list}_val" == name
        assert row.labels in {other.labels for other in BENCHMARKS.values()}
        assert name in catalog.names()


@pytest.mark.parametrize("name", sorted(READ))
def test_labels_stored_once_are_read_another_way(name: str, tmp_path: Path) -> None:
    stored, read = READ[name]
    own = {**BENCHMARKS, **DERIVED}[name]
    source = next(one for one, row in BENCHMARKS.items() if row.labels == own.labels)
    put(tmp_path, source, "a", [stored])
    dataset = catalog.get(name, tmp_path)
    assert dataset.name == name
    labels = dataset[0].labels
    assert labels is not None
    assert labels.tolist() == [read]
    assert len(dataset.vocabulary) == {"voc2": 21 if "21" in name else 20, "pasc": 60, "coco": 81}[name[:4]]
    as_stored = catalog.get(source, tmp_path)[0].labels
    assert as_stored is not None
    assert as_stored.tolist() == [stored], "the original reading is what it was"


def test_a_derived_reading_is_not_trained_on(tmp_path: Path) -> None:
    put(tmp_path, "coco_stuff_val", "a", [[0, 90]])
    dataset = catalog.get("coco_object_val", tmp_path)
    assert isinstance(dataset, PreparedDataset)
    assert dataset.subsets == {}
    with pytest.raises(DatasetError, match=r"coco_object_val is for evaluation only: .*labels_171/val2017"):
        dataset.classes_present()


def test_a_strange_value_is_no_background_where_all_values_are_known(tmp_path: Path) -> None:
    put(tmp_path, "voc21_val", "a", [[21]])
    with pytest.raises(LabelError, match=r"a\.png: values 21 \(1 pixels\)"):
        catalog.get("voc21_plain_val", tmp_path)[0]
    with pytest.raises(DatasetError, match=r"prepare_voc\.py --classes 21 --root .* --split val"):
        catalog.get("voc21_val", tmp_path / "nowhere")


def test_coco_subsets_are_the_unseen_classes() -> None:
    row = BENCHMARKS["coco_stuff_val"]
    flags = row.classes.vocabulary.seen
    assert flags is not None
    things, stuff = dict(row.subsets)["novel_thing"], dict(row.subsets)["novel_stuff"]
    assert sorted(things + stuff) == [k for k, flag in enumerate(flags) if not flag]
    assert max(things) < 80 <= min(stuff)
    assert (len(things), len(stuff)) == (7, 8)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_split_is_read(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = len(BENCHMARKS[name].classes.vocabulary) - 1
    put(tmp_path, name, "aachen_000001_000019", [[0, last, -1]], sub="deep" if "city" in name else "")
    put(tmp_path, name, "b", [[last], [last]])
    with caplog.at_level(logging.WARNING):
        dataset = catalog.get(name, tmp_path)
    assert dataset.name == name
    assert len(dataset) == 2
    sample = dataset[0]
    assert sample.image_id == "aachen_000001_000019"
    assert sample.labels is not None
    assert sample.labels.tolist() == [[0, last, -1]]
    assert sample.image.shape == (3, 1, 3)
    assert dataset.vocabulary == vocabularies.load(BENCHMARKS[name].class_list).vocabulary
    assert f"2 label maps in {BENCHMARKS[name].label_folder(tmp_path)}, the complete data" in caplog.text


def test_the_label_maps_are_the_split(tmp_path: Path) -> None:
    put(tmp_path, "voc_train", "a", [[0]])
    put(tmp_path, "voc_val", "b", [[1]])
    assert [s.image_id for s in catalog.get("voc_train", tmp_path)] == ["a"]  # type: ignore[attr-defined]
    assert [s.image_id for s in catalog.get("voc_val", tmp_path)] == ["b"]  # type: ignore[attr-defined]


def test_no_label_maps_names_source_count_and_command(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        catalog.get("coco_stuff_val", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "coco/labels_171/val2017") in message
    assert "expected 5,000" in message
    assert "github.com/nightrome/cocostuff" in message
    assert f"python datasets/prepare_coco_stuff.py --root {tmp_path}" in message


def test_label_maps_without_photos_are_named(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        put(tmp_path, "cityscapes_val", stem, [[0]])
    (tmp_path / "cityscapes/leftImg8bit/val/a_leftImg8bit.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 label maps .* have no photo in .*leftImg8bit/val \(a\)"):
        catalog.get("cityscapes_val", tmp_path)


def test_sizes_and_values_are_checked(tmp_path: Path) -> None:
    put(tmp_path, "voc_val", "a", [[0]])
    put(tmp_path, "voc_val", "b", [[0]])
    folder = BENCHMARKS["voc_val"].label_folder(tmp_path)
    write_label_png(folder / "a.png", np.zeros((2, 2), np.int32))
    write_label_png(folder / "b.png", np.full((1, 1), 20, np.int32))
    dataset = catalog.get("voc_val", tmp_path)
    with pytest.raises(LabelError, match=r"a\.png is\s+2 x 2"):
        dataset[0]
    with pytest.raises(LabelError, match=r"b\.png: values 20 \(1 pixels\)"):
        dataset[1]
    with pytest.raises(IndexError):
        dataset[2]


def test_photos_without_a_seen_class_can_be_left_out(tmp_path: Path) -> None:
    put(tmp_path, "voc_train", "a", [[0, 17]])
    put(tmp_path, "voc_train", "b", [[16, 17]])
    put(tmp_path, "voc_train", "c", [[-1, -1]])
    put(tmp_path, "voc_train", "d", [[14, -1]])
    everything, seen = (catalog.get(name, tmp_path) for name in ("voc_train", "voc_train_seen"))
    assert isinstance(everything, PreparedDataset)
    assert isinstance(seen, PreparedDataset)
    assert everything.image_ids == ["a", "b", "c", "d"]
    assert seen.image_ids == ["a", "d"]
    assert seen.name == "voc_train_seen"
    assert everything.classes_present() == [(0, 17), (16, 17), (), (14,)]
    assert seen.classes_present() == [(0, 17), (14,)]
    with pytest.raises(DatasetError, match="Unknown data set 'cityscapes_train_seen'"):
        catalog.get("cityscapes_train_seen", tmp_path)
    put(tmp_path, "cityscapes_train", "a", [[0]])
    with pytest.raises(DatasetError, match="has no seen flags"):
        PreparedDataset(BENCHMARKS["cityscapes_train"], tmp_path, SEEN_ONLY)


def test_supervised_training_knows_no_unseen_class(tmp_path: Path) -> None:
    put(tmp_path, "voc_train", "a", [[16, 17]])
    dataset = catalog.get("voc_train_all", tmp_path)
    assert (dataset.name, len(dataset)) == ("voc_train_all", 1)
    assert dataset.vocabulary.seen is None
    assert dataset.vocabulary.shown == catalog.get("voc_train", tmp_path).vocabulary.shown
    assert training_vocabulary(dataset) == dataset.vocabulary


def test_the_index_of_classes_is_kept_and_follows_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "val"
    write_label_png(folder / "a.png", np.array([[3, 300, -1]]), void=65535)
    assert presence.classes_present(folder, 65535) == {"a": (3, 300)}
    path = presence.index_path(folder)
    assert json.loads(path.read_text()) == {"a": [3, 300]}
    path.write_text('{"a": [7]}')  # believed: nothing is read again
    assert presence.classes_present(folder, 65535) == {"a": (7,)}
    path.write_text('{"a": [7], "gone": []}')  # other files than there are
    assert presence.classes_present(folder, 65535) == {"a": (3, 300)}
    path.write_text("{")
    assert presence.classes_present(folder, 65535) == {"a": (3, 300)}
    path.write_text('{"a": [7]}')
    os.utime(path, (1, 1))  # older than the folder
    assert presence.classes_present(folder, 65535) == {"a": (3, 300)}


def test_an_index_that_cannot_be_kept_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    write_label_png(tmp_path / "val" / "a.png", np.array([[3]]))
    monkeypatch.setattr(presence, "write_index", refuse)
    assert presence.classes_present(tmp_path / "val", 255) == {"a": (3,)}
    assert "cannot be kept (read-only)" in caplog.text


def test_subsets_reach_the_metrics(tmp_path: Path) -> None:
    put(tmp_path, "coco_stuff_val", "a", [[0, 19, 88, 88]])
    dataset = catalog.get("coco_stuff_val", tmp_path)
    assert isinstance(dataset, PreparedDataset)
    confusion = ConfusionMatrix(171)
    labels = dataset[0].labels
    assert labels is not None
    confusion.update(labels.clone().fill_(88).where(labels > 19, labels), labels, "a")
    found = compute(confusion, dataset.vocabulary, dataset.subsets)
    assert found.subsets["novel_thing"].inside.mIoU == 100.0
    assert set(found.subsets) == {"novel_thing", "novel_stuff"}
