"""Where the files of a folder data set lie: images/ and masks/, flat or with a sub-folder for each split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from twostage.data.errors import DatasetError
from twostage.data.image_io import IMAGE_SUFFIXES, LABEL_SUFFIXES
from twostage.vocabulary import nearest


@dataclass(frozen=True)
class Listing:
    """Files of one split by stem; a stem with several files is a mistake that the caller reports."""

    images: dict[str, list[Path]]
    masks: dict[str, list[Path]]
    strays: list[Path] = field(default_factory=list)


def splits(root: Path) -> list[str]:
    """Names of the sub-folders of images/, sorted; empty for a flat layout."""
    images = root / "images"
    return sorted(p.name for p in images.iterdir() if p.is_dir() and not p.name.startswith("."))


def require_layout(root: Path) -> None:
    """Raises DatasetError unless `root` is a folder with an images/ folder."""
    if not root.is_dir():
        raise DatasetError(f"{root}: there is no such folder. Give the folder that holds images/ and masks/.")
    if not (root / "images").is_dir():
        found = sorted(p.name for p in root.iterdir())[:10]
        raise DatasetError(
            f"{root}: expected a folder called images, found only: {', '.join(found) or 'nothing'}."
        )


def choose_split(root: Path, split: str | None) -> str | None:
    """The split to read: as asked, or the only one there is, or None for a flat layout.

    Raises:
        DatasetError: it does not exist, or several exist and none was named.
    """
    there = splits(root)
    if split is not None:
        if split in there:
            return split
        hint = nearest(split, there) if there else " The folder has no splits: leave the split out."
        raise DatasetError(
            f"{root}: no split {split!r} under images. Splits: {', '.join(there) or 'none'}.{hint}"
        )
    if not there or _files(root / "images", IMAGE_SUFFIXES)[0]:
        return None
    if len(there) == 1:
        return there[0]
    raise DatasetError(f"{root}: name one of its splits: {', '.join(f'{root}@{name}' for name in there)}.")


def list_files(root: Path, split: str | None) -> Listing:
    """The image and mask files of one split (None: flat)."""
    image_folder, mask_folder = root / "images", root / "masks"
    if split is not None:
        image_folder, mask_folder = image_folder / split, mask_folder / split
    images, image_strays = _files(image_folder, IMAGE_SUFFIXES)
    masks, mask_strays = _files(mask_folder, LABEL_SUFFIXES)
    return Listing(images, masks, image_strays + mask_strays)


def _files(folder: Path, suffixes: frozenset[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files by stem, and those of another kind. Hidden files count as neither."""
    found: dict[str, list[Path]] = {}
    strays: list[Path] = []
    if not folder.is_dir():
        return found, strays
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() in suffixes:
            found.setdefault(path.stem, []).append(path)
        else:
            strays.append(path)
    return found, strays
