"""Proposals from disk: made once, by us or by any program that writes COCO's run-length JSON."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.proposals import _cache_files as files
from twostage.proposals._cache_files import CacheError
from twostage.types import Proposals, TextBank
from twostage.vocabulary import nearest


@dataclass(frozen=True)
class CachedConfig:
    """path: a COCO result list (.json), or a folder with one IMAGE_ID.npz an image; missing: what an image
    without stored proposals does, "error", or "empty" for lists of programs that skip such images.
    """

    path: str
    missing: Literal["error", "empty"] = "error"


class CachedProposals:
    """Looks proposals up by image id, or, for images alone, by their very pixels.

    Raises:
        CacheError: the path is not there, or is not what its name says.
    """

    Config = CachedConfig

    def __init__(self, config: CachedConfig) -> None:
        if config.missing not in ("error", "empty"):
            raise CacheError(
                f"CachedProposals: missing={config.missing!r} is "
                f"unknown.{nearest(config.missing, ['error', 'empty'])}"
            )
        self.config = config
        self._path = Path(config.path)
        self._entries: dict[str, list[dict[str, Any]]] | None = None
        self._by_digest: dict[str, str] | None = None
        self._by_number: dict[int, str] | None = None
        if self._path.is_dir():
            self._ids = sorted(p.stem for p in self._path.glob("*.npz") if not p.name.startswith("."))
        elif self._path.suffix.lower() == ".json":
            self._entries = files.read_coco_json(self._path)
            self._ids = sorted(self._entries)
        else:
            raise CacheError(f"{self._path}: expected a folder of .npz files or a .json file. {_HINT}")
        if not self._ids and config.missing == "error":
            raise CacheError(f"{self._path}: no proposals are stored here. {_HINT}")
        self._known = frozenset(self._ids)

    @classmethod
    def tiny(cls) -> CachedProposals:
        """An empty store that finds nothing for any image."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "none.json"
            files.write_coco_json(path, [])
            return cls(CachedConfig(str(path), missing="empty"))

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W), found by their pixels, so the very ones that were cached, same size.

        Raises:
            CacheError: an image's pixels were never cached.
        """
        found = []
        for image in images:
            size_hw = (image.shape[-2], image.shape[-1])
            image_id = self._digests().get(files.digest(image))
            if image_id is not None:
                found.append(self._read(image_id, size_hw))
            elif self.config.missing == "empty":
                found.append(_empty(size_hw))
            else:
                raise CacheError(
                    f"{self._path}: no proposals for this image of {size_hw[1]} x {size_hw[0]} pixels among "
                    f"{len(self._ids)} ({len(self._digests())} with known pixels). It has to be the cached "
                    "image at the "
                    "cached size; cache again with the same test size, or ask by id (propose_for)."
                )
        return found

    def propose_for(self, image_ids: Sequence[str], sizes_hw: Sequence[tuple[int, int]]) -> list[Proposals]:
        """One Proposals an id, masks resized to the height and width given (bool: nearest; soft: bilinear).

        Raises:
            CacheError: an id that is not stored; the message names the nearest.
        """
        return [self._named(image_id, size) for image_id, size in zip(image_ids, sizes_hw, strict=True)]

    def _named(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        known = self._resolve(image_id)
        if known is not None:
            return self._read(known, size_hw)
        if self.config.missing == "empty":
            return _empty(size_hw)
        raise CacheError(f"{self._path}: no proposals for image {image_id!r}.{nearest(image_id, self._ids)}")

    def _resolve(self, image_id: str) -> str | None:
        """The stored id; COCO's number 9 and its file name 000000000009 are the same image."""
        if image_id in self._known:
            return image_id
        if self._by_number is None:
            self._by_number = {int(stored): stored for stored in self._ids if _is_number(stored)}
        return self._by_number.get(int(image_id)) if _is_number(image_id) else None

    def _read(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        if self._entries is None:
            stored = files.read_npz(self._path / f"{image_id}.npz")
        else:
            stored = files.from_coco(self._entries[image_id], size_hw, source="cached")
        return resize_masks(stored, size_hw)

    def _digests(self) -> dict[str, str]:
        if self._by_digest is None:
            if self._entries is None:
                pairs = ((files.read_npz_digest(self._path / f"{name}.npz"), name) for name in self._ids)
            else:
                pairs = ((str(e[0].get("image_digest", "")), name) for name, e in self._entries.items())
            self._by_digest = {known: name for known, name in pairs if known}
        return self._by_digest


_HINT = "Make it with tools/cache_proposals.py."


def resize_masks(proposals: Proposals, size_hw: tuple[int, int]) -> Proposals:
    """The same proposals with masks of (height, width): bool by nearest neighbour, soft ones bilinearly."""
    if proposals.size_hw == size_hw:
        return proposals
    if len(proposals) == 0:
        return replace(proposals, masks=proposals.masks.new_zeros((0, *size_hw)))
    masks = proposals.masks
    if masks.dtype == torch.bool:
        resized = F.interpolate(masks[None].to(torch.uint8), size=size_hw, mode="nearest-exact")[0].bool()
    else:
        resized = F.interpolate(masks[None], size=size_hw, mode="bilinear", align_corners=False)[0]
    return replace(proposals, masks=resized)


def _empty(size_hw: tuple[int, int]) -> Proposals:
    return Proposals(torch.zeros((0, *size_hw), dtype=torch.bool), torch.zeros(0), source="cached")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
