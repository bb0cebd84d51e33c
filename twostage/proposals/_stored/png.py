"""Folders of PNGs: one file a mask, or one file an image whose values number its regions."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from twostage.data.image_io import LABEL_SUFFIXES, read_label_png
from twostage.proposals._cache_files import CacheError
from twostage.types import Proposals

_NUMBERED = re.compile(r"(.+?)[._-]+\d+")
SCORES = "metadata.csv"
"""Beside the masks of an image, as segment-anything's own script writes it."""


def png_files(folder: Path) -> list[Path]:
    """Mask files of a folder in the order of their numbers: 2.png before 10.png."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in LABEL_SUFFIXES and path.is_file())
    return sorted((path for path in found if not path.name.startswith(".")), key=_by_number)


class RegionPngs:
    """One PNG an image (8 or 16 bits, grey or palette): every value is a region, whether connected or not.

    background: values that are no region. Scores are 1; masks come in the order of their values.
    """

    def __init__(self, folder: Path, background: Collection[int]) -> None:
        self._files: dict[str, Path] = {}
        for path in png_files(folder):
            if path.stem in self._files:
                raise CacheError(f"{path}: {self._files[path.stem].name} is of the same image. Keep one.")
            self._files[path.stem] = path
        self._background = list(background)
        self.ids = sorted(self._files)
        self.aliases: Mapping[str, str] = {path.name: stem for stem, path in self._files.items()}
        self.hint = (
            " Every file was taken for an image with numbered regions; where files are single masks called "
            "IMAGE_NUMBER.png, set PROPOSALS.OPTIONS.PNG masks."
        )

    def digests(self) -> Mapping[str, str]:
        """None: a mask does not tell its photo's pixels."""
        return {}

    def read(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        """(N, H, W) bool, N the number of values without the background."""
        raw = read_label_png(self._files[image_id])
        values = torch.unique(raw)
        values = values[~torch.isin(values, torch.tensor(self._background, dtype=values.dtype))]
        return Proposals(raw[None] == values[:, None, None], torch.ones(len(values)), source="cached")


class MaskPngs:
    """One PNG a mask: in a folder for each image, or side by side as IMAGE_NUMBER.png.

    Scores are predicted_iou of the folder's metadata.csv where there is one, otherwise 1.
    """

    def __init__(self, folder: Path) -> None:
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        self._files = {one.name: png_files(one) for one in inner}
        self._files = {
            name: files for name, files in self._files.items() if files or _has_scores(folder, name)
        }
        for path in png_files(folder) if not self._files else []:
            numbered = _NUMBERED.fullmatch(path.stem)
            if numbered is None:
                raise CacheError(
                    f"{path}: expected IMAGE_NUMBER.png, one file a mask, or a folder for each image."
                )
            self._files.setdefault(numbered[1], []).append(path)
        self.ids = sorted(self._files)
        self.aliases: Mapping[str, str] = {}
        self.hint = ""

    def digests(self) -> Mapping[str, str]:
        """None: a mask does not tell its photo's pixels."""
        return {}

    def read(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        """(N, H, W) bool in the order of the files' numbers."""
        files = self._files[image_id]
        if not files:
            return Proposals(torch.zeros((0, *size_hw), dtype=torch.bool), torch.zeros(0), source="cached")
        masks = [_inside(path) for path in files]
        for path, mask in zip(files, masks, strict=True):
            if mask.shape != masks[0].shape:
                raise CacheError(
                    f"{path}: {tuple(mask.shape)} (height, width), but {files[0].name} is "
                    f"{tuple(masks[0].shape)}: masks of one image need one size."
                )
        known = _scores(files[0].parent / SCORES)
        scores = torch.tensor([known.get(path.stem, 1.0) for path in files])
        return Proposals(torch.stack(masks), scores, source="cached")


def _inside(path: Path) -> Tensor:
    """(H, W) bool: what is not 0; of soft-edged masks what is at least 128 of 255.

    Raises:
        CacheError: numbered regions where one mask is expected.
    """
    raw = read_label_png(path)
    values = torch.unique(raw).tolist()
    if len(values) <= 2 and min(values) == 0:
        return raw > 0
    if len(values) == 1:
        return torch.ones_like(raw, dtype=torch.bool)
    if max(values) == 255:
        return raw >= 128
    raise CacheError(
        f"{path}: expected one mask, 0 outside and another value inside, found {len(values)} values up to "
        f"{max(values)}. Numbered regions, a file an image, need PROPOSALS.OPTIONS.PNG regions."
    )


def _has_scores(folder: Path, name: str) -> bool:
    """Whether a folder without masks is an image in which nothing was found."""
    return (folder / name / SCORES).is_file()


def _scores(path: Path) -> dict[str, float]:
    """Stem of a mask's file -> its score; empty without the file or its columns."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {row["id"]: float(row["predicted_iou"]) for row in rows if row.get("predicted_iou")}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read as a table with id and predicted_iou ({error}).") from error


def _by_number(path: Path) -> tuple[list[int | str], str]:
    pieces = re.split(r"(\d+)", path.stem)
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)], path.name
