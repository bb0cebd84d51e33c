"""TagCLIP: probabilities of patches spread along attention, and what that says the image holds.

The tags, with or without a second look at each likely class, are scores of whole images: what a large
vocabulary can be pruned by (PRUNE dense of the ensemble: a tag is the largest probability in any place).

Shapes: B images, N patches in an h x w grid, L tokens (row 0 is the class token), T text rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.boxes import box_of, enclosed
from twostage.readout import vit
from twostage.readout.engine import NATIVE_DEPTH, read_last
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, on_grid
from twostage.readout.paths import refuse_turned
from twostage.readout.preset import Preset
from twostage.readout.record import Record
from twostage.readout.refine import votes_to_logits

_CHUNK = 16
"""Crops in one pass of the second look."""


@dataclass(frozen=True)
class Spread:
    """What the first look makes of patches. features: (B, N, E), not normalised; probabilities: (B, N, T),
    each patch's classes by the text; affinity: (B, N, N), where patches look, weak places dropped;
    propagated: (B, N, T), probabilities spread along it; refined: (B, N, T), the same from inside a class's
    boxes only; grid: (h, w).
    """

    features: Tensor
    probabilities: Tensor
    affinity: Tensor
    propagated: Tensor
    refined: Tensor
    grid: tuple[int, int]


def spread(look: Look) -> Spread:
    """The local-to-global part of TagCLIP (Lin et al., 2024: "dual-masking attention refinement").

    Raises:
        TwostageError: a knob without effect was turned.
    """
    refuse_turned(look.knobs, KNOBS, ("positions", "suppress", "residual", "ffn"), "tagclip")
    features, affinity, grid = _located(look)
    cosines = F.normalize(features.float(), dim=-1) @ look.text.T
    probabilities = (look.settings["sharpness"] * cosines).softmax(dim=-1)
    propagated = affinity @ probabilities
    likely = propagated > propagated.mean(dim=1, keepdim=True)
    maps = on_grid(likely, grid).flatten(0, 1)
    inside = enclosed(maps).unflatten(0, (len(features), -1)).flatten(2).transpose(1, 2)
    return Spread(features, probabilities, affinity, propagated, affinity @ (probabilities * inside), grid)


def _located(look: Look) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """One pass: (B, N, E) features, (B, N, N) float32 affinity and the grid.

    The affinity is the mean over heads and over blocks 8 to 10 (of twelve) of where patches look, at the
    places that at least 4 of the 12 blocks, the last one as trained, hold above their own mean.
    """
    tower, knobs = look.tower, look.knobs
    depth = len(tower.blocks)
    channels = tower.channels(knobs.suppress)
    first, last = (min(int((block + 0.5) * depth / NATIVE_DEPTH), depth - 2) for block in (8, 10))
    tokens, grid = vit.embed(tower.visual, look.pixels, knobs.positions)
    entering, total, votes = tokens, torch.zeros(()), torch.zeros(())
    for index, block in enumerate(tower.blocks):
        q, k, v = vit.project(block, tokens)
        native = vit.softmax_map(vit.product(q, k))
        seen = native.mean(dim=1, dtype=torch.float32)[:, 1:, 1:]
        votes = votes + (seen > seen.mean(dim=(1, 2), keepdim=True))
        if first <= index <= last:
            total = total + seen / (last - first + 1)
        entering = tokens
        if index < depth - 1:
            tokens = tokens + block.ls_1(vit.merge_heads(block, native @ v))
            hidden = vit.feed_forward(block, block.ln_2(tokens), channels.get(index))
            tokens = tokens + block.ls_2(hidden)
    patches, _ = read_last(tower, Record(entering), grid, knobs)
    needed = max(1, round(4 * depth / NATIVE_DEPTH))
    return vit.readout(tower.visual, patches), total * (votes >= needed), grid


def tags(look: Look, count: int | None = None, again: bool = True) -> Tensor:
    """How sure TagCLIP is that each class is in each image: (B, count) float32 in [0, 1].

    count: the first text rows, which are the tags; the rest (background words) only compete with them; None:
    all rows. again: likely classes are looked at a second time, alone in their box, and get the mean of both
    scores (Lin et al., 2024: "class-wise reidentification"); this costs a pass of the tower for each of
    them.

    Raises:
        TwostageError: count is not between 1 and the number of text rows, share is not in [0, 1], or a knob
            without effect was turned.
    """
    rows = len(look.text)
    count = rows if count is None else count
    if not 1 <= count <= rows:
        raise TwostageError(
            f"Preset tagclip: count should be from 1 to the {rows} text rows, got {count}; it is the number "
            "of rows that are tags, and background words come after them."
        )
    if not 0 <= look.settings["share"] <= 1:
        raise TwostageError(
            f"Preset tagclip: share should be from 0 to 1, got {look.settings['share']}; it is the part of "
            "the range of scores above which a class is looked at again."
        )
    return tag_scores(look, spread(look), count, again)


def tag_scores(look: Look, found: Spread, count: int, again: bool) -> Tensor:
    """The tags of a first look that is there already; see `tags`."""
    scores = found.refined[..., :count].amax(dim=1)
    if not again:
        return scores
    crops, masks, places = _second_looks(look, found, scores)
    if not places:
        return scores
    fused = scores.clone()
    for start in range(0, len(places), _CHUNK):
        part = slice(start, start + _CHUNK)
        unit = F.normalize(
            first_row(look, torch.stack(crops[part]), torch.stack(masks[part])).float(), dim=-1
        )
        seen = (look.settings["sharpness"] * unit @ look.text.T).softmax(dim=-1)
        for (image, tag), probabilities in zip(places[part], seen, strict=True):
            fused[image, tag] = (scores[image, tag] + probabilities[tag]) / 2
    return fused


def _second_looks(
    look: Look, found: Spread, scores: Tensor
) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]:
    """Crops (3, H, W) at the tower's own size, bool masks (N,) of its grid, and (image, tag) of every class
    that is looked at again: those above min + share * range of the image's scores.

    As released, the first class of an image whose box is empty ends it for that image; setting empty_box
    "skip" passes over that class only.
    """
    lowest, highest = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    likely = scores > lowest + look.settings["share"] * (highest - lowest)
    size = (look.tower.visual.grid_size[0], look.tower.visual.grid_size[1])
    tall, wide = look.tower.cell_hw
    crops, masks, places = [], [], []
    for image in range(len(scores)):
        for tag in likely[image].nonzero()[:, 0].tolist():
            map_ = found.refined[image, :, tag].unflatten(0, found.grid)
            mask = map_ - map_.min() > 0.5 * (map_.max() - map_.min())
            box = box_of(mask)
            if box is None:
                if look.settings["empty_box"] == "stop":
                    break
                continue
            top, left, bottom, right = box
            crop = look.pixels[image : image + 1, :, top * tall : bottom * tall, left * wide : right * wide]
            goal = (size[0] * tall, size[1] * wide)
            crops.append(F.interpolate(crop, size=goal, mode="bilinear", align_corners=False)[0])
            inside = F.interpolate(mask[None, None, top:bottom, left:right].float(), size=size)
            masks.append(inside.flatten() > 0)
            places.append((image, tag))
    return crops, masks, places


def first_row(look: Look, pixels: Tensor, masks: Tensor) -> Tensor:
    """(B, 3, H, W) pixels and (B, N) bool masks -> (B, E): the class token's row of the tower as trained,
    which in every block looks at itself and at the patches inside the mask only; patches look everywhere.
    """
    tower = look.tower
    channels = tower.channels(look.knobs.suppress)
    tokens, _ = vit.embed(tower.visual, pixels, look.knobs.positions)
    open_to = F.pad(masks, (1, 0), value=True)[:, None, None]
    for index, block in enumerate(tower.blocks):
        q, k, v = vit.project(block, tokens)
        mixed = F.scaled_dot_product_attention(q[:, :, :1], k, v, attn_mask=open_to)
        if index < len(tower.blocks) - 1:
            rest = F.scaled_dot_product_attention(q[:, :, 1:], k, v)
            mixed = torch.cat([mixed, rest], dim=2)
        tokens = tokens[:, : mixed.shape[2]] + block.ls_1(vit.merge_heads(block, mixed))
        tokens = tokens + block.ls_2(vit.feed_forward(block, block.ln_2(tokens), channels.get(index)))
    return vit.readout(tower.visual, tokens)[:, 0]


def tagclip(look: Look) -> Tensor:
    """The refined maps of the first look as logits: logarithms of each class's share at a patch."""
    found = spread(look)
    return on_grid(votes_to_logits(found.refined), found.grid)


KNOBS = Knobs(attention="identity", positions="bilinear")

PRESETS = (
    Preset(
        "tagclip",
        "TagCLIP, local to global",
        "TagCLIP: A Local-to-Global Framework to Enhance Open-Vocabulary Multi-Label Classification of CLIP "
        "Without Training; Lin et al.; AAAI 2024; arXiv 2312.12828",
        KNOBS,
        method=tagclip,
        settings={"sharpness": 100.0, "share": 0.5, "empty_box": "stop"},
        choices={"empty_box": ("stop", "skip")},
        note=(
            "made for image tags (mAP 92.8 on VOC07); logits are logarithms of probabilities at sharpness "
            "100, whatever the text's scale; the maps of attention of every block are made; share and "
            "empty_box belong to the tags' second look"
        ),
    ),
)
