"""MaskCLIP: every token keeps its own value; two refinements look at all places of an image."""

from __future__ import annotations

from torch import Tensor

from twostage.readout import vit
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, on_grid
from twostage.readout.preset import Preset, figures
from twostage.readout.refine import refined


def maskclip(look: Look) -> Tensor:
    """MaskCLIP with its two refinements, which look at all places of an image (Zhou et al., 2022, 3.2)."""
    reading, last = look.read(), look.tower.blocks[-1]

    def keys() -> Tensor:
        return vit.merge_heads(last, vit.project(last, reading.record.entering, "k")[0])[:, 1:]

    return on_grid(refined(look.cosines(reading), keys, look.settings, look.scale), reading.grid)


PRESETS = (
    Preset(
        "maskclip",
        "MaskCLIP",
        "Extract Free Dense Labels from CLIP; Zhou, Loy, Dai; ECCV 2022; arXiv 2112.01071",
        Knobs(attention="identity", positions="bicubic"),
        method=maskclip,
        settings={"prompt_denoise": 0.0, "key_smooth": 0.0, "key_norm": "channels"},
        choices={"key_norm": ("channels", "tokens")},
        published=figures(43.4, 23.2, 20.6, 74.9, 26.4, 16.4, 12.6, 9.8),
        note="figures of later papers' protocol; prompt denoising 0.5 and key smoothing 1.0 are the paper's",
    ),
)
