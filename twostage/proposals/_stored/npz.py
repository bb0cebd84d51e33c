"""A folder with one IMAGE_ID.npz an image, as this program writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from twostage.proposals import _cache_files as files
from twostage.types import Proposals


class NpzStore:
    """Everything but stage one's opinion of class names is kept, soft masks too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ids = sorted(path.stem for path in folder.glob("*.npz") if not path.name.startswith("."))
        self.aliases: Mapping[str, str] = {}
        self.hint = ""

    def digests(self) -> Mapping[str, str]:
        """Read from every file; damaged ones are left out."""
        pairs = ((files.read_npz_digest(self._folder / f"{name}.npz"), name) for name in self.ids)
        return {known: name for known, name in pairs if known}

    def read(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        """As stored."""
        return files.read_npz(self._folder / f"{image_id}.npz")
