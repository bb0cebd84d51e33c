"""Prompt templates as data: the sets of the papers, or somebody's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twostage.errors import TwostageError
from twostage.vocabulary import nearest

_FOLDER = Path(__file__).resolve().parent / "templates"
SLOT = "{}"


class PromptError(TwostageError):
    """A template set is unknown, empty, or has a template without a place for the name."""


def available() -> list[str]:
    """Names of the sets that ship with the package: one template, ViLD's 14, the 80 of CLIP's ImageNet
    evaluation."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


def load_templates(templates: str | Path | Sequence[str]) -> tuple[str, ...]:
    """A set by name ("single", "vild", "imagenet"), from a text file (one template a line), or a list of
    templates.

    Raises:
        PromptError: unknown set or unreadable file, no template, or one without "{}".
    """
    if isinstance(templates, (str, Path)):
        found, source = _read(templates), str(templates)
    else:
        found, source = list(templates), "the template list"
    if not found:
        raise PromptError(f"{source}: expected at least one template, as in 'a photo of a {{}}.'.")
    for position, template in enumerate(found, start=1):
        if SLOT not in template:
            raise PromptError(
                f"{source}: template {position} {template!r} has no {{}} where the class name goes."
            )
    return tuple(found)


def fill(template: str, name: str) -> str:
    """The template with the name in place of {}; braces inside the name are left alone."""
    return template.replace(SLOT, name)


def _read(templates: str | Path) -> list[str]:
    shipped = str(templates) in available()
    path = _FOLDER / f"{templates}.txt" if shipped else Path(templates)
    if SLOT in str(templates):
        raise PromptError(f"Templates: got the single string {templates!r}: put it into a list.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = nearest(str(templates), available())
        raise PromptError(
            f"Templates: {str(templates)!r} is neither a set nor a readable file.{hint}"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
