"""The options of the dense readout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twostage.dense import _checks, _frame, _post
from twostage.readout import presets
from twostage.readout.preset import Preset

KNOBS = ("attention", "heads", "keys", "residual", "ffn", "positions", "suppress", "class_token")
"""Knobs of a preset that options of the same name replace."""


@dataclass(frozen=True)
class ReadoutOptions(_post.PostOptions):
    """What the tower is shown, and how its last block is read.

    preset: the published way to read it (`twostage dense list`). settings: numbers of that preset's own, by
    name. short_edge: pixels of the image's short side before the tower; None: twice the tower's own size; 0:
    as it is. long_edge: pixels that the long side may have at most. antialias: resize smoothly, or (False) as
    OpenCV's INTER_LINEAR, which the public evaluations use. fit: "round" the size to whole patches, "pad"
    with zeros after normalisation and cut the logits, or "floor": leave out what is less than a patch.
    window, stride: edge and step of sliding windows in pixels; 0: the whole image at once; stride 0: half a
    window. scale: factor on cosines, None for the text bank's; logit_factor: a further one; dense cosines
    spread less than those of crops. chunk: images or windows in one pass of the tower. image: also look at
    every image as a whole, in one more pass at the tower's own size that no knob touches (DenseScores.image,
    for the ensemble's presence and prune). post, post_iterations, post_dilations, post_grid: places that look
    alike agree, by "pamr" or "propagate", on the stitched logits before synonyms are joined; the map is then
    as fine as the resized image. guest: the second vision model of presets that ask one, "clip",
    "timm:MODEL", "timm:MODEL@FILE" or "your.package:function" (see `twostage.readout.guest`).

    The knobs of the preset that can be turned, empty or None for the preset's own: attention, where tokens
    look, written as in "0.5 * qq + 0.5 * [kk + gauss(5)]"; heads: "each" or "mean"; keys: "all" or "patches";
    residual, ffn: whether the last block adds its input and runs its MLP; positions: how the position table
    is brought to the grid; suppress: blocks whose loudest MLP channel is scaled down; class_token: share of
    the class token added to every patch.
    """

    preset: str = "maskclip"
    settings: Mapping[str, Any] = field(default_factory=dict)
    short_edge: int | None = None
    long_edge: int = 2048
    antialias: bool = True
    fit: _frame.Fit = "round"
    window: int = 0
    stride: int = 0
    scale: float | None = None
    logit_factor: float = 1.0
    chunk: int = 8
    image: bool = False
    attention: str = ""
    heads: str = ""
    keys: str = ""
    residual: bool | None = None
    ffn: bool | None = None
    positions: str = ""
    suppress: tuple[int, ...] | None = None
    class_token: float | None = None
    guest: str = ""

    def __post_init__(self) -> None:
        _checks.options(self)
        _post.check(self, self.logit_factor)
        _checks.guest(self.guest, self.chosen())

    def chosen(self) -> Preset:
        """The preset with its settings and knobs changed as asked."""
        found = presets.find(self.preset).with_settings(self.settings)
        changed = {name: getattr(self, name) for name in KNOBS if getattr(self, name) not in ("", None)}
        return replace(found, knobs=replace(found.knobs, **changed))

    def facts(self) -> dict[str, Any]:
        """For results files: how the tower is read, and what resizes the photo."""
        smooth = "antialiased" if self.antialias else "as OpenCV, rounded to grey levels"
        return {**self.chosen().facts(), "resize": f"torch bilinear, {smooth}"}
