"""GCLIP: attention maps of the blocks where a global token emerges join the last block's own.

Without public code, some of it is open. What is taken, the best supported reading of each, and how to take
another: the map is the mean over heads (knob heads "each" pairs head with head); query-query attention and
the two blocks' maps weigh the same (knob attention); blocks 6 and 7 of twelve count from 0 (knob attention,
or setting blocks "auto"); patches look at the class token too (knob keys "patches" cuts it, without bringing
rows to one again); channels are suppressed in blocks 7 to 11 (knob suppress), weights alone (setting bias
"scaled" takes the bias along).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from twostage.readout.attention import blocks_of, written
from twostage.readout.engine import NATIVE_DEPTH, fitted
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, on_grid
from twostage.readout.preset import LOCAL, Preset, figures
from twostage.readout.stripes import TIMES, emerging, fall_back

KNOBS: Knobs = replace(
    LOCAL,
    attention="1/3 * qq + 1/3 * captured(6) + 1/3 * captured(7)",
    heads="mean",
    suppress=(7, 8, 9, 10, 11),
)


def gclip(look: Look) -> Tensor:
    """One reading whose attention is fused with that of the emerging blocks."""
    bias = look.settings["bias"] == "scaled"
    reading = look.read(attention=fused(look), suppress_bias=bias)
    return on_grid(look.cosines(reading) * look.scale, reading.grid)


def fused(look: Look) -> str:
    """The attention with the emerging blocks in the place of those it names.

    With blocks "auto" these are the block where global tokens emerge, found on the images of the first look
    (or before, by `twostage.readout.stripes.emerging`), and those after it. Otherwise they stay; only the
    preset's own two become the middle block and the next one in a tower that has not twelve. Blocks stop
    before the last one.
    """
    depth, knobs = len(look.tower.blocks), look.knobs
    named = sorted({block for blocks in blocks_of(knobs.groups, "captured") for block in blocks})
    if look.settings["blocks"] == "auto":
        first = emerging(look.tower, look.pixels, look.settings["times"], knobs.positions)
    elif depth != NATIVE_DEPTH and knobs.attention == fitted(KNOBS, depth).attention:
        first = fall_back(depth)
    else:
        return knobs.attention
    return written(knobs.groups, {block: min(first + n, depth - 2) for n, block in enumerate(named)})


PRESETS = (
    Preset(
        "gclip",
        "GCLIP",
        "Rethinking the Global Knowledge of CLIP (Globality Strikes Back); Wang et al.; arXiv 2502.06818",
        KNOBS,
        method=gclip,
        settings={"blocks": "preset", "times": TIMES, "bias": "kept"},
        choices={"blocks": ("preset", "auto"), "bias": ("kept", "scaled")},
        published=figures(None, None, None, None, None, 24.8, 33.7, 18.5),
        note=(
            "no public code: mean over heads, equal weights of the three maps and blocks 6 and 7 are the "
            "best supported reading; HEADS, ATTENTION, KEYS, SUPPRESS change them, blocks 'auto' finds them"
        ),
    ),
)
