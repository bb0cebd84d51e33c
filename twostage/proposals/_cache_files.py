"""How stored proposals look on disk: one .npz an image, or one COCO result list in JSON for all of them.

The .npz keeps everything but stage one's opinion of class names (it depends on the words asked). The JSON is
what other tools write and read; its masks are bool.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twostage.data import rle
from twostage.data.atomic import replacing
from twostage.data.errors import DataError
from twostage.types import Proposals


class CacheError(DataError):
    """Stored proposals are missing, damaged, or belong to another image."""


def digest(image: Tensor) -> str:
    """40 hex digits over size and pixels of an RGB uint8 image (3, H, W)."""
    header = "x".join(map(str, image.shape)).encode()
    return hashlib.sha1(
        header + image.contiguous().cpu().numpy().tobytes(), usedforsecurity=False
    ).hexdigest()


def write_npz(path: str | Path, proposals: Proposals, image_digest: str = "") -> None:
    """Bool masks are packed eight a byte, soft ones kept as 0..255 (off by at most 1/510). Atomic."""
    masks = proposals.masks.detach().cpu()
    content: dict[str, Any] = {
        "size_hw": np.asarray(proposals.size_hw, dtype=np.int64),
        "scores": proposals.scores.detach().cpu().float().numpy(),
        "source": np.asarray(proposals.source),
        "digest": np.asarray(image_digest),
    }
    if masks.dtype == torch.bool:
        content["packed"] = np.packbits(masks.flatten(1).numpy(), axis=1)
    else:
        content["soft"] = (masks.float() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    if proposals.sources is not None:
        content["sources"] = np.asarray(proposals.sources, dtype=np.str_)
    if proposals.embeddings is not None:
        content["embeddings"] = proposals.embeddings.detach().cpu().float().numpy()
    with replacing(path) as stream:
        np.savez_compressed(stream, **content)


def read_npz(path: str | Path) -> Proposals:
    """Masks come back as they were: bool, or float32 in [0, 1].

    Raises:
        CacheError: missing or damaged.
    """
    try:
        # Opened here: numpy leaves the file open when its content is not what it expects.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            height, width = (int(side) for side in stored["size_hw"])
            scores = torch.from_numpy(stored["scores"])
            if "packed" in stored:
                bits = np.unpackbits(stored["packed"], axis=1, count=height * width)
                masks = torch.from_numpy(bits.reshape(len(scores), height, width).astype(bool))
            else:
                masks = torch.from_numpy(stored["soft"]).float() / 255
            embeddings = torch.from_numpy(stored["embeddings"]) if "embeddings" in stored else None
            sources = tuple(str(one) for one in stored["sources"]) if "sources" in stored else None
            return Proposals(masks, scores, embeddings, source=str(stored["source"]), sources=sources)
    except FileNotFoundError as error:
        raise CacheError(f"{path}: no proposals are stored here.") from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CacheError(
            f"{path}: stored proposals are damaged ({error}). Delete the file and cache again."
        ) from error


def read_npz_digest(path: str | Path) -> str:
    """The image's digest alone; "" where none was stored or the file is damaged."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return str(stored["digest"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return ""


def to_coco(image_id: str, proposals: Proposals, image_digest: str = "") -> list[dict[str, Any]]:
    """Entries of a COCO result list, soft masks cut at 0.5; without proposals, one without a segmentation."""
    common: dict[str, Any] = {"image_id": image_id}
    if image_digest:
        common["image_digest"] = image_digest
    if len(proposals) == 0:
        return [{**common, "segmentation": None, "score": 0.0}]
    masks = proposals.masks.detach().cpu()
    binary = masks if masks.dtype == torch.bool else masks > 0.5
    return [
        {**common, "segmentation": rle.encode(mask), "score": float(score)}
        for mask, score in zip(binary, proposals.scores.tolist(), strict=True)
    ]


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        CacheError: missing, unreadable, or not JSON (with the line).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CacheError(f"{path}: there is no such file. Write it with tools/cache_proposals.py.") from error
    except json.JSONDecodeError as error:
        raise CacheError(
            f"{path}: line {error.lineno}, column {error.colno}: not JSON ({error.msg})."
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise CacheError(f"{path}: cannot be read ({error}).") from error


def coco_entries(path: str | Path, content: Any) -> list[dict[str, Any]]:
    """The entries of a result list, or the annotations of an export.

    Raises:
        CacheError: neither, or entries without image_id and segmentation.
    """
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    if not isinstance(content, list):
        raise CacheError(
            f"{path}: expected a list of entries with image_id, segmentation and score, an export with "
            "images and annotations, or one of Label Studio."
        )
    for place, entry in enumerate(content):
        if not isinstance(entry, dict) or not {"image_id", "segmentation"} <= entry.keys():
            raise CacheError(f"{path}: entry {place} lacks image_id or segmentation.")
    return content


def read_coco_json(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Of a result list: image id (as text) -> its entries, in the file's order.

    Raises:
        CacheError: as read_json and coco_entries.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in coco_entries(path, read_json(path)):
        found.setdefault(str(entry["image_id"]), []).append(entry)
    return found


def write_coco_json(path: str | Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a whole result list. Atomic."""
    with replacing(path) as stream:
        stream.write(json.dumps(list(entries)).encode())
