"""Your own photos as a data set, without code: a folder with images/, masks/ and classes.json."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from twostage.data import folder_layout
from twostage.data.class_list import FILE_NAME, read_class_list
from twostage.data.errors import DatasetError, LabelError
from twostage.data.image_io import LABEL_SUFFIXES, read_image, read_label_png
from twostage.data.sample import Sample
from twostage.vocabulary import nearest

MaskRule = Literal["required", "paired", "optional"]
UndeclaredRule = Literal["error", "ignore"]


class FolderDataset:
    """A SegmentationDataset over ROOT/images[/SPLIT] and ROOT/masks[/SPLIT], files matched by stem.

    masks: "required" (every image needs one), "paired" (images without one are left out), or "optional" (they
    have labels None). undeclared: what mask values outside classes.json do, "error" or "ignore".

    Raises:
        DatasetError: a part of the folder is missing or contradicts itself.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        masks: MaskRule = "required",
        undeclared: UndeclaredRule = "error",
    ) -> None:
        _require_choice("masks", masks, get_args(MaskRule))
        _require_choice("undeclared", undeclared, get_args(UndeclaredRule))
        self.root = Path(root)
        folder_layout.require_layout(self.root)
        self.classes = read_class_list(self.root / FILE_NAME)
        self.split = folder_layout.choose_split(self.root, split)
        self.name = self.root.name if self.split is None else f"{self.root.name}@{self.split}"
        self.vocabulary = self.classes.vocabulary
        self.undeclared = undeclared
        self.files = _pair(self.root, self.split, masks)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_ids(self) -> list[str]:
        """The ids in order, without reading an image."""
        return [image.stem for image, _ in self.files]

    def __getitem__(self, index: int) -> Sample:
        """Raises ImageReadError or LabelError naming the file; IndexError past the end."""
        image_path, mask_path = self.files[index]
        image = read_image(image_path)
        if mask_path is None:
            return Sample(image, None, image_path.stem, str(image_path))
        raw = read_label_png(mask_path)
        if raw.shape != image.shape[1:]:
            raise LabelError(size_disagreement(image_path, image.shape[1:], mask_path, raw.shape))
        labels = self.classes.to_labels(raw, str(mask_path), self.undeclared)
        return Sample(image, labels, image_path.stem, str(image_path))


def size_disagreement(
    image_path: Path, image_hw: tuple[int, ...], mask_path: Path, mask_hw: tuple[int, ...]
) -> str:
    """The sentence about an image and a mask of different sizes (height, width)."""
    return (
        f"{image_path} is {image_hw[1]} x {image_hw[0]} pixels (width x height, upright), but its mask "
        f"{mask_path} is "
        f"{mask_hw[1]} x {mask_hw[0]}. Make the mask anew at the image's size, or resize it with nearest "
        "neighbour."
    )


def _pair(root: Path, split: str | None, rule: MaskRule) -> list[tuple[Path, Path | None]]:
    listing = folder_layout.list_files(root, split)
    place = "images" if split is None else f"images/{split}"
    if not listing.images:
        raise DatasetError(
            f"{root / place}: no images here. Files found: {_some([p.name for p in listing.strays])}."
        )
    for files in [*listing.images.values(), *listing.masks.values()]:
        if len(files) > 1:
            raise DatasetError(
                f"{files[0]} and {files[1]} share the stem {files[0].stem!r}. Rename or remove one."
            )
    pairs = [(paths[0], listing.masks.get(stem, [None])[0]) for stem, paths in listing.images.items()]
    lacking = [image.name for image, mask in pairs if mask is None]
    if rule == "optional" or not lacking:
        return pairs
    mask_folder = root / place.replace("images", "masks", 1)
    if len(lacking) == len(pairs):
        strays = [p.name for p in listing.strays if p.parent == mask_folder]
        raise DatasetError(
            f"{mask_folder}: no mask matches an image by stem (images: {_some(lacking)}; masks: "
            f"{_some(list(listing.masks))}; other files: {_some(strays)}). Masks are {_suffixes()} with "
            "the stem of "
            'their image; without ground truth use masks="optional".'
        )
    if rule == "paired":
        return [(image, mask) for image, mask in pairs if mask is not None]
    raise DatasetError(
        f"{mask_folder}: {len(lacking)} of {len(pairs)} images have no mask: {_some(lacking)}. Add the "
        "masks, or use "
        'masks="paired" to leave these images out, or masks="optional" where no ground truth is needed.'
    )


def _suffixes() -> str:
    return "/".join(sorted(LABEL_SUFFIXES))


def _some(names: list[str]) -> str:
    return (", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")) or "none"


def _require_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DatasetError(f"FolderDataset: {option}={value!r} is unknown.{nearest(value, allowed)}")
