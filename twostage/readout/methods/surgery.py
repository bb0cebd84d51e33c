"""CLIP Surgery and GEM: a second path through the last blocks gathers what like tokens say.

Shapes: B images, N patches, L tokens, m heads of width d, D width, E joint width, T text rows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.readout.attention import AttentionError
from twostage.readout.look import Look, on_grid
from twostage.readout.paths import Heads, Mixer, TwoPaths, fork_of, read_two, refuse_turned
from twostage.readout.preset import LOCAL, Preset, figures
from twostage.readout.record import Record
from twostage.readout.terms import Scene, attend

EARLIER = ("captured", "captured_csa", "similarity", "feedback", "guest", "given")
"""Terms that need something from outside of the block that is read."""


def read_surgery(look: Look, original: bool = False) -> TwoPaths:
    """Both paths of CLIP Surgery (Li et al., 2023: "architecture surgery").

    Raises:
        TwostageError: a knob that has no effect was turned, or `blocks` is out of range.
        AttentionError: the attention needs more than the block's own queries, keys and values.
    """
    refuse_turned(look.knobs, SURGERY, ("attention", "heads", "positions", "suppress"), "clipsurgery")
    groups = look.knobs.groups
    for term in (term for group in groups for term in group.terms):
        if term.name in EARLIER:
            raise AttentionError(
                f"Preset clipsurgery: {term.name} is not known on the second path, which reads every block "
                "by its own queries, keys and values: write it with vv, qq, kk, qk, gauss or identity."
            )
    mean_heads = look.knobs.heads == "mean"

    def mix(heads: Heads) -> Tensor:
        scene = Scene(heads.q, heads.k, heads.v, heads.grid, True, Record(heads.normed))
        return attend(groups, scene, mean_heads)

    fork = fork_of(look.settings["blocks"], len(look.tower.blocks), "clipsurgery")
    return read_two(look.tower, look.pixels, fork, mix, look.knobs, original)


def feature_surgery(
    unit: Tensor, first: Tensor, text: Tensor, sharpness: float = 2.0, shared: Tensor | None = None
) -> Tensor:
    """(B, N, E) unit patches, (B, E) unit class token, (T, E) unit text -> (B, N, T) cosines without what all
    classes have in common (Li et al., 2023: "feature surgery").

    Every class is weighted by how much the whole image looks like it, w = softmax(sharpness * cosine) over
    the mean of all w; what is taken off is the mean over classes of the weighted products w_c * F_n * t_c,
    channel by channel. shared: (E,) text that stands for the common part, such as an empty prompt's, in
    place of that mean: then F_n . (t_c - shared), as the paper does for one class.
    """
    if shared is not None:
        return unit @ (text - shared).T
    weight = (sharpness * (first @ text.T)).softmax(dim=-1)
    weighted = (weight / weight.mean(dim=-1, keepdim=True))[..., None] * text  # (B, T, E)
    return unit @ (weighted - weighted.mean(dim=1, keepdim=True)).transpose(1, 2)


def clipsurgery(look: Look) -> Tensor:
    """CLIP Surgery: patches of the second path, redundant features taken off unless switched off.

    With a single text row there is nothing to be redundant with, and its cosines stay as they are.
    """
    paths = read_surgery(look)
    if look.settings["feature_surgery"] and len(look.text) > 1:
        scores = feature_surgery(paths.unit, paths.unit_first, look.text, look.settings["sharpness"])
    else:
        scores = paths.unit @ look.text.T
    return on_grid(scores * look.scale, paths.grid)


def self_self(iterations: int, temperature: float) -> Mixer:
    """GEM's attention of queries, keys and values to themselves, the mean of the three (Bousselham et al.,
    2024).

    Each of the three is brought to length one and drawn towards its likes `iterations` times; temperature: of
    the softmax; 0: by image, sqrt(d) over the mean length of the tokens after ln_1, one value for all heads.
    """

    def mix(heads: Heads) -> Tensor:
        sharpness = _sharpness(heads, temperature)
        total = torch.zeros_like(heads.v)
        for part in (heads.q, heads.k, heads.v):
            unit = F.normalize(part, dim=-1)
            for _ in range(iterations):
                drawn = F.scaled_dot_product_attention(unit * sharpness, unit, unit, scale=1.0)
                unit = F.normalize(drawn, dim=-1)
            total += F.scaled_dot_product_attention(unit * sharpness, unit, heads.v, scale=1.0)
        return total / 3

    return mix


def _sharpness(heads: Heads, temperature: float) -> Tensor:
    """(B, 1, 1, 1), or of a single number: one over the temperature."""
    if temperature:
        return heads.v.new_tensor(1 / temperature)
    length = heads.normed.float().norm(dim=-1).mean(dim=-1)
    adapted: Tensor = (length / math.sqrt(heads.q.shape[-1])).to(heads.v.dtype)
    return adapted[:, None, None, None]


def read_gem(look: Look, original: bool = False) -> TwoPaths:
    """Both paths of GEM.

    Raises:
        TwostageError: a knob that has no effect was turned, or a setting is out of range.
    """
    refuse_turned(look.knobs, GEM, ("positions", "suppress"), "gem")
    iterations, temperature = look.settings["iterations"], look.settings["temperature"]
    if iterations != int(iterations) or iterations < 0 or temperature < 0:
        raise TwostageError(
            "Preset gem: iterations should be a whole number from 0, and temperature a number above zero, or "
            f"0 for one adapted to the image; got {iterations} and {temperature}."
        )
    fork = fork_of(look.settings["blocks"], len(look.tower.blocks), "gem")
    mix = self_self(int(iterations), float(temperature))
    return read_two(look.tower, look.pixels, fork, mix, look.knobs, original)


def gem(look: Look) -> Tensor:
    """GEM: patches of the second path, compared with the text."""
    paths = read_gem(look)
    return on_grid(paths.unit @ look.text.T * look.scale, paths.grid)


SURGERY = replace(LOCAL, attention="vv", positions="bilinear")
GEM = replace(LOCAL, attention="1/3 * qq + 1/3 * kk + 1/3 * vv", positions="bicubic_antialias")

PRESETS = (
    Preset(
        "clipsurgery",
        "CLIP Surgery",
        "CLIP Surgery for Better Explainability; Li, Wang, Duan, Li; 2023; arXiv 2304.05653",
        SURGERY,
        method=clipsurgery,
        settings={"blocks": 6, "feature_surgery": True, "sharpness": 2.0},
        published=figures(None, 29.3, None, None, None, 21.9, 31.4, None),
        note=(
            "figures of later papers' protocol; feature surgery looks at all text rows, so that what one "
            "class scores depends on the others; blocks: how many of twelve get the second path; the "
            "released code takes square images only"
        ),
    ),
    Preset(
        "gem",
        "GEM",
        "Grounding Everything: Emerging Localization Properties in Vision-Language Transformers; Bousselham, "
        "Petersen, Ferrari, Kuehne; CVPR 2024; arXiv 2312.00878",
        GEM,
        method=gem,
        settings={"blocks": 6, "iterations": 1, "temperature": 0.0},
        published=figures(46.2, 32.6, None, 79.9, 35.9, 23.7, 30.8, 15.7),
        single_pass=False,
        note=(
            "figures of later papers' protocol; one pass, but six more attentions in each of six blocks; the "
            "attention stands for its three parts, which are brought to length one first"
        ),
    ),
)
