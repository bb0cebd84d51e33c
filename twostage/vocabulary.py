"""The words: class names with synonyms, which of them were seen in training, and their ids in label files."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twostage.errors import TwostageError


class VocabularyError(TwostageError):
    """A vocabulary is empty, repeats itself, or lacks a class that was asked for."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest of the allowed words, or the list itself when none is close."""
    choices = sorted(allowed)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Allowed: {', '.join(choices[:30])}{', ...' if len(choices) > 30 else ''}."


@dataclass(frozen=True)
class Vocabulary:
    """K classes, each one or more names (the first is shown to people, all are shown to CLIP).

    names: K tuples of synonyms; seen: K flags, or None when nothing is known (every class then follows the
    unseen rule of the ensemble); label_ids: the K integers that stand for the classes in label files, default
    0..K-1; background: position of the class that is everything else, shown as "background" whatever its
    names are, or None.
    """

    names: tuple[tuple[str, ...], ...]
    seen: tuple[bool, ...] | None = None
    label_ids: tuple[int, ...] = ()
    background: int | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise VocabularyError(
                'The class list is empty: give at least one name, as in "cat, sofa, other".'
            )
        cleaned = tuple(tuple(name.strip() for name in synonyms) for synonyms in self.names)
        for position, synonyms in enumerate(cleaned):
            if not synonyms or not all(synonyms):
                raise VocabularyError(
                    f"Class {position} has an empty name: every class needs at least one word."
                )
        shown = [synonyms[0] for synonyms in cleaned]
        twice = sorted({name for name in shown if shown.count(name) > 1})
        if twice:
            raise VocabularyError(f"Class names must differ, but these occur twice: {', '.join(twice)}.")
        object.__setattr__(self, "names", cleaned)
        if self.seen is not None and len(self.seen) != len(cleaned):
            raise VocabularyError(f"Expected {len(cleaned)} seen flags, got {len(self.seen)}.")
        if self.seen is not None:
            object.__setattr__(self, "seen", tuple(bool(flag) for flag in self.seen))
        if not self.label_ids:
            object.__setattr__(self, "label_ids", tuple(range(len(cleaned))))
        if len(self.label_ids) != len(cleaned) or len(set(self.label_ids)) != len(cleaned):
            raise VocabularyError(f"Expected {len(cleaned)} different label ids, got {self.label_ids}.")
        if self.background is not None and not 0 <= self.background < len(cleaned):
            raise VocabularyError(
                f"background: expected the position of one of {len(cleaned)} classes, got {self.background}."
            )

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_words(cls, words: str | Sequence[str]) -> Vocabulary:
        """From "cat, sofa|couch, other": commas separate classes, bars synonyms. No class counts as seen."""
        parts = words.split(",") if isinstance(words, str) else list(words)
        parts = [part for part in (part.strip() for part in parts) if part]
        return cls(tuple(tuple(name.strip() for name in part.split("|") if name.strip()) for part in parts))

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """One class a line, synonyms separated by bars, '#' begins a comment."""
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise VocabularyError(f"Cannot read the class list {path}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise VocabularyError(
                f"{path} is no text in UTF-8 ({error}): save the class list as UTF-8."
            ) from error
        return cls.from_words([line.split("#", 1)[0] for line in lines])

    @property
    def shown(self) -> tuple[str, ...]:
        """The first name of each class; "background" for the one that is everything else."""
        return tuple(
            "background" if place == self.background else synonyms[0]
            for place, synonyms in enumerate(self.names)
        )

    @property
    def every_name(self) -> tuple[str, ...]:
        """All names of all classes, synonyms included, in order."""
        return tuple(name for synonyms in self.names for name in synonyms)

    @property
    def digest(self) -> str:
        """16 hex digits over the names in order: vocabularies with one digest give the same text features."""
        text = json.dumps(self.names, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def index(self, name: str) -> int:
        """Position of the class with this name or synonym.

        Raises:
            VocabularyError: no class has it; the message names the nearest.
        """
        for position, synonyms in enumerate(self.names):
            if name.strip() in synonyms:
                return position
        raise VocabularyError(f"Unknown class {name!r}.{nearest(name, self.shown)}")

    def subset(self, positions: Sequence[int]) -> Vocabulary:
        """The classes at these positions, in this order."""
        seen = None if self.seen is None else tuple(self.seen[p] for p in positions)
        ids = tuple(self.label_ids[p] for p in positions)
        kept = {position: place for place, position in enumerate(positions)}
        rest = None if self.background is None else kept.get(self.background)
        return Vocabulary(tuple(self.names[p] for p in positions), seen, ids, rest)

    def seen_only(self) -> Vocabulary:
        """The seen classes alone; all of them when no flags are known."""
        if self.seen is None:
            return self
        if not any(self.seen):
            raise VocabularyError(
                "No class counts as seen, so none is left: flag at least one class as seen."
            )
        return self.subset([p for p, flag in enumerate(self.seen) if flag])

    def with_seen(
        self, trained: Iterable[str], forms: Callable[[str], Iterable[str]] = lambda name: (name.strip(),)
    ) -> Vocabulary:
        """The same classes, flagged seen where any of their names is among the trained ones.

        forms: what a name may be matched by; by default the name itself.
        """
        known = {form for name in trained for form in forms(name)}
        seen = tuple(
            any(form in known for name in synonyms for form in forms(name)) for synonyms in self.names
        )
        return replace(self, seen=seen)
