"""Proposals from disk: made once, by us or by whatever program a user has (docs/stored_masks.md)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.ops.sizes import mismatch, only_scaled
from twostage.proposals import _cache_files as files
from twostage.proposals._cache_files import CacheError
from twostage.proposals._stored.opening import HINT, PngLayout, open_store
from twostage.types import Proposals, TextBank
from twostage.vocabulary import nearest

Missing = Literal["error", "empty"]


@dataclass(frozen=True)
class CachedConfig:
    """path: a folder with one IMAGE_ID.npz an image, a folder of PNGs, or a .json file: COCO's result list
    or export, or Label Studio's export; missing: what an image without stored proposals does, "error", or
    "empty" for lists of programs that skip such images; png: what the PNGs of a folder are, "regions" (one
    an image, its values number the regions) or "masks" (one a mask; in a folder for each image, or called
    IMAGE_NUMBER.png), "auto" for masks where each image has a folder and regions otherwise; background:
    values of region PNGs that are no mask.
    """

    path: str
    missing: Missing = "error"
    png: PngLayout = "auto"
    background: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for option, allowed in (("missing", get_args(Missing)), ("png", get_args(PngLayout))):
            value = getattr(self, option)
            if value not in allowed:
                raise CacheError(f"CachedProposals: {option}={value!r} is unknown.{nearest(value, allowed)}")
        if not all(isinstance(value, int) for value in self.background):
            raise CacheError(f"CachedProposals: background needs whole numbers, got {self.background}.")


class CachedProposals:
    """Looks proposals up by the image's very pixels where they were stored, or by the image's name.

    Raises:
        CacheError: the path is not there, or is not what its name says.
    """

    Config = CachedConfig

    def __init__(self, config: CachedConfig) -> None:
        self.config = config
        self._path = Path(config.path)
        self._store = open_store(self._path, config.png, config.background)
        if not self._store.ids and config.missing == "error":
            raise CacheError(f"{self._path}: no proposals are stored here. {HINT}")
        self._known = frozenset(self._store.ids)
        self._by_digest: dict[str, str] | None = None
        self._by_number: dict[int, str] | None = None

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
                    f"{len(self._known)} ({len(self._digests())} with known pixels). It has to be the cached "
                    "image at the cached size; cache again with the same test size, or give its name "
                    "(propose_for, or image_id of System.segment)."
                )
        return found

    def find(self, image: Tensor, image_id: str) -> str:
        """The stored id of an image: by its pixels, or else by its name; image_id itself where it is unknown.

        image: RGB uint8 (3, H, W) at test size. What this gives, `propose_for` takes.
        """
        known = self._digests().get(files.digest(image)) if self._digests() else None
        return known or self._resolve(image_id) or image_id

    def propose_for(self, image_ids: Sequence[str], sizes_hw: Sequence[tuple[int, int]]) -> list[Proposals]:
        """One Proposals an id, masks resized to the height and width given (bool: nearest; soft: bilinear).

        Raises:
            CacheError: an id that is not stored (the message names the nearest), or masks of another aspect
            ratio.
        """
        return [self._named(image_id, size) for image_id, size in zip(image_ids, sizes_hw, strict=True)]

    def _named(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        known = self._resolve(image_id)
        if known is not None:
            return self._read(known, size_hw)
        if self.config.missing == "empty":
            return _empty(size_hw)
        raise CacheError(
            f"{self._path}: no proposals for image {image_id!r}.{nearest(image_id, self._known)}"
            f"{self._store.hint}"
        )

    def _resolve(self, image_id: str) -> str | None:
        """The stored id; COCO's number 9 and its file name 000000000009 are the same image."""
        if image_id in self._known:
            return image_id
        if image_id in self._store.aliases:
            return self._store.aliases[image_id]
        if self._by_number is None:
            self._by_number = {int(stored): stored for stored in self._known if _is_number(stored)}
        return self._by_number.get(int(image_id)) if _is_number(image_id) else None

    def _read(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        stored = self._store.read(image_id, size_hw)
        if not only_scaled(stored.size_hw, size_hw):
            raise CacheError(f"{self._path}: {mismatch(f'image {image_id!r}', size_hw, stored.size_hw)}")
        return resize_masks(stored, size_hw)

    def _digests(self) -> dict[str, str]:
        if self._by_digest is None:
            self._by_digest = dict(self._store.digests())
        return self._by_digest


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
