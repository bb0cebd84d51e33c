"""Any data set as a plain folder: images, PNG masks and classes.json, which `folder:` reads back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from twostage.data.atomic import replacing
from twostage.data.image_io import write_label_png
from twostage.data.sample import SegmentationDataset
from twostage.data.shapes.dataset import ShapesDataset


def export_folder(
    dataset: SegmentationDataset,
    out: str | Path,
    split: str,
    count: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `count` samples (None: all) as OUT/images/SPLIT/*.png, OUT/masks/SPLIT/*.png, OUT/classes.json.

    The drawn scenes also get OUT/captions/SPLIT.json, a caption for each image. Files that exist are written
    again; progress is called with (done, total).
    """
    out = Path(out)
    total = len(dataset) if count is None else min(count, len(dataset))
    vocabulary = dataset.vocabulary
    void = 255 if max(vocabulary.label_ids) < 255 else 65535
    stored = np.array([*vocabulary.label_ids, -1], np.int64)
    captions: dict[str, str] = {}
    for index in range(total):
        sample = dataset[index]
        with replacing(out / "images" / split / f"{sample.image_id}.png") as stream:
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(stream, format="PNG")
        if sample.labels is not None:
            write_label_png(
                out / "masks" / split / f"{sample.image_id}.png", stored[sample.labels.numpy()], void=void
            )
        if isinstance(dataset, ShapesDataset):
            captions[sample.image_id] = dataset.scene(index).caption()
        if progress is not None:
            progress(index + 1, total)
    classes: list[dict[str, object]] = [
        {"id": number, "name": list(names) if len(names) > 1 else names[0]}
        for number, names in zip(vocabulary.label_ids, vocabulary.names, strict=True)
    ]
    for entry, flag in zip(classes, vocabulary.seen or (), strict=False):
        entry["seen"] = flag
    _write_json(out / "classes.json", {"ignore": void, "classes": classes})
    if captions:
        _write_json(out / "captions" / f"{split}.json", captions)
    return out


def _write_json(path: Path, content: object) -> None:
    with replacing(path) as stream:
        stream.write(json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8"))
