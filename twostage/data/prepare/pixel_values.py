"""Annotations that are one published number a pixel, in a PNG: the kind of most data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twostage.data.benchmarks import Benchmark
from twostage.data.image_io import read_label_png
from twostage.data.prepare import found
from twostage.data.prepare.plan import Converter, Item, Request, Split
from twostage.data.published_labels import PublishedLabels, published


@dataclass(frozen=True)
class PixelValues(Converter):
    """void: what ignored values become."""

    published: PublishedLabels
    void: int

    def labels(self, item: Item) -> NDArray[np.integer]:
        """See Converter."""
        return self.published.to_contiguous(read_label_png(item.source).numpy(), self.void, str(item.source))


def by_stem(
    row: Benchmark,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    where: Path,
    request: Request,
    stems: Iterable[str] | None = None,
    labels: PublishedLabels | None = None,
) -> Split:
    """The split whose photos and annotations have one name; of `stems` only, where a list gives them.

    where: what to name in errors; labels: the published values, where they are not the row's own.

    Raises:
        DatasetError: photos and annotations do not match.
    """
    wanted = sorted({*images, *masks}) if stems is None else stems
    whole = found.require_pairs(wanted, images, masks, where, request)
    folder = row.label_folder(request.root)
    items = tuple(Item(stem, images[stem], masks[stem], folder / f"{stem}.png") for stem in whole)
    converter = PixelValues(labels or published(row.class_list), row.void)
    return Split(row, request.root, converter, items)
