"""GCLIP: attention maps of the blocks where a global token emerges join the last block's own."""

from __future__ import annotations

from dataclasses import replace

from twostage.readout.preset import LOCAL, Preset, figures

PRESETS = (
    Preset(
        "gclip",
        "GCLIP",
        "Rethinking the Global Knowledge of CLIP (Globality Strikes Back); Wang et al.; arXiv 2502.06818",
        replace(
            LOCAL,
            attention="1/3 * qq + 1/3 * captured(6) + 1/3 * captured(7)",
            heads="mean",
            suppress=(7, 8, 9, 10, 11),
        ),
        settings={"blocks": "preset"},
        choices={"blocks": ("preset", "auto")},
        published=figures(None, None, None, None, None, 24.8, 33.7, 18.5),
        note=(
            "no public code: mean over heads, equal weights of the three maps and blocks 6 and 7 are the "
            "best supported reading; HEADS, ATTENTION and SUPPRESS change them, blocks 'auto' finds them"
        ),
    ),
)
