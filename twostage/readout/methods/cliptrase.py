"""CLIPtrase: patches are clustered by what the block before the last finds alike, and vote inside clusters.

Shapes: B images, N patches in an h x w grid, L tokens (row 0 is the class token), T text rows, H x W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.clusters import cluster_regions, density_clusters, majority, voted, within
from twostage.readout import vit
from twostage.readout.engine import Reading
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, on_grid
from twostage.readout.preset import Preset, figures
from twostage.readout.record import Wanted


def read_correlation(look: Look) -> tuple[Reading, Tensor]:
    """One reading, and (B, L, L) float32: how alike tokens are in the block before the last, the mean of the
    cosines of their queries, keys and values over heads.

    Raises:
        TwostageError: the tower has fewer than three blocks.
    """
    depth = len(look.tower.blocks)
    if depth < 3:
        raise TwostageError(
            "Preset cliptrase: it compares tokens that enter the block before the last of at least 3, got a "
            f"tower of {depth} blocks; choose a deeper model or another preset."
        )
    reading = look.read(also=Wanted(tokens=frozenset({depth - 3})))
    parts = vit.project(look.tower.blocks[depth - 2], reading.record.tokens[depth - 3])
    unit = torch.cat([F.normalize(part.float(), dim=-1) for part in parts], dim=1)  # q, k, v heads in a row
    rows = unit.transpose(1, 2).flatten(2)
    return reading, rows @ rows.transpose(1, 2) / unit.shape[1]


def clusters(correlation: Tensor, radius: float, least: int) -> tuple[Tensor, Tensor]:
    """One image's (L, L) correlation -> (N, N) affinity of patches and their (N,) cluster, -1 for none.

    The class token's row, what all patches have in common with the image, is taken off, and what falls below
    zero is none. Clustered are the affinity's rows, by L2 distance.
    """
    affinity = (correlation[1:, 1:] - correlation[:1, 1:]).clamp_min(0)
    return affinity, density_clusters(within(affinity, radius), least)


def radius_of(patches: int) -> float:
    """The clusters' radius for this many patches: 0.7 at 14 x 14 and 1.1 at 21 x 21 as published; others by
    the power law through both (ours).
    """
    power = math.log(1.1 / 0.7) / math.log(21 / 14)
    return 0.7 * math.pow(math.sqrt(patches) / 14, power)


def least_of(patches: int) -> int:
    """Neighbours that make a core: 3 at 14 x 14 and 7 at 21 x 21 as published; others by the power law
    (ours), at least one.
    """
    power = math.log(7 / 3) / math.log(21 / 14)
    return max(1, round(3 * math.pow(math.sqrt(patches) / 14, power)))


def cliptrase(look: Look) -> Tensor:
    """(B, T, H, W) at the pixels of the image: every pixel votes with its class, and its cluster's majority
    changes places with it (`twostage.ops.clusters.voted`). Without any cluster pixels keep their own.

    Raises:
        TwostageError: a setting is out of range, or the tower is too shallow.
    """
    radius, least = look.settings["radius"], look.settings["least"]
    if radius < 0 or least < 0 or least != int(least):
        raise TwostageError(
            "Preset cliptrase: radius should be a number above zero and least a whole one, or 0 for what "
            f"suits the grid; got {radius} and {least}."
        )
    reading, correlation = read_correlation(look)
    patches = reading.grid[0] * reading.grid[1]
    radius, least = float(radius) or radius_of(patches), int(least) or least_of(patches)
    scores = look.cosines(reading)
    if look.settings["class_token_factor"]:
        if reading.first is None:
            raise TwostageError(
                "Preset cliptrase: class_token_factor needs the class token, got keys 'patches': set "
                "keys 'all'."
            )
        scores = scores * (F.normalize(reading.first.float(), dim=-1) @ look.text.T)[:, None]
    size = (look.pixels.shape[-2], look.pixels.shape[-1])
    full = F.interpolate(on_grid(scores, reading.grid), size=size, mode="bilinear", align_corners=False)
    return torch.stack(
        [
            _vote(maps * look.scale, *clusters(one, radius, least), reading.grid)
            for maps, one in zip(full, correlation, strict=True)
        ]
    )


def _vote(maps: Tensor, affinity: Tensor, labels: Tensor, grid: tuple[int, int]) -> Tensor:
    owner = cluster_regions(affinity, labels, grid, (maps.shape[1], maps.shape[2]))
    return maps if owner is None else voted(maps, majority(owner, maps.argmax(dim=0), len(maps)))


PRESETS = (
    Preset(
        "cliptrase",
        "CLIPtrase",
        "Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic Segmentation; Shao, Tian, "
        "Zhao, Su; ECCV 2024; arXiv 2407.08268",
        Knobs(attention="qq + kk + vv"),
        method=cliptrase,
        settings={"radius": 0.0, "least": 0, "class_token_factor": False},
        published=figures(50.88, 29.87, None, 80.95, 33.83, 22.84, None, 16.35),
        single_pass=False,
        note=(
            "figures of the paper's own protocol (one centre crop of 224, resized labels): not comparable "
            "with the others; radius and least 0: as published at 224 and 336 pixels, in proportion "
            "elsewhere; class_token_factor: the paper's factor on VOC20; one pass of the tower, "
            "then a vote at every pixel"
        ),
    ),
)
