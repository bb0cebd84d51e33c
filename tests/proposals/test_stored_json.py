"""COCO and Label Studio exports: every kind of region, every way an image is called, every mistake."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_stored_shapes import brush, packed

from twostage.data import rle
from twostage.proposals._cache_files import CacheError
from twostage.proposals.cached import CachedConfig, CachedProposals
from twostage.types import Proposals

HEIGHT, WIDTH = 20, 30
SIZE = (HEIGHT, WIDTH)


def opened(folder: Path, content: Any, **options: Any) -> CachedProposals:
    path = folder / "masks.json"
    path.write_text(json.dumps(content))
    return CachedProposals(CachedConfig(str(path), **options))


def read(store: CachedProposals, name: str, size_hw: tuple[int, int] = SIZE) -> Proposals:
    return store.propose_for([name], [size_hw])[0]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def same(found: Proposals, expected: Sequence[np.ndarray]) -> None:
    assert found.masks.dtype == torch.bool
    assert np.array_equal(found.masks.numpy(), np.stack(list(expected)))


def export(**more: Any) -> dict[str, Any]:
    """Three images: polygons, crowds and boxes; none; one in a folder."""
    images = [
        {"id": 1, "file_name": "dog.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT},
        {"id": 30, "file_name": "train/000000000007.jpg", "width": WIDTH, "height": HEIGHT},
    ]
    annotations: list[dict[str, Any]] = [
        {"id": 5, "image_id": 1, "segmentation": [[2, 3, 10, 3, 10, 8, 2, 8], [20, 1, 25, 1, 25, 4, 20, 4]]},
        {
            "image_id": 1,
            "iscrowd": 1,
            "segmentation": rle.encode(box(1, 2, 5, 9), compress=False),
            "score": 0.25,
        },
        {"image_id": 1, "segmentation": [], "bbox": [4, 6, 10, 5], "score": None},
        {"image_id": 30, "segmentation": rle.encode(box(0, 0, 20, 3))},
        {"image_id": 30, "segmentation": [0, 0, 6, 0, 6, 2, 0, 2]},
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}], **more}


def test_a_coco_export(tmp_path: Path) -> None:
    store = opened(tmp_path, export())
    dog = read(store, "dog")
    same(dog, [box(3, 2, 8, 10) | box(1, 20, 4, 25), box(1, 2, 5, 9), box(6, 4, 11, 14)])
    assert dog.scores.tolist() == [1.0, 0.25, 1.0]
    assert dog.source == "cached"
    same(read(store, "000000000007"), [box(0, 0, 20, 3), box(0, 0, 2, 6)])
    assert read(store, "empty").masks.shape == (0, *SIZE)


@pytest.mark.parametrize("name", ["000000000007", "30", "7", "train/000000000007.jpg"])
def test_an_image_of_an_export_by_stem_id_and_file(tmp_path: Path, name: str) -> None:
    assert len(read(opened(tmp_path, export()), name)) == 2


def test_stems_that_repeat_go_by_their_folder(tmp_path: Path) -> None:
    content = export()
    content["images"][1]["file_name"] = "val/dog.jpg"
    content["images"][0]["file_name"] = "train/dog.jpg"
    store = opened(tmp_path, content)
    assert len(read(store, "train/dog")) == 3
    assert len(read(store, "val/dog")) == 0
    with pytest.raises(CacheError, match=r"no proposals for image 'dog'\. Did you mean '(train|val)/dog'"):
        read(store, "dog")


def test_masks_are_scaled_but_never_stretched_or_turned(tmp_path: Path) -> None:
    store = opened(tmp_path, export())
    doubled = read(store, "dog", (40, 60)).masks[1]
    assert torch.equal(
        doubled, torch.from_numpy(box(1, 2, 5, 9)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    with pytest.raises(
        CacheError, match=r"image 'dog' is 200 x 300 \(width x height\).*masks are 30 x 20.*changed"
    ):
        read(store, "dog", (300, 200))
    with pytest.raises(CacheError, match=r"'empty' is 300 x 300 .* masks are 30 x 20.*another picture"):
        read(store, "empty", (300, 300))


def broken(change: str) -> Any:
    """An export with one thing wrong."""
    content = export()
    first, second, third, fourth, _ = content["annotations"]
    if change == "points":
        first["segmentation"] = [[1, 2, 3, 4]]
    elif change == "runs":
        second["segmentation"]["counts"][0] += 1
    elif change == "string":
        fourth["segmentation"]["counts"] = "~~"
    elif change == "box":
        third["bbox"] = [1, 2]
    elif change == "kind":
        first["segmentation"] = "polygon"
    elif change == "size":
        second["segmentation"] = rle.encode(np.zeros((5, 5), bool))
    elif change == "stranger":
        first["image_id"] = 77
    elif change == "unnamed":
        del content["images"][0]["id"]
    elif change == "twice":
        content["images"][1]["file_name"] = "dog.jpg"
    elif change == "width":
        content["images"][0]["width"] = "wide"
    elif change == "no size":
        del content["images"][0]["width"], content["images"][0]["height"]
    elif change == "score":
        first["score"] = "high"
    return content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("points", "image 'dog', entry 0: part 0: a polygon needs at least three points"),
        ("runs", "image 'dog', entry 1: decode: the runs cover 601 pixels"),
        ("string", "image '000000000007', entry 3: The compressed counts"),
        ("box", "image 'dog', entry 2: an entry has neither an outline nor a bbox"),
        ("kind", "image 'dog', entry 0: expected a polygon or a run-length encoding, got str"),
        ("size", r"Masks of image 'dog' have different sizes: \[\(5, 5\), \(20, 30\)\]"),
        ("stranger", "entry 0 belongs to image '77', which is not in the list"),
        ("unnamed", "expected images as a list of entries with id"),
        ("twice", "two images are called 'dog.jpg'"),
        ("width", "image 1: expected width and height in pixels"),
        ("no size", "entry 0 is a polygon, and nothing says how large"),
        ("score", "image 'dog', entry 0: could not convert string to float"),
    ],
)
def test_broken_exports(tmp_path: Path, change: str, says: str) -> None:
    def use() -> None:
        store = opened(tmp_path, broken(change))
        for name in ("dog", "000000000007"):
            read(store, name)

    with pytest.raises(CacheError, match=rf"masks\.json: {says}"):
        use()


def region(kind: str, **value: Any) -> dict[str, Any]:
    return {
        "id": "r1",
        "type": kind,
        "from_name": "tag",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {kind: ["Dog"], **value},
    }


STROKE = box(4, 7, 15, 9)


def brushed(**more: Any) -> dict[str, Any]:
    rle_of_it = packed(brush(STROKE * 255))
    return {**region("brushlabels", format="rle", rle=rle_of_it), **more}


def rectangle(top: int, left: int, bottom: int, right: int, rotation: float = 0) -> dict[str, Any]:
    return region(
        "rectanglelabels",
        x=100 * left / WIDTH,
        y=100 * top / HEIGHT,
        width=100 * (right - left) / WIDTH,
        height=100 * (bottom - top) / HEIGHT,
        rotation=rotation,
    )


def task(number: int, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"image": f"/data/upload/3/0a1b2c3d-photo{number}.jpg"},
        "file_upload": f"0a1b2c3d-photo{number}.jpg",
        "annotations": [{"id": 1, "was_cancelled": False, "result": list(results)}],
        "predictions": [],
        **more,
    }


def test_regions_of_label_studio(tmp_path: Path) -> None:
    triangle = region("polygonlabels", points=[[0, 0], [50, 0], [50, 100], [0, 100]], closed=True)
    store = opened(tmp_path, [task(1, brushed(), triangle, rectangle(2, 3, 12, 18)), task(2)])
    found = read(store, "photo1")
    same(found, [STROKE, box(0, 0, 20, 15), box(2, 3, 12, 18)])
    assert found.scores.tolist() == [1, 1, 1]
    assert found.source == "cached"
    assert read(store, "photo2", (7, 9)).masks.shape == (0, 7, 9)


def test_a_rectangle_turns_clockwise_about_its_corner(tmp_path: Path) -> None:
    """A quarter turn of one at (left 12, top 3), 8 wide and 4 high, hangs down to the left of its corner."""
    store = opened(tmp_path, [task(1, rectangle(3, 12, 7, 20, 90))])
    same(read(store, "photo1"), [box(3, 8, 11, 12)])


def test_an_ellipse(tmp_path: Path) -> None:
    round_one = region("ellipselabels", x=50, y=50, radiusX=100 * 9 / WIDTH, radiusY=100 * 5 / HEIGHT)
    turned = region("ellipse", x=50, y=50, radiusX=100 * 5 / WIDTH, radiusY=100 * 9 / HEIGHT, rotation=90)
    found = read(opened(tmp_path, [task(1, round_one, turned)]), "photo1").masks
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected = ((columns - 15) / 9) ** 2 + ((rows - 10) / 5) ** 2 <= 1
    assert np.array_equal(found[0].numpy(), expected)
    assert np.array_equal(found[1].numpy(), expected)


@pytest.mark.parametrize(
    ("data", "upload", "names"),
    [
        ({"image": "/data/upload/3/0a1b2c3d-dog.jpg"}, "0a1b2c3d-dog.jpg", ["dog", "0a1b2c3d-dog", "11"]),
        ({"image": "/data/upload/3/0a1b2c3d-dog.jpg"}, None, ["dog", "0a1b2c3d-dog.jpg"]),
        ({"image": "https://example.com/a/dog%20two.jpg?token=x.y"}, None, ["dog two"]),
        ({"image": "s3://bucket/folder/dog.png"}, None, ["dog", "dog.png"]),
        ({"image": "/data/local-files/?d=photos/dog.jpg"}, None, ["dog"]),
        ({"photo": "dog.jpg", "caption": "a dog"}, None, ["dog"]),
    ],
)
def test_what_an_image_of_label_studio_is_called(
    tmp_path: Path, data: dict[str, str], upload: str | None, names: list[str]
) -> None:
    one = task(11, brushed(), data=data, file_upload=upload)
    for content in ([one], one):
        for name in names:
            same(read(opened(tmp_path, content), name), [STROKE])


def test_uploads_of_one_name_go_by_their_prefix(tmp_path: Path) -> None:
    tasks = [task(n, *[brushed()] * n, file_upload=f"{n:08x}-dog.jpg") for n in (1, 2)]
    store = opened(tmp_path, tasks)
    assert [len(read(store, f"{n:08x}-dog")) for n in (1, 2)] == [1, 2]
    tasks[1]["file_upload"] = tasks[0]["file_upload"]
    with pytest.raises(CacheError, match=r"two tasks are of the image '00000001-dog\.jpg'"):
        opened(tmp_path, tasks)


def test_whose_regions_count(tmp_path: Path) -> None:
    """All annotators' but cancelled ones; a model's only where nobody annotated."""
    model = {"score": 0.75, "result": [brushed(), brushed(score=0.5)]}
    mine, yours = {"result": [rectangle(0, 0, 5, 5)]}, {"result": [rectangle(5, 5, 9, 9)]}
    gone = {"was_cancelled": True, "result": [rectangle(1, 1, 2, 2)]}
    tasks = [
        task(1, annotations=[mine, gone, yours], predictions=[model]),
        task(2, annotations=[gone], predictions=[model]),
        task(3, annotations=[], predictions=[]),
    ]
    store = opened(tmp_path, tasks)
    same(read(store, "photo1"), [box(0, 0, 5, 5), box(5, 5, 9, 9)])
    predicted = read(store, "photo2")
    same(predicted, [STROKE, STROKE])
    assert predicted.scores.tolist() == [0.75, 0.5]
    assert len(read(store, "photo3")) == 0


def test_percent_need_no_size(tmp_path: Path) -> None:
    """Predictions of other programs lack original_width: their regions are drawn at the size asked for."""
    bare = {"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 50, "height": 100}}
    found = read(opened(tmp_path, [task(1, bare)]), "photo1", (4, 6))
    assert found.masks.tolist() == [[[True] * 3 + [False] * 3] * 4]


def test_what_is_no_mask_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    point = region("keypointlabels", x=1, y=1, width=1)
    store = opened(tmp_path, [task(1, relation, choice, point, brushed())])
    with caplog.at_level(logging.WARNING, "twostage"):
        same(read(store, "photo1"), [STROKE])
    assert "keypointlabels are no masks" in caplog.text
    assert "choices" not in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            [task(1, region("brushlabels", format="rle", rle=packed(brush(STROKE * 255))[:-9]))],
            r"image 'photo1', region 'r1' \(brushlabels\): brush: the runs end in the middle",
        ),
        ([task(1, brushed(original_width=29))], "speaks of 2400 words, 29 x 20 pixels of RGBA have 2320"),
        ([task(1, brushed(), brushed(original_height=19))], "have different sizes"),
        ([task(1, brushed(image_rotation=90))], "drawn on the photo turned by 90 degrees"),
        ([task(1, region("polygonlabels", points=[[1, 1], [2, 2]]))], "at least three points"),
        ([task(1, region("rectanglelabels", x=1, y=1))], "lacks 'width'"),
        ([task(1, region("rectanglelabels", x=1, y=1, width="a", height=2))], "could not convert"),
        ([{"data": {}, "annotations": []}], "task 0: expected one image in its data, found 0 among nothing"),
        ([task(1), {"id": 2}], "task 1 has no data"),
        ([task(1, annotations=[17, 18])], "its annotations were left out"),
        ([{"id": 1, "image": "/data/x.jpg", "annotator": 1, "tag": []}], "JSON-MIN"),
    ],
)
def test_broken_exports_of_label_studio(tmp_path: Path, content: list[Any], says: str) -> None:
    with pytest.raises(CacheError, match=rf"masks\.json: .*{says}"):
        read(opened(tmp_path, content), "photo1")
