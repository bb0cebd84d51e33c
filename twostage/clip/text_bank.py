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

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip import prompts
from twostage.clip.text_cache import read_features, write_features
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary

PAPER_SCALE = 100.0
"""The constant that the two-stage baseline multiplies cosines with (Xu et al., 2022), whatever the model
learned."""

LogitScale = Literal["paper", "model"] | float
Progress = Callable[[int, int], None]


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
    scale = _scale(logit_scale, clip)
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


def _scale(logit_scale: LogitScale, clip: TextEncoder) -> float:
    if logit_scale == "paper":
        return PAPER_SCALE
    if logit_scale == "model":
        return clip.logit_scale
    if isinstance(logit_scale, str) or not float(logit_scale) > 0:
        raise ValueError(
            f"Text bank: logit_scale must be 'paper', 'model' or a positive number, got {logit_scale!r}."
        )
    return float(logit_scale)


def _key(clip: TextEncoder, templates: Sequence[str], names: Sequence[str]) -> str:
    """16 hex digits; the leading number changes when the recipe does."""
    text = json.dumps([1, clip.digest, list(templates), list(names)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
