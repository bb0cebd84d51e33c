"""Running a proposal generator over a data set once and storing what it found; interrupted runs go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from twostage.data.prefetch import prefetch
from twostage.data.sample import Sample, SegmentationDataset
from twostage.interfaces import ProposalGenerator
from twostage.proposals import _cache_files as files
from twostage.proposals._cache_files import CacheError
from twostage.types import Proposals
from twostage.vocabulary import nearest

Format = Literal["npz", "coco"]


@dataclass(frozen=True)
class CacheSummary:
    """written and skipped (already there): images; masks: how many were written."""

    written: int
    skipped: int
    masks: int


def cache(
    dataset: SegmentationDataset,
    generator: ProposalGenerator,
    out: str | Path,
    format: Format = "npz",
    resize: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CacheSummary:
    """Store the proposals of every image under `out`: a folder for "npz", one file for "coco".

    resize: brings images to test size first; look-ups by pixels need the same size later. Images stored by an
    earlier run are skipped. A generator with needs_ground_truth is given the labels (masks then have the
    original size).

    Raises:
        CacheError: unknown format, an id that repeats or is no file name; besides what reading or proposing
        raises.
    """
    if format not in _WRITERS:
        raise CacheError(f"cache: unknown format {format!r}.{nearest(format, _WRITERS)}")
    writer = _WRITERS[format](Path(out))
    earlier, fresh = set(writer.done), set[str]()
    total, todo = len(dataset), _without(dataset, earlier)
    masks, skipped = 0, total - len(todo)
    if progress is not None and skipped:
        progress(skipped, total)
    for count, sample in enumerate(prefetch(dataset, todo), start=skipped + 1):
        if sample.image_id in fresh:
            raise CacheError(
                f"{dataset.name}: two images have the id {sample.image_id!r}; ids have to differ."
            )
        if sample.image_id in earlier:
            skipped += 1
        else:
            found, image_digest = _propose(generator, sample, resize)
            writer.add(sample.image_id, found, image_digest)
            masks += len(found)
        fresh.add(sample.image_id)
        if progress is not None:
            progress(count, total)
    writer.finish()
    return CacheSummary(total - skipped, skipped, masks)


def _without(dataset: SegmentationDataset, done: set[str]) -> Sequence[int]:
    """Indices worth reading: all, unless the data set tells its ids without reading the images."""
    ids = getattr(dataset, "image_ids", None)
    if ids is None:
        return range(len(dataset))
    return [index for index, image_id in enumerate(ids) if image_id not in done]


def _propose(
    generator: ProposalGenerator, sample: Sample, resize: Callable[[Tensor], Tensor] | None
) -> tuple[Proposals, str]:
    image = sample.image if resize is None else resize(sample.image)
    if not getattr(generator, "needs_ground_truth", False):
        return generator.propose([image])[0], files.digest(image)
    if sample.labels is None:
        raise CacheError(
            f"{sample.source or sample.image_id}: this generator needs labels, but there are none."
        )
    found: Proposals = generator.propose_from_labels(sample.labels)  # type: ignore[attr-defined]
    return found, files.digest(image)


class Writer(Protocol):
    """Stores proposals image by image. done: the ids that an earlier run has stored."""

    done: set[str]

    def add(self, image_id: str, proposals: Proposals, image_digest: str = "") -> None: ...

    def finish(self) -> None: ...


class NpzWriter:
    """One IMAGE_ID.npz an image in a folder; every file is whole at any moment."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise CacheError(f"{self._folder}: is a file; the npz format needs a folder.")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.done = {path.stem for path in self._folder.glob("*.npz") if not path.name.startswith(".")}

    def add(self, image_id: str, proposals: Proposals, image_digest: str = "") -> None:
        """Raises CacheError when the id cannot be a file name."""
        if not image_id or image_id.startswith(".") or "/" in image_id or "\\" in image_id:
            raise CacheError(f"Image id {image_id!r} cannot be a file name. Use the coco format.")
        files.write_npz(self._folder / f"{image_id}.npz", proposals, image_digest)

    def finish(self) -> None:
        """Nothing is left to do."""


class CocoWriter:
    """One COCO result list. While it grows it is FILE.part, an image a line; finish() makes the JSON."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if self._path.suffix.lower() != ".json" or self._path.is_dir():
            raise CacheError(f"{self._path}: the coco format needs a file that ends in .json.")
        self._part = self._path.with_name(self._path.name + ".part")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = {str(line[0]["image_id"]): line for line in self._finished() + self._unfinished()}
        self.done = set(self._lines)

    def add(self, image_id: str, proposals: Proposals, image_digest: str = "") -> None:
        """Append one image, in place of one of the same id; it survives an interruption from here on."""
        line = files.to_coco(image_id, proposals, image_digest)
        with self._part.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._lines[image_id] = line

    def finish(self) -> None:
        """Write the whole list in one step and drop the part."""
        files.write_coco_json(self._path, [entry for line in self._lines.values() for entry in line])
        self._part.unlink(missing_ok=True)

    def _finished(self) -> list[list[dict[str, Any]]]:
        return list(files.read_coco_json(self._path).values()) if self._path.exists() else []

    def _unfinished(self) -> list[list[dict[str, Any]]]:
        """Whole lines of an interrupted run; a last line that was cut off is removed from the file."""
        if not self._part.exists():
            return []
        text = self._part.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._part.write_text(whole, encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]


_WRITERS: dict[str, Callable[[Path], Writer]] = {"npz": NpzWriter, "coco": CocoWriter}
