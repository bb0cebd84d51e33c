"""The dense readouts as people read them: a table of figures, and a paragraph on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from twostage.readout.preset import BENCHMARKS

_SHORT = {"Context60": "PC60", "Context59": "PC59", "COCO-Object": "Obj", "COCO-Stuff": "Stuff"}
_SHORT |= {"Cityscapes": "City", "ADE20K": "ADE"}
CAPTION = (
    "Published mIoU with CLIP ViT-B/16, each under its own paper's protocol, none measured here. "
    "PC: Pascal Context, Obj: COCO-Object."
)


def figures(presets: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each preset: what it needs, and its published figures."""
    table = Table(box=None, padding=(0, 1, 0, 0), caption=CAPTION, caption_justify="left")
    table.add_column("preset", style="bold", no_wrap=True)
    table.add_column("looks", no_wrap=True)
    table.add_column("needs", no_wrap=True)
    for name in BENCHMARKS:
        table.add_column(_SHORT.get(name, name), justify="right", no_wrap=True)
    for one in presets:
        found = [one["published"].get(name) for name in BENCHMARKS]
        shown = ["" if value is None else f"{value:.1f}" for value in found]
        table.add_row(one["name"], "once" if one["single_pass"] else "more", needs(one), *shown)
    return table


def needs(preset: Mapping[str, Any]) -> str:
    """What a preset needs beside CLIP."""
    wanted = (("model", "guest"), ("masks", "regions"))
    return "+".join(word for word, key in wanted if preset[key])


def paragraphs(presets: Sequence[Mapping[str, Any]]) -> Iterator[Padding]:
    """Title, source, knobs that differ from CLIP as trained, settings and note of each."""
    for one in presets:
        text = Text(f"{one['name']}: {one['title']}", style="bold")
        lines = [one["source"]]
        knobs = ", ".join(f"{name} {_written(one['knobs'][name])}" for name in one["changed"])
        lines.append(f"knobs: {knobs or 'CLIP as trained'}")
        if one["settings"]:
            lines.append("settings: " + ", ".join(_setting(one, name) for name in one["settings"]))
        others = {name: value for name, value in one["published"].items() if name not in BENCHMARKS}
        if others:
            lines.append("also published: " + ", ".join(f"{name} {value}" for name, value in others.items()))
        if one["note"]:
            lines.append(f"note: {one['note']}")
        text.append("\n" + "\n".join(lines), style="not bold")
        yield Padding(text, (1, 0, 0, 0))


def _setting(preset: Mapping[str, Any], name: str) -> str:
    choices = preset["choices"].get(name, ())
    return f"{name} {_written(preset['settings'][name])}" + (f" ({' | '.join(choices)})" if choices else "")


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_written(item)}" for name, item in value.items()) + ")"
    if isinstance(value, list):
        return "(" + ", ".join(_written(item) for item in value) + ")"
    return f"{value!r}" if value == "" else str(value)
