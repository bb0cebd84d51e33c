"""A proposal source tried on photos: its masks drawn, stored, counted, and held against ground truth."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage.build import build_proposals
from twostage.config import Config
from twostage.data.errors import LabelError
from twostage.data.image_io import LABEL_SUFFIXES, read_image, read_label_png
from twostage.errors import TwostageError
from twostage.evaluation.recall import best_ious
from twostage.evaluation.runner import labels_at
from twostage.ops.mask_statistics import MaskStatistics, mask_statistics
from twostage.ops.sizes import mismatch, only_scaled
from twostage.proposals._cache_files import digest
from twostage.proposals._caching import CocoWriter, NpzWriter, Writer
from twostage.types import VOID, Proposals
from twostage.views import TestSize
from twostage.visualize.files import write_picture
from twostage.visualize.panels import proposal_mosaic
from twostage.visualize.proposals import proposal_overlay
from twostage.vocabulary import nearest

THRESHOLDS = (0.5, 0.75, 0.9)
_STORES: dict[str, tuple[str, type[NpzWriter] | type[CocoWriter]]] = {
    "npz": ("masks", NpzWriter),
    "coco": ("masks.json", CocoWriter),
}
FORMATS = (*_STORES, "none")


@dataclasses.dataclass(frozen=True)
class Report:
    """name: of its files; photo: its path; size_hw: at which it was looked at; masks: their statistics;
    best_ious: of the best mask with each true region, 0..1, None without ground truth.
    """

    name: str
    photo: str
    size_hw: tuple[int, int]
    masks: MaskStatistics
    best_ious: tuple[float, ...] | None = None

    def row(self) -> dict[str, Any]:
        """Plain numbers for tables and JSON, shares in percent."""
        size = {"height": self.size_hw[0], "width": self.size_hw[1]}
        own = {"name": self.name, "photo": self.photo, **size, "masks": self.masks.count}
        return own | _numbers([self])


def total(reports: Sequence[Report]) -> dict[str, Any]:
    """The row of all photos together: masks, cover and overlap are means over photos; areas and recall count
    every mask and every true region once.
    """
    masks = statistics.fmean(report.masks.count for report in reports) if reports else 0
    return {"name": f"all {len(reports)}", "masks": masks, **_numbers(reports)}


def _numbers(reports: Sequence[Report]) -> dict[str, Any]:
    areas = [100 * area for report in reports for area in report.masks.areas]
    overlaps = [report.masks.overlap for report in reports if report.masks.overlap is not None]
    truth = [report.best_ious for report in reports if report.best_ious is not None]
    ious = [iou for one in truth for iou in one]
    pick: dict[str, Callable[[list[float]], float]]
    pick = {"min": min, "median": statistics.median, "max": max}
    return {
        "area_percent": {name: function(areas) if areas else None for name, function in pick.items()},
        "covered_percent": 100 * statistics.fmean(r.masks.covered for r in reports) if reports else None,
        "overlap": statistics.fmean(overlaps) if overlaps else None,
        "true_regions": len(ious) if truth else None,
        "recall_percent": {
            f"{100 * threshold:.0f}": 100 * statistics.fmean(iou >= threshold for iou in ious)
            if ious
            else None
            for threshold in THRESHOLDS
        },
        "mean_best_iou_percent": 100 * statistics.fmean(ious) if ious else None,
    }


class Truth:
    """Label maps of photos: one file for one photo, or a folder with a file of each photo's stem.

    Every value is one true region, those in `ignore` are none and count for nobody.

    Raises:
        LabelError: there is nothing there, or one file for several photos, or none for any.
    """

    def __init__(self, place: Path, photos: Sequence[Path], ignore: Sequence[int]) -> None:
        self._ignore = torch.tensor(list(ignore), dtype=torch.int32)
        if not place.exists():
            raise LabelError(f"--labels: there is no {place}.")
        if place.is_file() and len(photos) > 1:
            raise LabelError(
                f"--labels: {place} is one file, but there are {len(photos)} photos: give a folder."
            )
        self._files: dict[Path, Path] = {}
        for photo in photos:
            candidates = [place] if place.is_file() else [place / f"{photo.stem}{s}" for s in _SUFFIXES]
            there = [path for path in candidates if path.is_file()]
            if there:
                self._files[photo] = there[0]
        if not self._files:
            raise LabelError(
                f"--labels: {place} holds no label map of any photo, such as {photos[0].stem}.png."
            )

    def of(self, photo: Path, image_hw: tuple[int, int]) -> tuple[Tensor, int] | None:
        """(H, W) int32 labels 0..M-1 and VOID, and M; None where this photo has none.

        Raises:
            LabelError: another aspect ratio than the photo's. ImageReadError: no label map.
        """
        path = self._files.get(photo)
        if path is None:
            return None
        raw = read_label_png(path)
        if not only_scaled((raw.shape[0], raw.shape[1]), image_hw):
            there = (raw.shape[0], raw.shape[1])
            raise LabelError(mismatch(str(photo), image_hw, there, f"its label map {path} is"))
        values, places = torch.unique(raw, return_inverse=True)
        kept = ~torch.isin(values, self._ignore)
        numbers = torch.where(kept, kept.cumsum(0) - 1, VOID).int()
        return numbers[places], int(kept.sum())


_SUFFIXES = sorted(LABEL_SUFFIXES)


class Trial:
    """Looks at one photo after the other; masks are stored below `out` for PROPOSALS.NAME cached.

    Raises:
        TwostageError: an unknown format, a source that cannot be made, or one that needs ground truth where
        there is none.
    """

    def __init__(
        self, config: Config, out: Path, save: str = "npz", truth: Truth | None = None, sheet: int = 11
    ) -> None:
        if save not in FORMATS:
            raise TwostageError(f"--save: unknown format {save!r}.{nearest(save, FORMATS)}")
        self._source: Any = build_proposals(config)
        if getattr(self._source, "needs_ground_truth", False) and truth is None:
            raise TwostageError(
                f"PROPOSALS.NAME {config.proposals.name} cuts masks out of the ground truth: give --labels."
            )
        self._size = TestSize(config.input.min_size_test, config.input.max_size_test)
        self._out, self._truth, self._sheet = out, truth, sheet
        self.stored: Path | None = None
        self._writer: Writer | None = None
        if save != "none":
            name, writer = _STORES[save]
            self.stored = out / name
            self._writer = writer(self.stored)

    def look(self, photo: Path, stem: str) -> Report:
        """Propose, store, draw STEM_overlay.png and STEM_masks.png, and measure.

        Raises:
            TwostageError: the photo or its label map is broken, or the source has nothing for it.
        """
        image = read_image(photo)
        known = None if self._truth is None else self._truth.of(photo, (image.shape[1], image.shape[2]))
        small = self._size.resize(image)
        size_hw = (small.shape[1], small.shape[2])
        found = self._propose(photo, small, None if known is None else known[0]).to("cpu")
        if self._writer is not None:
            self._writer.add(stem, found, digest(small))
        write_picture(self._out / f"{stem}_overlay.png", proposal_overlay(small, found))
        if self._sheet:
            write_picture(self._out / f"{stem}_masks.png", proposal_mosaic(small, found, self._sheet))
        ious = None if known is None else tuple(best_ious(found, *known)[1].tolist())
        return Report(stem, str(photo), size_hw, mask_statistics(found.masks), ious)

    def finish(self) -> None:
        """Complete the file of stored masks, where there is one for all photos."""
        if self._writer is not None:
            self._writer.finish()

    @torch.inference_mode()
    def _propose(self, photo: Path, small: Tensor, labels: Tensor | None) -> Proposals:
        source, size_hw = self._source, (small.shape[1], small.shape[2])
        found: Proposals
        if getattr(source, "needs_ground_truth", False):
            if labels is None:
                raise TwostageError(f"{photo}: this source needs a label map, and there is none.")
            found = source.propose_from_labels(labels_at(labels, size_hw))
        elif hasattr(source, "find"):
            [found] = source.propose_for([source.find(small, photo.stem)], [size_hw])
        else:
            [found] = source.propose([small])
        return found
