"""CorrCLIP: patches look at their own region only, and hear a class token that saw nothing but that region.

Shapes: B images, h x w grid, N patches, R regions of one image, D width, E joint width, T texts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.readout import regions, vit
from twostage.readout.engine import read_last, wanted
from twostage.readout.guest import features, likeness, resized
from twostage.readout.look import Look, on_grid
from twostage.readout.methods.guests import require_knobs
from twostage.readout.preset import LOCAL, Preset, figures
from twostage.readout.record import Record, Wanted, run_early

CORR = replace(LOCAL, attention="guest", keys="patches", levels=(5, 10))
FREE = ("attention", "heads", "residual", "ffn", "positions", "suppress", "class_token", "levels")


def corrclip(look: Look) -> Tensor:
    """Three readings along the masks of an image (CorrCLIP, Zhang et al., 2025).

    main: the last block's values, mixed by softmax(4 S) within regions, S the guest's cosines; spatial: the
    mean of earlier blocks' outputs through the same; semantic: a class token of each region. The sum is
    ln_post(main) + spatial_weight * spatial + semantic_weight * semantic.

    Raises:
        TwostageError: there are no masks, or not of the size of the pixels.
    """
    require_knobs(look, "corrclip", CORR, FREE)
    tower, knobs, settings = look.tower, look.knobs, look.settings
    masks = _masks(look)
    embedded, grid = vit.embed(tower.visual, look.pixels, knobs.positions)
    everything = Wanted(frozenset(range(len(tower.blocks) - 1)))
    early = run_early(tower.blocks, embedded, wanted(knobs, everything), tower.channels(knobs.suppress))
    found = resized(features(look), grid)
    single = [regions.membership(regions.shares(one, grid)) for one in masks]
    rows = found.flatten(1, 2).flatten(2).transpose(1, 2)
    joined = [regions.merged(*pair, settings["merge"]) for pair in zip(single, rows, strict=True)]
    alike = likeness(found)
    closed = [regions.same_region(*pair, settings["factor"]) for pair in zip(alike, joined, strict=True)]
    x = _three(look, early, embedded, grid, torch.stack(closed)[:, None], joined)
    read = x if tower.visual.proj is None else x @ tower.visual.proj
    scores = F.normalize(read.float(), dim=-1) @ look.text.T
    if settings["mask_vote"]:
        scores = torch.stack([regions.mode_vote(*pair) for pair in zip(scores, single, strict=True)])
    return on_grid(scores * look.scale, grid)


def _three(
    look: Look,
    record: Record,
    embedded: Tensor,
    grid: tuple[int, int],
    closed: Tensor,
    members: list[Tensor],
) -> Tensor:
    """(B, N, D): the three branches together, ready for the tower's projection."""
    tower, settings = look.tower, look.settings
    knobs, given = replace(look.knobs, levels=None), {"guest": closed}
    norm = tower.visual.ln_post
    others = norm if settings["norm"] == "all" else torch.nn.Identity()
    main, _ = read_last(tower, record, grid, knobs, given)
    total: Tensor = norm(main)
    if settings["spatial_weight"] and look.knobs.levels is not None:
        mean = torch.stack([record.tokens[block] for block in range(*look.knobs.levels)]).mean(dim=0)
        spatial, _ = read_last(tower, replace(record, entering=mean), grid, knobs, given)
        total = total + settings["spatial_weight"] * others(spatial)
    if settings["semantic_weight"]:
        classes = regions.class_tokens(tower, record, embedded, members, knobs.suppress)
        total = total + settings["semantic_weight"] * regions.of_members(others(classes), members)
    return total


def _masks(look: Look) -> list[Tensor]:
    """The regions of a look, checked.

    Raises:
        TwostageError: there are none, another number than images, or of another size than the pixels.
    """
    size = tuple(look.pixels.shape[-2:])
    if look.regions is None:
        raise TwostageError(
            "Preset corrclip: it looks along masks, and was given none: set PROPOSALS.NAME, so that stage "
            "one finds them, or choose a preset without regions."
        )
    wrong = [tuple(one.shape) for one in look.regions if one.ndim != 3 or tuple(one.shape[1:]) != size]
    count = len(look.pixels)
    if len(look.regions) != count or wrong:
        raise TwostageError(
            f"Preset corrclip: expected masks (R, {size[0]}, {size[1]}) for each of {count} images, got "
            f"{wrong[0] if wrong else f'those of {len(look.regions)}'}. Resize and cut them as the pixels."
        )
    return [one.to(look.pixels.device) for one in look.regions]


PRESETS = (
    Preset(
        "corrclip",
        "CorrCLIP",
        "CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Segmentation; ICCV 2025",
        CORR,
        method=corrclip,
        settings={
            "factor": 4.0,
            "merge": 0.2,
            "spatial_weight": 1.0,
            "semantic_weight": 0.5,
            "mask_vote": 0,
            "norm": "main",
        },
        choices={"norm": ("main", "all")},
        published=figures(69.2, 40.0, 39.8, 87.0, 44.9, 29.6, 41.6, 22.4),
        guest=True,
        regions=True,
        single_pass=False,
        note=(
            "figures with masks of SAM 2, DINO ViT-B/8's queries and keys as guest, and without the vote of "
            "each mask (48.7 instead of 46.8 on average with it: mask_vote 1, here on patches). Left open "
            "by the public text, chosen here: a patch belongs to the smallest mask that covers half of it; "
            "masks merge by cosine distance; earlier outputs are those of blocks 5 to 9; a region's "
            "class token looks at patches only; norm 'main' leaves the other branches without ln_post, "
            "'all' does not"
        ),
    ),
)
