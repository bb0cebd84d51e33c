"""What a check of a data set found, counts by class and problems by kind, as a table and as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REMEDIES = {
    "unreadable": "replace or remove these files",
    "sizes differ": "make the masks anew at the size of their images",
    "undeclared values": 'declare them in classes.json, or add them to its "ignore"',
    "image without mask": 'add masks, or open the data set with masks="paired" or "optional"',
    "mask without image": "add the images, or remove the masks",
    "same stem twice": "rename or remove one of each",
    "file of another kind": "these are not read; masks are .png or .tif",
    "no images": "put images there",
}
_HARMLESS = frozenset({"file of another kind", "mask without image"})


@dataclass(frozen=True)
class SplitReport:
    """One split ("" when the layout is flat).

    num_images: files; num_counted: those whose mask was read; pixels, images: for each class, the pixels it
    covers and the images it occurs in; ignored: pixels without a class; problems: kind -> one line a finding.
    """

    name: str
    num_images: int
    num_counted: int
    pixels: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int
    problems: dict[str, list[str]]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way of using it with masks."""
        return all(kind in _HARMLESS for kind in self.problems)


@dataclass(frozen=True)
class Report:
    """All splits of one data set. root: its folder; class_names: K names in vocabulary order."""

    root: str
    class_names: tuple[str, ...]
    splits: tuple[SplitReport, ...]

    @property
    def ok(self) -> bool:
        """Whether every split is usable."""
        return all(split.ok for split in self.splits)

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dump."""
        splits = {}
        for split in self.splits:
            per_class = {
                name: {"pixels": pixels, "images": images}
                for name, pixels, images in zip(self.class_names, split.pixels, split.images, strict=True)
            }
            splits[split.name] = {
                "images": split.num_images,
                "counted": split.num_counted,
                "ignored_pixels": split.ignored,
                "classes": per_class,
                "problems": split.problems,
                "ok": split.ok,
            }
        return {"root": self.root, "ok": self.ok, "splits": splits}

    def format(self, limit: int = 10) -> str:
        """A readable account; at most `limit` findings of a kind are listed, all are counted."""
        parts = [_format_split(self, split, limit) for split in self.splits]
        verdict = "usable" if self.ok else "NOT usable as it stands: see the problems above"
        return "\n\n".join([*parts, f"{self.root}: {verdict}"])


def _format_split(report: Report, split: SplitReport, limit: int) -> str:
    total = max(1, sum(split.pixels) + split.ignored)
    title = f"{report.root}{'@' + split.name if split.name else ''}"
    width = max(len(name) for name in (*report.class_names, "(ignored)"))
    lines = [
        f"{title}: {split.num_images} images, {split.num_counted} with readable masks",
        f"  {'class':<{width}}  {'images':>8}  {'pixels':>14}  {'share':>7}",
    ]
    for name, images, pixels in zip(report.class_names, split.images, split.pixels, strict=True):
        lines.append(f"  {name:<{width}}  {images:>8,}  {pixels:>14,}  {pixels / total:>7.2%}")
    lines.append(f"  {'(ignored)':<{width}}  {'':>8}  {split.ignored:>14,}  {split.ignored / total:>7.2%}")
    absent = sum(images == 0 for images in split.images)
    if absent:
        lines.append(f"  {absent} of {len(split.images)} classes never occur")
    for kind, findings in split.problems.items():
        lines.append(f"  {kind}: {len(findings)} ({REMEDIES[kind]})")
        lines.extend(f"    {finding}" for finding in findings[:limit])
        if len(findings) > limit:
            lines.append(f"    ... and {len(findings) - limit} more")
    return "\n".join(lines)
