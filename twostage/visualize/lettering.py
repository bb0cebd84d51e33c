"""Words on pictures: a font that can show them, and names cut to the room there is."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Looked for by name in the system's font folders; the first that has every letter of a text writes it.
_FONTS = (
    "DejaVuSans.ttf",
    "Arial.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "msgothic.ttc",
    "PingFang.ttc",
)
_NO_LETTER = "\U0010ffff"
"""A code point that no font draws: what comes out is the font's sign for "missing"."""


def clean(text: str) -> str:
    """One line of printable characters: line breaks, tabs and control characters become blanks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@lru_cache(maxsize=64)
def fonts(size: int) -> tuple[Font, ...]:
    """The fonts at hand at this height in pixels; Pillow's own comes last and is always there."""
    found: list[Font] = []
    for name in _FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return (*found, ImageFont.load_default(size))


def font_for(text: str, size: int) -> Font:
    """The first font that can draw every letter of the text, else the first."""
    available = fonts(size)
    return next((font for font in available if all(_can_draw(font, c) for c in set(text))), available[0])


@lru_cache(maxsize=4096)
def _can_draw(font: Font, letter: str) -> bool:
    if letter == " ":
        return True
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))


def text_width(text: str, size: int) -> int:
    """Width in pixels of a cleaned text."""
    return round(font_for(text, size).getlength(text))


def shorten(text: str, width: int, size: int) -> str:
    """The text, or its beginning and an ellipsis, in at most `width` pixels (one letter at least)."""
    text = clean(text)
    if text_width(text, size) <= width:
        return text
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def write(
    canvas: Image.Image, position_xy: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]
) -> None:
    """Draw a cleaned text; position_xy is the left end of its middle line."""
    font = font_for(text, size)
    anchor = "lm" if isinstance(font, ImageFont.FreeTypeFont) else None
    ImageDraw.Draw(canvas).text(position_xy, text, fill=colour, font=font, anchor=anchor)
