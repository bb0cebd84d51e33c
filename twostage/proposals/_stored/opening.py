"""Which reader a file or folder of masks needs, seen from what lies there."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from twostage.proposals._cache_files import CacheError, read_json
from twostage.proposals._stored.coco import CocoStore
from twostage.proposals._stored.label_studio import LabelStudioStore
from twostage.proposals._stored.npz import NpzStore
from twostage.proposals._stored.png import MaskPngs, RegionPngs, png_files
from twostage.proposals._stored.store import Store

PngLayout = Literal["auto", "regions", "masks"]


def open_store(path: Path, png: PngLayout = "auto", background: Collection[int] = (0,)) -> Store:
    """A folder of .npz or PNG files, or a JSON file of COCO's or Label Studio's kind.

    png: what PNGs are, "regions" (a file an image) or "masks" (a file a mask); "auto": masks where each image
    has a folder, otherwise regions. background: values of region files that are no region.

    Raises:
        CacheError: nothing is there, or nothing that is known.
    """
    if path.is_dir():
        return _open_folder(path, png, background)
    if path.suffix.lower() != ".json":
        raise CacheError(f"{path}: expected a folder of .npz or .png files or a .json file. {HINT}")
    content = read_json(path)
    tasks = _tasks(path, content)
    return CocoStore(path, content) if tasks is None else LabelStudioStore(path, tasks)


HINT = (
    "Make it with twostage proposals, tools/cache_proposals.py or a program of yours (docs/stored_masks.md)."
)


def _open_folder(path: Path, png: PngLayout, background: Collection[int]) -> Store:
    stored = NpzStore(path)
    if stored.ids:
        return stored
    flat = png_files(path)
    inner = [
        one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".") and png_files(one)
    ]
    if flat and inner and png != "regions":
        raise CacheError(
            f"{path}: holds PNGs ({flat[0].name}) and folders of PNGs ({inner[0].name}). Keep one kind: a "
            "file an image, or a folder an image."
        )
    if png == "masks" or (png == "auto" and not flat):
        return MaskPngs(path)
    return RegionPngs(path, background)


def _tasks(path: Path, content: Any) -> list[Any] | None:
    """Label Studio's tasks, None where the file is none of its exports."""
    if isinstance(content, dict) and isinstance(content.get("data"), dict):
        return [content]
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    first = content[0]
    if "data" in first:
        return content
    if "image_id" not in first and ("annotator" in first or "annotation_id" in first):
        raise CacheError(
            f"{path}: this is Label Studio's JSON-MIN, which leaves parts out. Export as JSON instead."
        )
    return None
