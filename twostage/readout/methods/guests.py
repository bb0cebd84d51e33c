"""Methods that ask a second vision model which patches belong together: ProxyCLIP and CASS.

Shapes: B images, m heads, N patches on the tower's h x w grid, N' on the guest's, T texts, E joint width.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.spectral import low_rank_map, matched, spectral_distance, spectrum
from twostage.readout import vit
from twostage.readout.engine import read_last, wanted
from twostage.readout.guest import features, likeness, resized, rows
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, on_grid
from twostage.readout.presence import image_vector, moved_texts, text_groups
from twostage.readout.preset import LOCAL, Preset, figures
from twostage.readout.record import Record, run_early
from twostage.readout.terms import Scene, attend, closed_below, needs, whole_map

PROXY = replace(LOCAL, attention="guest", keys="patches")
CASS = replace(LOCAL, attention="[kk + gauss(5)]", keys="patches")


def early(look: Look) -> tuple[Record, tuple[int, int]]:
    """What the blocks before the last leave behind, and the tower's grid."""
    tower, knobs = look.tower, look.knobs
    tokens, grid = vit.embed(tower.visual, look.pixels, knobs.positions)
    return run_early(tower.blocks, tokens, wanted(knobs), tower.channels(knobs.suppress)), grid


def require_knobs(look: Look, name: str, own: Knobs, free: tuple[str, ...], remedy: str = "") -> None:
    """A method that reads the last block in a way of its own says which knobs it cannot follow.

    Raises:
        TwostageError: a knob that is not `free` differs from the preset's `own`.
    """
    turned = [
        one.name
        for one in fields(Knobs)
        if one.name not in free and getattr(look.knobs, one.name) != getattr(own, one.name)
    ]
    if turned:
        raise TwostageError(
            f"Preset {name}: {turned[0]} is {getattr(own, turned[0])!r} in this method, got "
            f"{getattr(look.knobs, turned[0])!r}: leave it as it is{remedy}."
        )


def proxyclip(look: Look) -> Tensor:
    """Patches look where the guest finds their like (ProxyCLIP, Lan et al., 2024).

    softmax(gamma * (S - beta * mean S)) over the guest's cosines S, closed below zero, on the guest's own
    grid with values resized to it; grid "tower": on the tower's, with the guest's features resized.
    """
    beta, gamma = look.settings["beta"], look.settings["gamma"]
    found = features(look)
    if look.settings["grid"] == "tower":
        grid = _tower_grid(look)
        closed = closed_below(likeness(resized(found, grid)), beta, gamma)[:, None]
        reading = look.read(given={"guest": closed})
        return on_grid(look.cosines(reading) * look.scale, grid)
    free = ("attention", "heads", "positions", "suppress")
    require_knobs(look, "proxyclip", PROXY, free, ", or set the preset's setting grid to 'tower'")
    given = {"guest": closed_below(likeness(found), beta, gamma)[:, None]}
    read = F.normalize(_on_guest_grid(look, (found.shape[-2], found.shape[-1]), given).float(), dim=-1)
    return on_grid(read @ look.text.T * look.scale, (found.shape[-2], found.shape[-1]))


def _on_guest_grid(look: Look, goal: tuple[int, int], given: dict[str, Tensor]) -> Tensor:
    """(B, N', E): the last block's attention alone, its queries, keys and values brought to another grid.

    Raises:
        TwostageError: the attention has terms that are maps between the tower's own patches.
    """
    groups, block = look.knobs.groups, look.tower.blocks[-1]
    bound = {"captured", "captured_csa", "similarity"} & {one.name for group in groups for one in group.terms}
    if bound:
        raise TwostageError(
            f"Preset proxyclip: {min(bound)} is a map of the tower's own patches, not of the guest's: set "
            "the preset's setting grid to 'tower'."
        )
    record, grid = early(look)
    letters = needs(groups)
    parts = {}
    for letter, part in zip(letters, vit.project(block, record.entering[:, 1:], letters), strict=True):
        maps = part.transpose(2, 3).unflatten(3, grid)
        parts[letter] = resized(maps.float(), goal).flatten(3).transpose(2, 3).to(part.dtype)
    scene = Scene(parts.get("q"), parts.get("k"), parts["v"], goal, False, record, given)
    mixed = attend(groups, scene, look.knobs.heads == "mean")
    return vit.readout(look.tower.visual, block.ls_1(vit.merge_heads(block, mixed)))


def cass(look: Look) -> Tensor:
    """NACLIP's attention, each head joined by the guest's graph with the most alike spectrum, and the image's
    own word on which objects are there (CASS, Kim et al., 2025).
    """
    free = ("attention", "heads", "residual", "ffn", "positions", "suppress", "class_token")
    require_knobs(look, "cass", CASS, free)
    knobs, tower = look.knobs, look.tower
    record, grid = early(look)
    letters = "".join(one for one in "qkv" if one == "k" or one in needs(knobs.groups))
    parts = dict(zip(letters, vit.project(tower.blocks[-1], record.entering[:, 1:], letters), strict=True))
    scene = Scene(parts.get("q"), parts["k"], parts["v"], grid, False, record)
    own = whole_map(knobs.groups, scene, knobs.heads == "mean")
    joined = _joined(look, own, F.normalize(parts["k"].float(), dim=-1), rows(resized(features(look), grid)))
    patches, _ = read_last(tower, record, grid, replace(knobs, attention="given"), {"map": joined})
    unit = F.normalize(vit.readout(tower.visual, patches).float(), dim=-1)
    return on_grid(_with_presence(look, record, unit) * look.scale, grid)


def _joined(look: Look, own: Tensor, keys: Tensor, guest: Tensor) -> Tensor:
    """(B, m, N, N): (10 w A_guest + A_clip) / (10 w + 1) head by head, w the distance of the two spectra.

    own: (B or 1, m or 1, N, N) A_clip; keys: (B, m, N, d) unit rows; guest: (B, n, N, C) unit rows.
    """
    settings = look.settings
    values, vectors = spectrum(guest)
    count = min(int(settings["eigenvalues"]), keys.shape[2])
    cost = spectral_distance(spectrum(keys)[0], values, count)
    partner = torch.stack([matched(one) for one in cost])
    weight = settings["strength"] * cost.gather(2, partner[..., None])[..., None]
    maps = low_rank_map(values, vectors, settings["energy"])
    batch = torch.arange(len(maps), device=maps.device)[:, None]
    joined: Tensor = (weight * maps[batch, partner] + own) / (weight + 1)
    return joined


def _with_presence(look: Look, record: Record, patches: Tensor) -> Tensor:
    """(B, N, E) unit patches -> (B, N, T): (1 - gamma) of their cosines with texts moved to this image, and
    gamma of the image's.
    """
    settings = look.settings
    present = image_vector(look.tower, record, look.knobs.suppress) @ look.text.T
    groups = text_groups(look.text, settings["text_height"])
    texts = moved_texts(look.text, present, patches, groups, settings["text_move"])
    mix = settings["class_mix"]
    scores: Tensor = (1 - mix) * (patches @ texts.transpose(1, 2)) + mix * present[:, None]
    return scores


def _tower_grid(look: Look) -> tuple[int, int]:
    tall, wide = look.tower.cell_hw
    return look.pixels.shape[-2] // tall, look.pixels.shape[-1] // wide


PRESETS = (
    Preset(
        "proxyclip",
        "ProxyCLIP",
        "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation; Lan et al.; ECCV 2024",
        PROXY,
        method=proxyclip,
        settings={"beta": 1.2, "gamma": 3.0, "grid": "guest"},
        choices={"grid": ("guest", "tower")},
        published=figures(61.3, 35.3, 37.5, 80.3, 39.1, 26.5, 38.1, 20.2),
        guest=True,
        note=(
            "figures with DINO ViT-B/8 as guest (timm:vit_base_patch8_224.dino); grid 'tower' reads on "
            "CLIP's own patches instead, which is cheaper and follows every knob"
        ),
    ),
    Preset(
        "cass",
        "CASS",
        "Distilling Spectral Knowledge of Vision Foundation Models (CASS); Kim et al.; CVPR 2025",
        CASS,
        method=cass,
        settings={
            "strength": 10.0,
            "eigenvalues": 20,
            "energy": 0.95,
            "class_mix": 0.25,
            "text_move": 0.03,
            "text_height": 0.1,
        },
        published=figures(65.8, 36.7, 37.8, 87.8, 40.2, 26.7, 39.4, 20.4),
        guest=True,
        note=(
            "figures with DINO ViT-B/8's keys head by head, and class_mix .1 to .4, text_move .01 to .05 and "
            "text_height .02 to .14 chosen for each benchmark. A guest without heads is one graph for every "
            "head of CLIP. Left open by the public text, chosen here: graphs are cosines of keys on CLIP's "
            "grid, eigenvalues a share of their sum; w is the distance of the matched spectra; eigenvalues "
            "are scaled by their ratio to the largest; maps lose what is negative and have rows of sum one; "
            "of each cluster the text that the class token is closest to is moved"
        ),
    ),
)
