"""ResCLIP: maps of earlier blocks join the last block's own, and what a first look found feeds back.

Shapes: B images, h x w grid, N = h * w, L = N + 1 tokens, T rows of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.pamr import pamr
from twostage.ops.same_label import cell_modes, same_label_map
from twostage.readout.attention import PRODUCTS, Group, Term, parse, written
from twostage.readout.engine import Reading
from twostage.readout.look import Look, on_grid
from twostage.readout.preset import LOCAL, Preset, figures

PAPER = "Residual Attention for Training-free Dense Vision-language Inference; Yang et al.; CVPR 2025"
CAPTURED = ("captured", "captured_csa")


def resclip(look: Look) -> Tensor:
    """What the second reading says of the text; where lambda_s is 0, the first."""
    reading = second_reading(look, first_reading(look))
    return on_grid(look.cosines(reading) * look.scale, reading.grid)


def first_reading(look: Look) -> Reading:
    """With the captured maps, without the feedback."""
    return look.read(attention=blended(look.knobs.attention, {**look.settings, "lambda_s": 0.0}))


def second_reading(look: Look, first: Reading) -> Reading:
    """With the feedback too; the early blocks are those of the first reading."""
    attention = blended(look.knobs.attention, look.settings)
    if look.settings["lambda_s"] == 0:
        return first
    found = same_label_map(first_labels(look, first))
    share = (found / found.amax(dim=(1, 2), keepdim=True)).half().float()  # rounded as released
    share = F.pad(share, (1, 0, 1, 0)) if look.knobs.keys == "all" else share
    return look.read_again(first, {"feedback": share[:, None]}, attention=attention)


def first_labels(look: Look, first: Reading) -> Tensor:
    """(B, h, w) int64, the class most frequent in every patch: cosines at the pixels' size, refined by their
    colours; class 0 where the best probability is below temp_thd.
    """
    size = (look.pixels.shape[-2], look.pixels.shape[-1])
    settings, found = look.settings, []
    for pixels, cosines in zip(look.pixels, on_grid(look.cosines(first), first.grid), strict=True):
        full = F.interpolate(cosines[None], size=size, mode="bilinear", align_corners=False)
        full = pamr(pixels[None], full, int(settings["pamr_iterations"]))
        best, row = (full * settings["logit_scale"]).softmax(dim=1).max(dim=1)
        label = row if look.class_of is None else look.class_of.to(row.device)[row]
        found.append(label.masked_fill(best < settings["temp_thd"], 0))
    return cell_modes(torch.cat(found), look.tower.cell_hw)


def blended(attention: str, settings: Mapping[str, float]) -> str:
    """The base's attention with everything weighed in (Yang et al., 2025, 3.2 and 3.3).

    attention: the base's groups, and captured maps. Captured maps get the weight tau_r lambda_r, other groups
    tau_r (1 - lambda_r). Products get the weight tau_s (1 - lambda_s) before their softmax, where the
    feedback joins them with tau_s lambda_s; biases stay. lambda_r 0 leaves the captured maps out; lambda_s 0
    leaves the terms as they are.

    Raises:
        TwostageError: a share outside [0, 1], a factor not above 0, no base, or no product for the
            feedback.
    """
    _check(settings)
    groups = parse(attention)
    share, factor, fed = settings["lambda_r"], settings["tau_r"], settings["lambda_s"] > 0
    if fed and not any(term.name in PRODUCTS for group in groups for term in group.terms):
        raise TwostageError(
            f"ResCLIP: no product in the attention {attention!r} that the feedback could be blended with. "
            f"Add one of {', '.join(PRODUCTS)}, or set lambda_s to 0 for a single reading."
        )
    found = []
    for group in groups:
        captured = group.terms[0].name in CAPTURED
        if captured and share == 0:
            continue
        weight = group.weight * factor * (share if captured else 1 - share)
        found.append(Group(_fed(group.terms, settings) if fed else group.terms, weight))
    if not found:
        raise TwostageError(
            f"ResCLIP: nothing is left of the attention {attention!r} where lambda_r is 0: name a base, as "
            "in '[kk + gauss(5)] + captured(5-8)'."
        )
    return written(tuple(found))


def _fed(terms: tuple[Term, ...], settings: Mapping[str, float]) -> tuple[Term, ...]:
    """The terms of one softmax with the feedback beside their products."""
    share, factor = settings["lambda_s"], settings["tau_s"]
    if not any(term.name in PRODUCTS for term in terms):
        return terms
    kept = [
        replace(term, weight=term.weight * factor * (1 - share)) if term.name in PRODUCTS else term
        for term in terms
    ]
    return (*kept, Term("feedback", factor * share))


def _check(settings: Mapping[str, float]) -> None:
    for name in ("lambda_r", "lambda_s"):
        if not 0 <= settings[name] <= 1:
            raise TwostageError(f"ResCLIP: {name} is a share and should be in 0..1, got {settings[name]}.")
    for name in ("tau_r", "tau_s", "logit_scale"):
        if not settings[name] > 0:
            raise TwostageError(f"ResCLIP: {name} should be above 0, got {settings[name]}.")


PRESETS = (
    Preset(
        "resclip",
        "ResCLIP",
        PAPER,
        replace(LOCAL, attention="[kk + gauss(5)] + captured(5-8)"),
        method=resclip,
        settings={
            "lambda_r": 0.4,
            "tau_r": 2.0,
            "lambda_s": 0.65,
            "tau_s": 2.0,
            "temp_thd": 0.1,
            "logit_scale": 40.0,
            "pamr_iterations": 10,
        },
        published=figures(61.1, 33.5, 35.0, 86.0, 36.8, 24.7, 35.9, 18.0),
        single_pass=False,
        note=(
            "settings between those that the paper chose for each benchmark; ATTENTION names the base and "
            "the captured maps, whose weights are settings: 'qq + kk + captured(5-8)' with RESIDUAL and FFN "
            "on is ResCLIP on SCLIP"
        ),
    ),
    Preset(
        "resclip_lite",
        "ResCLIP, residual cross-correlation alone",
        PAPER,
        replace(LOCAL, attention="0.6 * [kk + gauss(5)] + 0.4 * captured(5-8)"),
        note="one pass; no figure of this part alone is known under this protocol",
    ),
)
