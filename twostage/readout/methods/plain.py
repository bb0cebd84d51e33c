"""Methods that only change where the tokens of the last block look: their presets are all there is."""

from __future__ import annotations

from dataclasses import replace

from twostage.readout.knobs import Knobs
from twostage.readout.preset import LOCAL, Preset, figures

PRESETS = (
    Preset(
        "vanilla",
        "CLIP as trained",
        "Radford et al., ICML 2021",
        Knobs(),
        published=figures(18.6, 7.8, 6.5, 49.1, 11.2, 7.2, 6.7, 3.2),
    ),
    Preset(
        "sclip",
        "SCLIP",
        "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference; Wang, Mei, Yuille; ECCV 2024",
        Knobs(attention="qq + kk"),
        published=figures(59.1, 30.4, 30.5, 80.4, 34.2, 22.4, 32.2, 16.1),
    ),
    Preset(
        "clearclip",
        "ClearCLIP",
        "Decomposing CLIP Representations for Dense Vision-Language Inference; Lan et al.; ECCV 2024",
        replace(LOCAL, attention="qq"),
        published=figures(51.8, 32.6, 33.0, 80.9, 35.9, 23.9, 30.0, 16.7),
    ),
    Preset(
        "naclip",
        "NACLIP",
        "Pay Attention to Your Neighbours; Hajimiri, Ben Ayed, Dolz; WACV 2025",
        replace(LOCAL, attention="[kk + gauss(5)]"),
        published=figures(58.9, 32.2, 33.2, 79.7, 35.2, 23.3, 35.5, 17.4),
        note="figures without PAMR",
    ),
    Preset(
        "pearl",
        "PEARL",
        "PEARL; CVPR 2026",
        replace(LOCAL, attention="[qk_procrustes(5) + 0.08 * kk_centred]"),
        published=figures(64.1, 35.1, 37.3, 86.9, 38.6, 26.3, 37.6, 19.4),
        note="figures include label propagation (POST propagate)",
    ),
)
