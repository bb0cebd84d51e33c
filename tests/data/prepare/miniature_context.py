"""Miniatures of PASCAL Context: the challenge's JSON file, and a MATLAB file a photo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from miniature import Miniature, draw, photo, slowly
from scipy.io import savemat

from twostage.data.prepare import pascal_context

CONTEXT_59 = (
    "2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98 104 105 113 115 144 158 159 162 187 189 "
    "207 220 232 258 259 260 284 295 296 308 324 326 347 349 354 355 360 366 368 397 415 416 420 424 427 "
    "440 445 454 458"
)
CONTEXT_OF = {int(number): place for place, number in enumerate(CONTEXT_59.split())}


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
