"""Text features that travel with an exported folder, so that its words need no text tower.

`words.npz`: names (T,) text; crops (T, D) float32 rows of length one; stage_one (T, D') where stage one has
prompts of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twostage.clip.text_bank import rows_of
from twostage.data.atomic import replacing
from twostage.export.manifest import ExportError
from twostage.segmenter import Words
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary


@dataclass(frozen=True)
class StoredWords:
    """names: T of them; crops, stage_one: their rows for stage two, and for stage one where they differ."""

    names: tuple[str, ...]
    crops: Tensor
    stage_one: Tensor | None
    logit_scale: float

    def missing(self, vocabulary: Vocabulary) -> list[str]:
        """The names of a vocabulary that are not stored."""
        known = set(self.names)
        return [name for name in vocabulary.every_name if name not in known]

    def words(self, vocabulary: Vocabulary, device: torch.device) -> Words:
        """A vocabulary whose names are all stored, with its text features."""
        names, class_of = rows_of(vocabulary)
        place = {name: row for row, name in enumerate(self.names)}
        rows = [place[name] for name in names]

        def bank(features: Tensor) -> TextBank:
            made = TextBank(features[rows], class_of, len(vocabulary), self.logit_scale)
            return made.to(device)

        stage_one = None if self.stage_one is None else bank(self.stage_one)
        return Words(vocabulary, bank(self.crops), stage_one)


def stored(words: Words) -> StoredWords:
    """The features of these words by name.

    Raises:
        ExportError: they have no row for every name.
    """
    names, class_of = rows_of(words.vocabulary)
    banks = [words.text] if words.stage_one is None else [words.text, words.stage_one]
    if any(not torch.equal(bank.class_of.cpu(), class_of) for bank in banks):
        raise ExportError(
            "--classes: CLIP.TEXT_FEATURES has no row for each of the names, synonyms included. Give each "
            "class one name, or name the rows in CLIP.TEXT_NAMES."
        )
    own = None if words.stage_one is None else words.stage_one.features.float().cpu()
    return StoredWords(tuple(names), words.text.features.float().cpu(), own, words.text.logit_scale)


def write_words(path: Path, words: StoredWords) -> None:
    """Write the file in one step."""
    arrays = {"names": np.array(words.names, dtype=np.str_), "crops": words.crops.numpy()}
    if words.stage_one is not None:
        arrays["stage_one"] = words.stage_one.numpy()
    with replacing(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def read_words(path: Path, logit_scale: float) -> StoredWords:
    """What `write_words` wrote.

    Raises:
        ExportError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        names = tuple(str(name) for name in arrays["names"])
        crops, own = arrays["crops"], arrays.get("stage_one")
        for rows in (crops,) if own is None else (crops, own):
            if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(names):
                raise ValueError(f"rows of shape {rows.shape} and format {rows.dtype} for {len(names)} names")
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as text features ({error}): export again.") from error
    stage_one = None if own is None else torch.from_numpy(own)
    return StoredWords(names, torch.from_numpy(crops), stage_one, logit_scale)
