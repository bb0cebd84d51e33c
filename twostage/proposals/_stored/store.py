"""What a reader of stored masks offers, whatever the format, and the names by which images go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from twostage.types import Proposals


class Store(Protocol):
    """Masks of many images in one file or folder."""

    @property
    def ids(self) -> Sequence[str]:
        """What images are called here: the stem of their file where that is known."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of images -> their id."""
        ...

    @property
    def hint(self) -> str:
        """What to try when an image is not found, or ""."""
        ...

    def digests(self) -> Mapping[str, str]:
        """Digest of an image's pixels -> its id, for the images whose pixels were stored."""
        ...

    def read(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        """One image's masks at their stored size; size_hw counts where the store does not tell it.

        Raises:
            CacheError: damaged.
        """
        ...


def stem_of(name: str) -> str:
    """ "a/photo.jpg", "a\\photo.jpg" or a URL's path -> "photo"."""
    return PurePosixPath(name.replace("\\", "/")).stem


def ids_of(names: Sequence[str]) -> list[str]:
    """An id for each file name: its stem, or the path without ending where two files share a stem."""
    stems = [stem_of(name) for name in names]
    often = Counter(stems)
    paths = [
        str(PurePosixPath(name.replace("\\", "/")).with_suffix("")) if stem_of(name) else "" for name in names
    ]
    return [stem if often[stem] == 1 else path for stem, path in zip(stems, paths, strict=True)]
