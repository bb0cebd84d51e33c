"""Vocabulary x templates -> text bank, encoded in chunks and kept on disk.

A name's feature is the mean of its prompts' unit features, normalised again (Radford et al., 2021). Synonyms
are rows of the same class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from twostage.clip import prompts
from twostage.clip.text_cache import read_features, write_features
from twostage.errors import TwostageError
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary, nearest

PAPER_SCALE = 100.0
"""The constant that the two-stage baseline multiplies cosines with (Xu et al., 2022), whatever the model
learned."""

LogitScale = Literal["paper", "model"] | float
Progress = Callable[[int, int], None]


class TextBankError(TwostageError):
    """A text bank cannot be made: an unknown option, or a file whose rows do not fit the vocabulary."""


class HasScale(Protocol):
    """A model that learned a factor on cosines."""

    @property
    def logit_scale(self) -> float: ...


class TextEncoder(Protocol):
    """The part of `ClipModel` that a text bank needs."""

    @property
    def digest(self) -> str: ...

    @property
    def logit_scale(self) -> float: ...

    def encode_text(self, texts: Sequence[str]) -> Tensor: ...


def build_text_bank(
    clip: TextEncoder,
    vocabulary: Vocabulary,
    templates: str | Path | Sequence[str] = "vild",
    *,
    logit_scale: LogitScale = "paper",
    no_object: Tensor | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    chunk: int = 256,
) -> TextBank:
    """Encode every name of a vocabulary with every template.

    logit_scale: "paper" (100), "model" (what the model learned) or a number. no_object: (D,) feature of "none
    of these". cache_dir: features are read from and written to this folder, under a digest of model,
    templates and names. progress: called with (names done, names in all). chunk: prompts in flight.

    Raises:
        PromptError: unusable templates. ClipError: a prompt does not fit into the context.
    """
    chosen = prompts.load_templates(templates)
    names, class_of = rows_of(vocabulary)
    scale = scale_of(logit_scale, clip)
    file = None if cache_dir is None else Path(cache_dir) / f"text-{_key(clip, chosen, names)}.safetensors"
    features = None if file is None else read_features(file, len(names))
    if features is None:
        features = encode_names(clip, names, chosen, progress, chunk)
        if file is not None:
            write_features(file, features, {"templates": json.dumps(chosen), "names": json.dumps(names)})
    elif progress is not None:
        progress(len(names), len(names))
    if no_object is not None:
        no_object = F.normalize(no_object.detach().float().cpu().reshape(-1), dim=0)
    return TextBank(features, class_of, len(vocabulary), scale, no_object)


def rows_of(vocabulary: Vocabulary) -> tuple[list[str], Tensor]:
    """The names of all classes in order, synonyms included, and the class of each: T strings and (T,)
    int64."""
    names = [name for synonyms in vocabulary.names for name in synonyms]
    class_of = [position for position, synonyms in enumerate(vocabulary.names) for _ in synonyms]
    return names, torch.tensor(class_of)


def encode_names(
    clip: TextEncoder,
    names: Sequence[str],
    templates: Sequence[str],
    progress: Progress | None = None,
    chunk: int = 256,
) -> Tensor:
    """(len(names), D) float32 unit rows on the CPU. A name that occurs twice is encoded once."""
    distinct = list(dict.fromkeys(names))
    at_once = max(1, chunk // len(templates))
    rows: list[Tensor] = []
    for start in range(0, len(distinct), at_once):
        part = distinct[start : start + at_once]
        filled = [prompts.fill(template, name) for name in part for template in templates]
        features = clip.encode_text(filled).reshape(len(part), len(templates), -1)
        rows.append(F.normalize(features.mean(dim=1), dim=-1).cpu())
        if progress is not None:
            progress(min(start + at_once, len(distinct)), len(distinct))
    place = {name: row for row, name in enumerate(distinct)}
    return torch.cat(rows)[[place[name] for name in names]]


def scale_of(logit_scale: LogitScale, clip: HasScale) -> float:
    if logit_scale == "paper":
        return PAPER_SCALE
    if logit_scale == "model":
        return clip.logit_scale
    if isinstance(logit_scale, str) or not float(logit_scale) > 0:
        raise TextBankError(
            f"Text bank: logit_scale must be 'paper', 'model' or a positive number, got {logit_scale!r}."
        )
    return float(logit_scale)


def _key(clip: TextEncoder, templates: Sequence[str], names: Sequence[str]) -> str:
    """16 hex digits; the leading number changes when the recipe does."""
    text = json.dumps([1, clip.digest, list(templates), list(names)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_text_bank(
    path: str | Path,
    vocabulary: Vocabulary,
    names: Sequence[str] | str | Path | None = None,
    *,
    dim: int | None = None,
    key: str | None = None,
    logit_scale: float = PAPER_SCALE,
) -> TextBank:
    """Text features that somebody computed beforehand, from a .npy, .npz or .safetensors file.

    Without `names` the rows stand in the vocabulary's order: one a class, or one a name with the synonyms of
    a class together. `names` (a list, or a JSON file with one) says what each row of the file is; every class
    then takes the rows of those of its names that are listed. dim: the width that the image features have, if
    known. key: the array in a file with several. Rows are normalised.

    Raises:
        TextBankError: unreadable file, wrong count or width, a row without length, a class without a row.
    """
    path = Path(path)
    features = _read_array(path, key).float()
    if features.ndim != 2 or (dim is not None and features.shape[1] != dim):
        width = "D" if dim is None else str(dim)
        raise TextBankError(
            f"{path}: expected text features of shape (rows, {width}), got {tuple(features.shape)}."
            " Were they made with the text tower of another CLIP model?"
        )
    rows, class_of = _pick_rows(path, len(features), vocabulary, _names_list(names))
    features = features[rows]
    lengths = features.norm(dim=1)
    if not (torch.isfinite(lengths).all() and (lengths > 0).all()):
        row = int((~(torch.isfinite(lengths) & (lengths > 0))).nonzero()[0])
        raise TextBankError(f"{path}: row {rows[row]} is zero or not finite, so it has no direction.")
    return TextBank(F.normalize(features, dim=1), class_of, len(vocabulary), logit_scale)


def _pick_rows(
    path: Path, count: int, vocabulary: Vocabulary, listed: list[str] | None
) -> tuple[list[int], Tensor]:
    """Which rows of the file to take, and the class of each."""
    names, class_of = rows_of(vocabulary)
    if listed is None:
        if count == len(names):
            return list(range(count)), class_of
        if count == len(vocabulary):
            return list(range(count)), torch.arange(count)
        raise TextBankError(
            f"{path}: expected {len(vocabulary)} rows, one for each class, got {count}."
            " Give the list of the names that the rows stand for, to pick by name."
        )
    if len(listed) != count:
        raise TextBankError(f"{path}: holds {count} rows, but {len(listed)} names were given for them.")
    place = {name.strip(): row for row, name in enumerate(listed)}
    found = [(place[name], int(k)) for name, k in zip(names, class_of, strict=True) if name in place]
    for position, shown in enumerate(vocabulary.shown):
        if all(k != position for _, k in found):
            raise TextBankError(f"{path}: no row for the class {shown!r}.{nearest(shown, place)}")
    return [row for row, _ in found], torch.tensor([k for _, k in found])


def _names_list(names: Sequence[str] | str | Path | None) -> list[str] | None:
    if names is None:
        return None
    if not isinstance(names, (str, Path)):
        return list(names)
    try:
        listed = json.loads(Path(names).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TextBankError(f"{names}: cannot be read as a JSON list of names ({error}).") from error
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise TextBankError(f'{names}: expected a JSON list of names, as in ["cat", "sofa"].')
    return listed


def _read_array(path: Path, key: str | None) -> Tensor:
    """The one array of the file, or the one called `key`."""
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: torch.from_numpy(archive[name].astype(np.float32)) for name in archive.files}
        elif path.suffix == ".safetensors":
            arrays = load_file(path)
        else:
            raise TextBankError(f"{path}: expected a .npy, .npz or .safetensors file.")
    except (OSError, EOFError, SafetensorError, ValueError) as error:
        if isinstance(error, TextBankError):
            raise
        raise TextBankError(f"{path}: cannot be read as an array of numbers ({error}).") from error
    if key is None and len(arrays) != 1:
        raise TextBankError(
            f"{path}: holds several arrays ({', '.join(sorted(arrays))}): say which with `key`."
        )
    if key is not None and key not in arrays:
        raise TextBankError(f"{path}: holds no array {key!r}.{nearest(key, arrays)}")
    return arrays[key or next(iter(arrays))]
