"""Regions on the patch grid: who belongs to which, who may look at whom, and one embedding for each.

Shapes: R regions of one image, N patches, C channels, T texts, D width, E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from twostage.ops.masks import mean_on_grid
from twostage.readout import vit
from twostage.readout.engine import Tower
from twostage.readout.record import Record

LEAST = 0.5
"""The share of a patch that a mask has to cover for the patch to belong to it."""


def shares(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(R, H, W) bool, or float in [0, 1] -> (R, N) float32, how much of each patch a mask covers."""
    if len(masks) == 0:
        return torch.zeros(0, grid[0] * grid[1], device=masks.device)
    return mean_on_grid(masks, grid).flatten(1)


def membership(share: Tensor) -> Tensor:
    """(R, N) shares -> (N,) int64, the one region of each patch, -1 for none: the smallest of those that
    cover at least half of it.
    """
    if len(share) == 0:
        return torch.full(share.shape[1:], -1, dtype=torch.long, device=share.device)
    size = torch.where(share >= LEAST, share.sum(dim=1, keepdim=True), torch.inf)
    least, which = size.min(dim=0)
    return torch.where(least.isinf(), -1, which)


def merged(member: Tensor, features: Tensor, reach: float) -> Tensor:
    """(N,) regions -> (N,) regions numbered from 0, those of like mean features made one.

    features: (N, C). Two regions are alike where the cosine distance of their means is at most `reach`, and
    chains of like regions are one (DBSCAN with clusters of one region and more).
    """
    kept, compact = member[member >= 0].unique(return_inverse=True)
    if len(kept) == 0:
        return member
    total = features.new_zeros(len(kept), features.shape[1])
    total.index_add_(0, compact, features[member >= 0])
    unit = F.normalize(total, dim=1)
    near = (1 - unit @ unit.T <= reach).cpu().numpy()
    _, joined = connected_components(near, directed=False)
    out = member.clone()
    out[member >= 0] = torch.as_tensor(joined, dtype=torch.long, device=member.device)[compact]
    return out


def same_region(likeness: Tensor, member: Tensor, factor: float) -> Tensor:
    """Logits of attention within regions: (N, N) cosines S of patches, (N,) regions -> (N, N), factor * S for
    patches of one region and -inf elsewhere; a patch of no region looks where S is above the mean of all.
    """
    together = member[:, None] == member[None]
    allowed = torch.where(member[:, None] >= 0, together, likeness > likeness.mean())
    return (factor * likeness).masked_fill(~allowed, -torch.inf)


def class_tokens(
    tower: Tower, record: Record, embedded: Tensor, members: Sequence[Tensor], suppress: tuple[int, ...] = ()
) -> Tensor:
    """A copy of the class token for every region, which looks at the patches of that region alone, through
    all blocks: (B, R, D), the outputs of the last block, R the largest number of any image. Rows of regions
    that an image does not have mean nothing.

    record: with the tokens of all blocks but the last; embedded: (B, L, D), what enters the first; members:
    (N,) regions of each image, numbered from 0.
    """
    count = max(1, *(int(member.max()) + 1 for member in members))
    numbers = torch.arange(count, device=embedded.device)
    allowed = torch.stack([member[None] == numbers[:, None] for member in members])
    allowed = allowed | ~allowed.any(dim=2, keepdim=True)  # nobody's row may look anywhere: no NaN
    copies = embedded[:, :1].expand(-1, count, -1)
    channels = tower.channels(suppress)
    for index, block in enumerate(tower.blocks):
        patches = (embedded if index == 0 else record.tokens[index - 1])[:, 1:]
        [query] = vit.project(block, copies, "q")
        keys, values = vit.project(block, patches, "kv")
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed[:, None])
        copies = copies + block.ls_1(vit.merge_heads(block, mixed))
        copies = copies + block.ls_2(vit.feed_forward(block, block.ln_2(copies), channels.get(index)))
    return copies


def of_members(rows: Tensor, members: Sequence[Tensor]) -> Tensor:
    """(B, R, D) rows of regions -> (B, N, D), every patch its region's, zero for patches of none."""
    member = torch.stack(list(members))
    index = member.clamp_min(0)[..., None].expand(-1, -1, rows.shape[-1])
    return rows.gather(1, index) * (member >= 0)[..., None]


def mode_vote(scores: Tensor, member: Tensor) -> Tensor:
    """(N, T) scores -> (N, T): every region takes the label that most of its patches have.

    Where a patch has another label, the scores of the two change places.
    """
    labels = scores.argmax(dim=1)
    inside = member >= 0
    counts = scores.new_zeros(max(1, int(member.max()) + 1), scores.shape[1])
    one = torch.ones_like(labels[inside], dtype=scores.dtype)
    counts.index_put_((member[inside], labels[inside]), one, accumulate=True)
    goal = torch.where(inside, counts.argmax(dim=1)[member.clamp_min(0)], labels)
    best, other = (scores.gather(1, which[:, None]) for which in (labels, goal))
    return scores.scatter(1, labels[:, None], other).scatter(1, goal[:, None], best)


def pooled(
    tower: Tower, record: Record, share: Sequence[Tensor], least_contrast: float | None = None
) -> list[Tensor]:
    """One embedding a region, pooled from the last block's values (TextRegion, Xiao et al., 2025).

    o = W_o sum_n m_n v_n + b_o, then o + MLP(ln_2 o), the tower's last norm and projection: the block's
    residual is off, its MLP on. share: (R, N) weights m of each image, soft or bool -> (R, E) float32 unit
    rows each; the row of an empty mask means nothing.

    least_contrast: leaves out patches that look like every region (see `without_global`), .07 in the paper.
    """
    block = tower.blocks[-1]
    [value] = vit.project(block, record.entering[:, 1:], "v")
    rows = value.transpose(1, 2).flatten(2)
    found = []
    for own, weights in zip(rows, share, strict=True):
        weight = weights.to(own.dtype)
        if least_contrast is not None and len(weight) > 1:
            weight = without_global(
                weight, _read_values(tower, own), _read_values(tower, weight @ own), least_contrast
            )
        found.append(_read_values(tower, weight @ own))
    return found


def _read_values(tower: Tower, rows: Tensor) -> Tensor:
    """(R, D) sums of values -> (R, E) float32 unit rows."""
    block = tower.blocks[-1]
    out = block.ls_1(block.attn.out_proj(rows))
    out = out + block.ls_2(vit.feed_forward(block, block.ln_2(out)))
    return F.normalize(vit.readout(tower.visual, out).float(), dim=-1)


def without_global(weight: Tensor, patches: Tensor, regions: Tensor, least_contrast: float) -> Tensor:
    """(R, N) weights -> (R, N), zero for patches whose mean cosine with their own regions is less than
    `least_contrast` above that with the others.

    patches: (N, E), regions: (R, E), unit rows. A patch of no region, or of all, stays; so do all patches of
    a region that would lose every one.
    """
    belongs = (weight >= LEAST).float()
    cosines = regions @ patches.T
    inside, outside = belongs.sum(dim=0), (1 - belongs).sum(dim=0)
    mean_in = (cosines * belongs).sum(dim=0) / inside.clamp_min(1)
    mean_out = (cosines * (1 - belongs)).sum(dim=0) / outside.clamp_min(1)
    dropped = (inside > 0) & (outside > 0) & (mean_in - mean_out < least_contrast)
    kept = weight * ~dropped
    lost = kept.sum(dim=1, keepdim=True) == 0
    return torch.where(lost, weight, kept)
