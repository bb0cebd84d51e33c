"""classes.json: which number in a mask stands for which word, which words were seen, what to ignore."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twostage.data.errors import DatasetError, LabelError
from twostage.types import VOID
from twostage.vocabulary import Vocabulary, nearest

FILE_NAME = "classes.json"
EXAMPLE = '{"ignore": 0, "classes": [{"id": 1, "name": "person"}, {"id": 2, "name": ["couch", "sofa"]}]}'
KEYS = ("id", "name", "seen", "background")
"""What an entry of the list may have."""
_UNDECLARED = -2


@dataclass(frozen=True)
class ClassList:
    """The vocabulary (its label_ids are the numbers in the masks) and the numbers that mean "do not care"."""

    vocabulary: Vocabulary
    ignore: tuple[int, ...]

    def undeclared(self, raw: Tensor) -> list[int]:
        """The values of raw (H, W) int32 that neither a class nor `ignore` stands for, ascending."""
        return np.unique(raw.numpy()[self._positions(raw) == _UNDECLARED]).tolist()  # type: ignore[no-any-return]

    def to_labels(self, raw: Tensor, source: str, undeclared: str = "error") -> Tensor:
        """Numbers of a mask file (H, W) int32 -> index into the vocabulary (H, W) int32, VOID where ignored.

        undeclared: "error", or "ignore" to treat undeclared numbers as ignored.

        Raises:
            LabelError: undeclared numbers; the message names source, numbers and remedy.
        """
        positions = self._positions(raw)
        strange = positions == _UNDECLARED
        if undeclared == "error" and strange.any():
            values = np.unique(raw.numpy()[strange]).tolist()
            shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
            raise LabelError(
                f"{source}: values {shown} ({int(strange.sum())} pixels) are in no class of {FILE_NAME}. "
                "Declare them "
                'there, add them to its "ignore", or open the data set with undeclared="ignore".'
            )
        return torch.from_numpy(np.where(strange, VOID, positions).astype(np.int32))

    def _positions(self, raw: Tensor) -> np.ndarray:
        ids = self.vocabulary.label_ids
        table = np.full(max(*ids, *self.ignore, 0) + 2, _UNDECLARED, dtype=np.int32)
        table[list(self.ignore)] = VOID
        table[list(ids)] = np.arange(len(ids))
        values = raw.numpy()
        last = len(table) - 1
        return table[np.where((values < 0) | (values > last), last, values)]


def read_class_list(path: str | Path) -> ClassList:
    """Read and check classes.json.

    "ignore" is a number, a list of numbers, or null (nothing is ignored); without the key it is 255. A class
    has "id", "name" (a word, "couch|sofa", or a list of synonyms), "seen" (true where absent, as long as any
    class has it) and "background" (true for one class at most: that is everything else).

    Raises:
        DatasetError: missing, not JSON (with the line), empty, or with ids or names that repeat.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
        raise DatasetError(f'{path}: expected an object with a list called "classes", as in {EXAMPLE}')
    for key in content:
        if key not in {"ignore", "classes"}:
            raise DatasetError(f"{path}: unknown key {key!r}.{nearest(key, ['ignore', 'classes'])}")
    entries = content["classes"]
    if not entries:
        raise DatasetError(f"{path}: the class list is empty. Give at least one class, as in {EXAMPLE}")
    names = tuple(_names(path, place, entry) for place, entry in enumerate(entries))
    ids = tuple(
        _number(path, f'the "id" of class {names[place][0]!r}', e["id"]) for place, e in enumerate(entries)
    )
    ignore = _ignore(path, content.get("ignore", 255))
    _refuse_repeats(path, names, ids, ignore)
    return ClassList(Vocabulary(names, _seen(path, entries), ids, _background(path, entries)), ignore)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no class list here. Write one, as in {EXAMPLE}") from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path}: line {error.lineno}, column {error.colno}: not JSON ({error.msg})."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


def _names(path: Path, place: int, entry: Any) -> tuple[str, ...]:
    where = f"{path}: entry {place} of classes"
    if not isinstance(entry, dict) or "id" not in entry or "name" not in entry:
        raise DatasetError(f'{where}: expected an object with "id" and "name", got {json.dumps(entry)[:80]}.')
    for key in entry:
        if key not in KEYS:
            raise DatasetError(f"{where}: unknown key {key!r}.{nearest(key, KEYS)}")
    given = entry["name"]
    words = given.split("|") if isinstance(given, str) else given
    if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
        raise DatasetError(
            f'{where}: "name" has to be a word, or a list of synonyms, got {json.dumps(given)}.'
        )
    return tuple(word.strip() for word in words)


def _number(path: Path, what: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 65535:
        raise DatasetError(f"{path}: {what} has to be an integer 0..65535, got {json.dumps(value)}.")
    return value


def _ignore(path: Path, given: Any) -> tuple[int, ...]:
    values = [] if given is None else given if isinstance(given, list) else [given]
    return tuple(sorted({_number(path, '"ignore"', value) for value in values}))


def _seen(path: Path, entries: list[dict[str, Any]]) -> tuple[bool, ...] | None:
    flags = [entry.get("seen", True) for entry in entries]
    for entry, flag in zip(entries, flags, strict=True):
        if not isinstance(flag, bool):
            raise DatasetError(
                f'{path}: "seen" of class {entry["name"]!r} has to be true or false, got {flag!r}.'
            )
    return tuple(flags) if any("seen" in entry for entry in entries) else None


def _background(path: Path, entries: list[dict[str, Any]]) -> int | None:
    flags = [entry.get("background", False) for entry in entries]
    for entry, flag in zip(entries, flags, strict=True):
        if not isinstance(flag, bool):
            raise DatasetError(
                f'{path}: "background" of class {entry["name"]!r} has to be true or false, got {flag!r}.'
            )
    if sum(flags) > 1:
        raise DatasetError(f'{path}: {sum(flags)} classes are "background": one at most can be all the rest.')
    return flags.index(True) if any(flags) else None


def _refuse_repeats(
    path: Path, names: tuple[tuple[str, ...], ...], ids: tuple[int, ...], ignore: tuple[int, ...]
) -> None:
    owner_of_id: dict[int, str] = {}
    owner_of_word: dict[str, int] = {}
    for synonyms, number in zip(names, ids, strict=True):
        if number in owner_of_id:
            raise DatasetError(
                f"{path}: id {number} is given to both {owner_of_id[number]!r} and {synonyms[0]!r}."
            )
        if number in ignore:
            raise DatasetError(
                f'{path}: id {number} is both the class {synonyms[0]!r} and in "ignore". Keep one.'
            )
        owner_of_id[number] = synonyms[0]
        for word in synonyms:
            if word in owner_of_word:
                raise DatasetError(
                    f"{path}: the name {word!r} occurs for id {owner_of_word[word]} and id {number}."
                )
            owner_of_word[word] = number
