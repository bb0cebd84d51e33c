"""Miniature copies of the benchmark data sets, in the folders and file formats of the published archives.

With each come the label maps that have to come out, by plain dictionaries and loops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from twostage.data.prepare import ade20k, ade20k_full, cityscapes, coco_stuff, pascal_context, voc
from twostage.data.prepare.plan import Request, Split

Plan = Callable[[Request], list[Split]]

COCO_IDS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)]
COCO_IDS += list(range(92, 183))
CITYSCAPES = dict(
    zip(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        range(19),
        strict=True,
    )
)
CONTEXT_59 = (
    "2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98 104 105 113 115 144 158 159 162 187 189 "
    "207 220 232 258 259 260 284 295 296 308 324 326 347 349 354 355 360 366 368 397 415 416 420 424 427 "
    "440 445 454 458"
)
CONTEXT_OF = {int(number): place for place, number in enumerate(CONTEXT_59.split())}


@dataclass
class Miniature:
    """A tree below `root`. splits: catalog name -> photos; expected: path of each label map -> its values."""

    root: Path
    plan: Plan
    splits: dict[str, int]
    void: int = 255
    expected: dict[Path, np.ndarray] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)


MakeTree = Callable[[str], Miniature]


def slowly(raw: np.ndarray, mapping: dict[int, int], void: int) -> np.ndarray:
    """Pixel by pixel."""
    out = np.empty(raw.shape, dtype=np.int64)
    for row in range(raw.shape[0]):
        for column in range(raw.shape[1]):
            out[row, column] = mapping.get(int(raw[row, column]), void)
    return out


def draw(values: list[int], seed: int, shape: tuple[int, int] = (5, 7)) -> np.ndarray:
    """Random values of the list."""
    return np.random.default_rng(seed).choice(np.array(values), size=shape)


def save(path: Path, array: np.ndarray, kind: str = "L") -> None:
    """An 8-bit PNG, grey or (kind P) with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.astype(np.uint8))
    if kind == "P":
        image.putpalette([value % 256 for value in range(768)])
    image.save(path)


def photo(path: Path, shape: tuple[int, int]) -> None:
    """A photo of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def coco(root: Path) -> Miniature:
    """Values are COCO ids less one; the second map of train has no class at all."""
    tree = Miniature(root, coco_stuff.plan, {"coco_stuff_train": 4, "coco_stuff_val": 2})
    mapping = {number - 1: place for place, number in enumerate(COCO_IDS)}
    for split, count in (("train2017", 4), ("val2017", 2)):
        for number in range(count):
            stem, empty = f"{number + 9:012d}", split == "train2017" and number == 1
            raw = draw([255, 11, 90] if empty else [0, 12, 20, 89, 91, 181, 255, 11, 90], number)
            add(
                tree,
                f"coco/stuffthingmaps/{split}/{stem}.png",
                raw,
                mapping,
                f"coco/labels_171/{split}/{stem}",
            )
            photo(root / f"coco/{split}/{stem}.jpg", raw.shape)
    return tree


def add(tree: Miniature, source: str, raw: np.ndarray, mapping: dict[int, int], target: str) -> None:
    """One annotation as a grey PNG, and what has to become of it."""
    save(tree.root / source, raw)
    tree.sources.append(tree.root / source)
    tree.expected[tree.root / f"{target}.png"] = slowly(raw, mapping, tree.void)


def voc2012(root: Path) -> Miniature:
    """Augmented masks are grey, the challenge's own have a palette; lists name paths as some copies do."""
    tree = Miniature(root, voc.plan, {"voc_train": 3, "voc_val": 2})
    names = {
        "train_aug": ["2007_000032", "2008_000033", "2011_003276"],
        "val": ["2007_000033", "2007_000042"],
    }
    mapping = {number: number - 1 for number in range(1, 21)}
    folder = root / "VOC2012"
    for split, stems in names.items():
        for number, stem in enumerate(stems):
            raw = draw([0, 1, 15, 20, 255], number)
            add(
                tree,
                f"VOC2012/SegmentationClassAug/{stem}.png",
                raw,
                mapping,
                f"VOC2012/labels_20/{split}/{stem}",
            )
            photo(folder / "JPEGImages" / f"{stem}.jpg", raw.shape)
    lines = [f"/JPEGImages/{stem}.jpg /SegmentationClassAug/{stem}.png" for stem in names["train_aug"]]
    (folder / "train_aug.txt").write_text("\n".join(lines) + "\n")
    (folder / "val.txt").write_text("\n".join(names["val"]) + "\n")
    return tree


def ade(root: Path) -> Miniature:
    """Values 0..150."""
    tree = Miniature(root, ade20k.plan, {"ade20k_150_train": 3, "ade20k_150_val": 2})
    base = "ADEChallengeData2016"
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(1, count + 1):
            stem = f"ADE_{short}_{number:08d}"
            raw, mapping = draw([0, 1, 77, 150], number), {value: value - 1 for value in range(1, 151)}
            add(
                tree,
                f"{base}/annotations/{split}/{stem}.png",
                raw,
                mapping,
                f"{base}/labels_150/{split}/{stem}",
            )
            photo(root / base / "images" / split / f"{stem}.jpg", raw.shape)
    return tree


def streets(root: Path) -> Miniature:
    """A folder a city, four files an annotation as in the archive."""
    tree = Miniature(root, cityscapes.plan, {"cityscapes_train": 3, "cityscapes_val": 1})
    for split, city, count in (("train", "aachen", 2), ("train", "ulm", 1), ("val", "munster", 1)):
        for number in range(count):
            stem = f"{city}_{number:06d}_000019"
            raw = draw([0, 6, 7, 11, 18, 19, 29, 33, 255], number)
            place = f"cityscapes/gtFine/{split}/{city}/{stem}_gtFine"
            add(tree, f"{place}_labelIds.png", raw, CITYSCAPES, f"cityscapes/labels_19/{split}/{stem}")
            save(root / f"{place}_labelTrainIds.png", slowly(raw, CITYSCAPES, 255))
            save(root / f"{place}_color.png", raw)
            (root / f"{place}_polygons.json").write_text("{}")
            photo(root / f"cityscapes/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", raw.shape)
    return tree


def slow_rle(mask: np.ndarray) -> str:
    """COCO's compressed counts, letter by letter."""
    counts, last, run = [], False, 0
    for value in mask.T.reshape(-1).tolist():
        if value != last:
            counts.append(run)
            last, run = value, 0
        run += 1
    counts.append(run)
    text = ""
    for place, count in enumerate(counts):
        rest = count - counts[place - 2] if place > 2 else count
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != -1 if bits & 16 else rest != 0
            text += chr(bits + (32 if more else 0) + 48)
            if not more:
                break
    return text


def context_file(photos: dict[str, tuple[str, np.ndarray]], names: dict[int, str]) -> dict[str, Any]:
    """stem -> (phase, category ids) as the JSON of the challenge has it."""
    images, annotations = [], []
    for stem, (phase, values) in photos.items():
        number, size = int(stem.replace("_", "")), list(values.shape)
        images.append(
            {
                "file_name": f"{stem}.jpg",
                "height": size[0],
                "width": size[1],
                "image_id": number,
                "phase": phase,
            }
        )
        for category in sorted(set(values.reshape(-1).tolist()) - {0}):
            mask = values == category
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "area": int(mask.sum()),
                    "bbox": [0, 0, size[1], size[0]],
                    "iscrowd": 0,
                    "segmentation": {"size": size, "counts": slow_rle(mask)},
                    "parts": [],
                }
            )
    categories = [
        {"category_id": number, "name": name, "supercategory": "x"} for number, name in names.items()
    ]
    return {
        "info": {},
        "images": images,
        "annos_segmentation": annotations,
        "annos_bbox": [],
        "annos_joints": [],
        "annos_occlusion": [],
        "annos_boundary": [],
        "categories": categories,
        "parts": [],
    }


CONTEXT_PHOTOS = {"2008_000002": "val", "2008_000003": "train", "2008_000007": "val", "2009_000009": "train"}
CONTEXT_NAMES = {2: "aeroplane", 59: "car", 284: "person", 397: "table", 420: "tree", 458: "wood"}


def context(root: Path) -> Miniature:
    """trainval_merged.json; the challenge's test photos are listed in it without masks."""
    tree = Miniature(root, pascal_context.plan, {"pascal_context_59_train": 2, "pascal_context_59_val": 2})
    folder = root / "VOC2010"
    photos = {}
    for number, (stem, phase) in enumerate(CONTEXT_PHOTOS.items()):
        raw = draw([0, 2, 59, 284, 458, 459, 1], number, (6, 40))
        photos[stem] = (phase, raw)
        photo(folder / "JPEGImages" / f"{stem}.jpg", raw.shape)
        tree.expected[folder / "labels_59" / phase / f"{stem}.png"] = slowly(raw, CONTEXT_OF, 255)
    photos["2010_000001"] = ("test", np.zeros((4, 4), dtype=np.int64))
    tree.sources = [folder / "trainval_merged.json"]
    tree.sources[0].write_text(json.dumps(context_file(photos, CONTEXT_NAMES)))
    return tree


def context_matlab(root: Path) -> Miniature:
    """459 classes from a MATLAB file a photo, the splits from VOC's own lists."""
    splits = {"pascal_context_459_train": 2, "pascal_context_459_val": 2}
    tree = Miniature(root, lambda request: pascal_context.plan(request, (459,)), splits, void=65535)
    folder = root / "VOC2010"
    lists: dict[str, list[str]] = {"train": [], "val": []}
    (folder / "trainval").mkdir(parents=True)
    for number, (stem, phase) in enumerate(CONTEXT_PHOTOS.items()):
        raw = draw([1, 2, 255, 256, 459] if number else [1, 2, 300, 459], number)
        savemat(folder / "trainval" / f"{stem}.mat", {"LabelMap": raw.astype(np.uint16)})
        tree.sources.append(folder / "trainval" / f"{stem}.mat")
        photo(folder / "JPEGImages" / f"{stem}.jpg", raw.shape)
        tree.expected[folder / "labels_459" / phase / f"{stem}.png"] = raw - 1
        lists[phase].append(stem)
    for phase, stems in lists.items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{phase}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return tree


OBJECTS = {
    2978: "wall",
    312: "building, edifice",
    2836: "traffic light, traffic signal, stoplight",
    40: "nonsuch",
}
OBJECT_CLASS = {2978: 0, 312: 1}
"""The last of them is no class; that of the traffic light is looked up in the published list."""


def ade_full(root: Path) -> Miniature:
    """*_seg.png in three channels, names in a .json; small photos stay, large ones shrink."""
    splits = {"ade20k_847_train": 2, "ade20k_847_val": 2}
    tree = Miniature(root, ade20k_full.plan, splits, void=65535)
    base = root / "ADE20K_2021_17_01"
    words = json.loads(
        (Path(ade20k_full.__file__).parents[1] / "vocabularies" / "ade20k_847.json").read_text(
            encoding="utf-8"
        )
    )["classes"]
    mapping = OBJECT_CLASS | {2836: next(one["id"] for one in words if one["name"] == OBJECTS[2836])}
    sizes = {"training": [(5, 7), (600, 514)], "validation": [(900, 20), (6, 6)]}
    for split, shapes in sizes.items():
        for number, shape in enumerate(shapes, start=1):
            stem = f"ADE_{'train' if split == 'training' else 'val'}_{number:08d}"
            place = base / "images" / "ADE" / split / "urban" / f"street_{number}"
            raw = draw([0, *OBJECTS], number, shape)
            seg = np.stack([raw // 256 * 10, raw % 256, np.arange(raw.size).reshape(shape) % 200], axis=2)
            save(place / f"{stem}_seg.png", seg)
            save(place / f"{stem}_parts_1.png", seg)
            save(place / stem / f"instance_000_{stem}.png", raw > 0)
            photo(place / f"{stem}.jpg", shape)
            (place / f"{stem}.json").write_bytes(object_file(stem, shape))
            if shape == (600, 514):
                raw = shrunk(raw, (598, 512))
            tree.expected[base / "labels_847" / split / f"{stem}.png"] = labels_of(raw, mapping)
            tree.sources.append(place / f"{stem}_seg.png")
    return tree


def shrunk(raw: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The pixel that lies under the centre of each new one, in exact fractions."""
    rows, columns = (
        [math.floor(Fraction(2 * place + 1, 2) * Fraction(old, new)) for place in range(new)]
        for old, new in zip(raw.shape, size_hw, strict=True)
    )
    return np.array([[raw[row, column] for column in columns] for row in rows])


def labels_of(raw: np.ndarray, mapping: dict[int, int]) -> np.ndarray:
    """Class by class: the large photo has too many pixels to go one by one."""
    labels = np.full(raw.shape, 65535, dtype=np.int64)
    for number, place in mapping.items():
        labels[raw == number] = place
    return labels


def object_file(stem: str, shape: tuple[int, int]) -> bytes:
    """The .json beside a photo; somebody's name in it is not UTF-8."""
    objects = [
        {
            "id": place,
            "name": name,
            "name_ndx": number,
            "hypernym": [name, "entity"],
            "raw_name": name.split(",")[0],
            "attributes": [],
            "parts": {"hasparts": [], "ispartof": [], "part_level": 0},
            "polygon": {"x": [0, 1], "y": [0, 1]},
        }
        for place, (number, name) in enumerate(OBJECTS.items())
    ]
    annotation = {"filename": f"{stem}.jpg", "imsize": [*shape, 3], "scene": ["urban"], "object": objects}
    annotation["annotator"] = "Andr\u00e9"
    return json.dumps({"annotation": annotation}, ensure_ascii=False).encode("latin-1")


BUILDERS: dict[str, Callable[[Path], Miniature]] = {
    "coco_stuff": coco,
    "voc": voc2012,
    "pascal_context_59": context,
    "pascal_context_459": context_matlab,
    "ade20k_150": ade,
    "ade20k_847": ade_full,
    "cityscapes": streets,
}
