"""Miniature of ADE20K's full data set."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from miniature import Miniature, draw, photo, save

from twostage.data.prepare import ade20k_full

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
