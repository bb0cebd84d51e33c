"""Every data set from its published form to label maps, compared with a pixel-by-pixel mapping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from miniature import MakeTree, Miniature
from miniatures import BUILDERS
from PIL import Image

from twostage.data import catalog, presence
from twostage.data.errors import DatasetError
from twostage.data.prepare.plan import Request
from twostage.data.prepare.run import prepare

NAMES = list(BUILDERS)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image).astype(np.int64)


def folders(tree: Miniature) -> set[Path]:
    return {path.parent for path in tree.expected}


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_a_slow_mapping(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    prepare(tree.plan(Request(tree.root)))
    made = {path for folder in folders(tree) for path in folder.iterdir()}
    assert made == set(tree.expected)
    for path, labels in tree.expected.items():
        np.testing.assert_array_equal(read(path), labels, err_msg=str(path))


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_bits_they_need(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    prepare(tree.plan(Request(tree.root)))
    for path in tree.expected:
        bits, colour = path.read_bytes()[24:26]
        assert (bits, colour) == (8 if tree.void == 255 else 16, 0)


@pytest.mark.parametrize("name", NAMES)
def test_index_and_histogram_count_what_is_there(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    reports = prepare(tree.plan(Request(tree.root)))
    for folder, report in zip(sorted(folders(tree)), reports, strict=True):
        maps = {path.stem: labels for path, labels in tree.expected.items() if path.parent == folder}
        index = json.loads((folder.parent / f"{folder.name}.json").read_text())
        assert index == {stem: sorted(set(m.flat) - {tree.void}) for stem, m in maps.items()}
        stored = json.loads((folder.parent / f"{folder.name}.histogram.json").read_text())
        for one in stored["classes"]:
            assert one["pixels"] == sum(int((m == one["id"]).sum()) for m in maps.values())
            assert one["images"] == sum(bool((m == one["id"]).any()) for m in maps.values())
        assert stored["ignored_pixels"] == sum(int((m == tree.void).sum()) for m in maps.values())
        assert stored["maps"] == len(maps) == report.tally.written


@pytest.mark.parametrize("name", NAMES)
def test_the_readers_take_what_is_prepared(
    make_tree: MakeTree, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(name)
    prepare(tree.plan(Request(tree.root)))
    monkeypatch.setattr(presence, "read_label_png", None)  # the index that is there is good enough
    for split, photos in tree.splits.items():
        dataset = catalog.get(split, str(tree.root))
        assert len(dataset) == photos
        present = dataset.classes_present()
        for place in range(photos):
            labels = dataset[place].labels.numpy()
            assert labels.shape == dataset[place].image.shape[1:]
            assert tuple(sorted(set(labels.flat) - {-1})) == present[place]


def test_a_map_without_any_class_is_kept(make_tree: MakeTree) -> None:
    tree = make_tree("coco_stuff")
    train, _ = prepare(tree.plan(Request(tree.root)))
    assert train.tally.without_class == 1
    assert "1 maps have no class at all" in train.format()
    assert (read(tree.root / "coco/labels_171/train2017/000000000010.png") == 255).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_finished_is_not_made_again(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    prepare(tree.plan(Request(tree.root)))
    before = {path: path.stat().st_mtime_ns for path in tree.expected}
    gone = sorted(tree.expected)[0]
    gone.unlink()
    reports = prepare(tree.plan(Request(tree.root)))
    assert sum(report.tally.written for report in reports) == 1
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [gone]
    assert sum(report.tally.written for report in prepare(tree.plan(Request(tree.root)))) == 0
    forced = prepare(tree.plan(Request(tree.root)), force=True)
    assert sum(report.tally.written for report in forced) == len(tree.expected)


@pytest.mark.parametrize("name", NAMES)
def test_checking_writes_nothing_and_sees_a_changed_map(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    with pytest.raises(DatasetError, match="not prepared yet"):
        prepare(tree.plan(Request(tree.root)), check_only=True)
    assert not any(folder.exists() for folder in folders(tree))
    prepare(tree.plan(Request(tree.root)))
    prepare(tree.plan(Request(tree.root)), check_only=True)
    path = sorted(tree.expected)[-1]
    labels = read(path)
    labels[0, 0] = 1 if labels[0, 0] == 0 else 0
    Image.fromarray(labels.astype(np.uint8 if tree.void == 255 else np.uint16)).save(path)
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=f"{path.name}: differs from what"):
        prepare(tree.plan(Request(tree.root)), check_only=True)
    assert path.read_bytes() == before


def test_checking_sees_an_index_that_says_otherwise(make_tree: MakeTree) -> None:
    tree = make_tree("voc")
    prepare(tree.plan(Request(tree.root)))
    (tree.root / "VOC2012/labels_20/val.json").write_text("{}")
    with pytest.raises(DatasetError, match="does not say what the label maps hold"):
        prepare(tree.plan(Request(tree.root)), check_only=True)


def test_one_split_alone_needs_only_its_own_files(make_tree: MakeTree) -> None:
    tree = make_tree("ade20k_150")
    for path in (tree.root / "ADEChallengeData2016/images/training").iterdir():
        path.unlink()
    (report,) = prepare(tree.plan(Request(tree.root, ("validation",))))
    assert report.split.title == "ade20k_150_val"
    assert len(report.tally.present) == 2


def test_several_processes_make_the_same(make_tree: MakeTree) -> None:
    tree = make_tree("ade20k_150")
    folder = tree.root / "ADEChallengeData2016"
    for number in range(40):
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            original = sorted((folder / kind / "validation").glob(f"*.{ending}"))[0]
            (original.parent / f"extra_{number}.{ending}").write_bytes(original.read_bytes())
    seen: list[tuple[str, int, int]] = []
    request = Request(tree.root, ("validation",), allow_partial=True)
    (report,) = prepare(tree.plan(request), workers=2, progress=lambda *args: seen.append(args))
    assert seen == [("ade20k_150_val", done, 42) for done in range(1, 43)]
    first = sorted(folder.glob("labels_150/validation/ADE*.png"))[0]
    copies = list(folder.glob("labels_150/validation/extra_*.png"))
    assert len(copies) == 40
    assert {path.read_bytes() for path in copies} == {first.read_bytes()}
    assert report.tally.written == 42
