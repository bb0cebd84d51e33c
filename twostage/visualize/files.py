"""What `twostage segment` leaves on disk for one photo: an overlay, a label map and a summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from twostage.data.atomic import replacing
from twostage.data.errors import DataError
from twostage.data.image_io import write_label_png
from twostage.types import VOID, Segmentation
from twostage.visualize.overlay import Picture, checked_labels, overlay
from twostage.vocabulary import Vocabulary


@dataclass(frozen=True)
class SegmentationFiles:
    """Where the three files of one photo are."""

    overlay: Path
    labels: Path
    summary: Path


def write_segmentation(
    out_dir: str | Path,
    stem: str,
    image: Tensor,
    segmentation: Segmentation,
    vocabulary: Vocabulary,
    facts: Mapping[str, Any] | None = None,
) -> SegmentationFiles:
    """Write STEM_overlay.png, STEM_labels.png and STEM.json; each file is whole or not there.

    The summary is written last and an older one removed first, so that where it is, it speaks of the two
    pictures beside it. facts: plain data to keep in it as "made_of", what the files were made of.

    The label map holds the vocabulary's label ids, 8 bits where they and the code of void fit, otherwise
    16; void is 255 or 65535, as the summary says. image: (3, H, W) uint8 RGB of the segmentation's size;
    stem: the photo's name without its ending, folders allowed ("holiday/beach"). Equal stems overwrite each
    other: that is the caller's to avoid.

    Raises:
        DataError: a stem that leaves out_dir, or label ids that 16 bits do not hold.
        LabelError: labels of another size than the image, or outside the vocabulary.
    """
    parts = PurePosixPath(stem).parts
    if not parts or ".." in parts or PurePosixPath(stem).is_absolute():
        raise DataError(f"Output name {stem!r}: expected a name below the output folder.")
    base = Path(out_dir, *parts)
    labels = checked_labels(segmentation.labels, image, len(vocabulary))
    ids, void = _label_ids(vocabulary)
    files = SegmentationFiles(
        *(base.with_name(base.name + end) for end in ("_overlay.png", "_labels.png", ".json"))
    )
    picture = overlay(image, labels, vocabulary)
    files.summary.unlink(missing_ok=True)
    write_picture(files.overlay, picture)
    write_label_png(files.labels, np.where(labels == VOID, VOID, ids[labels]), void=void)
    summary = summarise(segmentation, vocabulary) | {
        "void_code": void,
        "labels_file": files.labels.name,
        "overlay_file": files.overlay.name,
        **({} if facts is None else {"made_of": dict(facts)}),
    }
    with replacing(files.summary) as stream:
        stream.write((json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    return files


def summarise(segmentation: Segmentation, vocabulary: Vocabulary) -> dict[str, Any]:
    """Size, the classes present (largest first) with pixels, share in 0..1 and score, and the share of
    void.

    score: mean confidence over the class's pixels, 0..1, None where the segmentation has no confidence.
    """
    labels = segmentation.labels.cpu()
    height, width = labels.shape
    counts = torch.bincount(labels.flatten().long() + 1, minlength=len(vocabulary) + 1).tolist()
    void, *pixels = counts
    present = sorted((k for k, count in enumerate(pixels) if count), key=lambda k: -pixels[k])
    return {
        "height": height,
        "width": width,
        "classes": [
            {
                "name": vocabulary.shown[k],
                "synonyms": list(vocabulary.names[k][1:]),
                "id": vocabulary.label_ids[k],
                "pixels": pixels[k],
                "share": pixels[k] / labels.numel(),
                "score": _score(segmentation, labels, k),
            }
            for k in present
        ],
        "void_pixels": void,
        "void_share": void / labels.numel(),
        "vocabulary_digest": vocabulary.digest,
        "info": {key: _plain(value) for key, value in segmentation.info.items()},
    }


def write_picture(path: str | Path, picture: Picture) -> Path:
    """Write (H, W, 3) uint8 RGB as PNG, whole or not at all."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"{path}: a picture of {picture.shape} {picture.dtype} cannot be written as PNG.")
    with replacing(path) as stream:
        stream.write(encoded.tobytes())
    return Path(path)


def _label_ids(vocabulary: Vocabulary) -> tuple[np.ndarray, int]:
    """(K,) int32 values of the classes in the file, and the value of void."""
    ids = np.array(vocabulary.label_ids, np.int64)
    void = 255 if ids.max() < 255 else 65535
    if ids.min() < 0 or ids.max() >= 65535:
        raise DataError(
            f"Label ids {ids.min()}..{ids.max()} do not fit a PNG: give ids from 0 to 65534 to the classes."
        )
    return ids.astype(np.int32), void


def _score(segmentation: Segmentation, labels: Tensor, position: int) -> float | None:
    if segmentation.confidence is None:
        return None
    return float(segmentation.confidence.cpu()[labels == position].double().mean())


def _plain(value: object) -> object:
    """Information as JSON can hold it: numbers and text stay, anything else becomes text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
