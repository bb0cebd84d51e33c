"""Reading a CLIP VisionTransformer as the knobs say: native blocks first, then the last one in another way.

Shapes: B images, h x w grid, N = h * w, L = N + 1 tokens (row 0 is the class token), D width, E joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.readout import vit
from twostage.readout.attention import Group, blocks_of, parse, written
from twostage.readout.channels import Channels, suppressed
from twostage.readout.knobs import ClassOverSelf, Knobs
from twostage.readout.record import Record, Wanted, run_early
from twostage.readout.terms import Scene, attend, needs
from twostage.readout.tokens import repaired, smoothed

NATIVE_DEPTH = 12
"""The number of blocks that the presets' block numbers belong to (ViT-B)."""


@dataclass(frozen=True)
class Reading:
    """What was read. features: (B, N, E) in the joint space, not normalised; grid: (h, w); record: what the
    blocks before the last left behind; first: (B, E), the same of the class token, None where it took no
    part.
    """

    features: Tensor
    grid: tuple[int, int]
    record: Record
    first: Tensor | None = None

    @property
    def unit(self) -> Tensor:
        """(B, N, E) float32 rows of length one."""
        return F.normalize(self.features.float(), dim=-1)


class Tower:
    """A VisionTransformer with everything that depends on its weights alone made once."""

    def __init__(self, visual: Any) -> None:
        """Raises: DenseTowerError: the tower has no readout of single patches."""
        vit.require_vit(visual)
        self.visual = visual
        self.blocks: list[Any] = vit.blocks(visual)
        self._made: dict[Hashable, Any] = {}

    @property
    def cell_hw(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        tall, wide = self.visual.patch_size
        return int(tall), int(wide)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def channels(self, which: tuple[int, ...], with_bias: bool = False) -> dict[int, Channels]:
        """The scaling that suppresses the loudest channel of these blocks, by block."""
        key = ("channels", which, with_bias)
        found: dict[int, Channels] = self.once(key, lambda: suppressed(self.blocks, which, with_bias))
        return found

    def native(self, pixels: Tensor, positions: Any = "bicubic") -> Tensor:
        """(B, 3, H, W) normalised -> (B, L, E), the tower as it was trained, all rows read out."""
        tokens, _ = vit.embed(self.visual, pixels, positions)
        for block in self.blocks:
            tokens = vit.run_block(block, tokens)
        return vit.readout(self.visual, tokens)


def fitted(knobs: Knobs, depth: int) -> Knobs:
    """The same knobs for a tower of another depth: block numbers move in proportion, none reaches the last;
    suppressed are all blocks that lie where the named ones do.

    Presets count the twelve blocks of ViT-B; what the papers chose for deeper towers is not always known.

    Raises:
        TwostageError: a block is named that twelve blocks do not have before the last.
    """
    _require_early(knobs)
    if depth == NATIVE_DEPTH:
        return knobs
    last = depth - 2
    move = {block: min(int((block + 0.5) * depth / NATIVE_DEPTH), last) for block in range(NATIVE_DEPTH - 1)}
    moved = lambda one: None if one is None else replace(one, after=move[one.after])
    levels = None if knobs.levels is None else (move[knobs.levels[0]], move[knobs.levels[1] - 1] + 1)
    return replace(
        knobs,
        attention=_renumbered(knobs.attention, move),
        suppress=tuple(
            block for block in range(depth) if int((block + 0.5) * NATIVE_DEPTH / depth) in knobs.suppress
        ),
        smooth_before=moved(knobs.smooth_before),
        smooth_after=moved(knobs.smooth_after),
        levels=levels,
        levels_attention=knobs.levels_attention and _renumbered(knobs.levels_attention, move),
    )


def _require_early(knobs: Knobs) -> None:
    """Refuse block numbers that a preset's twelve blocks do not have."""
    asked = wanted(knobs)
    early = {*asked.tokens, *(block for group in (*asked.maps, *asked.self_maps) for block in group)}
    wrong = [block for block in sorted(early) if not 0 <= block < NATIVE_DEPTH - 1]
    wrong += [block for block in knobs.suppress if not 0 <= block < NATIVE_DEPTH]
    if wrong:
        raise TwostageError(
            f"Dense readout: block {wrong[0]} cannot be used. Blocks count as in ViT-B, whatever the tower's"
            f" depth: 0 to {NATIVE_DEPTH - 2} leave something behind for the last one, and 0 to"
            f" {NATIVE_DEPTH - 1} have channels to suppress."
        )


def read(
    tower: Tower,
    pixels: Tensor,
    knobs: Knobs,
    given: Mapping[str, Tensor] | None = None,
    also: Wanted | None = None,
) -> Reading:
    """pixels: (B, 3, H, W) normalised, in the tower's dtype, H and W multiples of its patch.

    knobs: with the tower's own block numbers (`fitted`); given: further logits and maps by name, (B or 1, m
    or 1, L, L); also: what to keep of the early blocks beside what the knobs need.
    """
    tokens, grid = vit.embed(tower.visual, pixels, knobs.positions)
    record = run_early(
        tower.blocks, tokens, wanted(knobs, also), tower.channels(knobs.suppress, knobs.suppress_bias)
    )
    return read_from(tower, record, grid, knobs, given)


def read_from(
    tower: Tower,
    record: Record,
    grid: tuple[int, int],
    knobs: Knobs,
    given: Mapping[str, Tensor] | None = None,
) -> Reading:
    """The last block and the readout alone, on what the early blocks left behind: all that these knobs need
    of them.
    """
    patches, first = read_last(tower, record, grid, knobs, given)
    features = vit.readout(tower.visual, patches)
    return Reading(features, grid, record, None if first is None else vit.readout(tower.visual, first)[:, 0])


def read_last(
    tower: Tower,
    record: Record,
    grid: tuple[int, int],
    knobs: Knobs,
    given: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What the last block makes of the patches, (B, N, D), and of the class token, (B, 1, D) or None where
    keys are patches only; before the tower's last norm.
    """
    seen = record if knobs.repair is None else repaired(record, grid, knobs.repair, _compared(knobs))
    entering = seen.entering
    if knobs.smooth_before is not None:
        patches = smoothed(entering[:, 1:], seen, knobs.smooth_before)
        entering = torch.cat([entering[:, :1], patches], dim=1)

    def through(tokens: Tensor, groups: tuple[Group, ...]) -> tuple[Tensor, Tensor | None]:
        out = _last(tower, tokens, knobs, groups, grid, seen, given)
        first, out = (out[:, :1], out[:, 1:]) if knobs.keys == "all" else (None, out)
        if knobs.smooth_after is not None:
            out = smoothed(out, record, knobs.smooth_after)
        return out, first

    out, first = through(entering, knobs.groups)
    if knobs.levels is not None:
        total = torch.stack([record.tokens[block] for block in range(*knobs.levels)]).sum(dim=0)
        out = out + through(total, knobs.level_groups)[0]
    return out, first


def _compared(knobs: Knobs) -> set[int]:
    """Blocks whose patches are compared on the way into the last attention."""
    groups = (*knobs.groups, *(knobs.level_groups if knobs.levels else ()))
    found = {blocks[0] for blocks in blocks_of(groups, "similarity")}
    return found if knobs.smooth_before is None else found | {knobs.smooth_before.after}


def _last(
    tower: Tower,
    tokens: Tensor,
    knobs: Knobs,
    groups: tuple[Group, ...],
    grid: tuple[int, int],
    record: Record,
    given: Mapping[str, Tensor] | None,
) -> Tensor:
    """(B, L, D) -> the tokens that take part (N patches, or all L) after the last block's attention and what
    else is on.
    """
    block = tower.blocks[-1]
    with_class = knobs.keys == "all"
    looking = tokens if with_class else tokens[:, 1:]
    letters = needs(groups)
    parts = dict(zip(letters, vit.project(block, looking, letters), strict=True))
    scene = Scene(parts.get("q"), parts.get("k"), parts["v"], grid, with_class, record, given or {})
    mixed = attend(groups, scene, knobs.heads == "mean")
    out: Tensor = block.ls_1(vit.merge_heads(block, mixed))
    if knobs.class_token:
        out = out + knobs.class_token * tokens[:, :1]
    if knobs.residual:
        out = out + looking
    if knobs.ffn:
        channels = tower.channels(knobs.suppress, knobs.suppress_bias).get(len(tower.blocks) - 1)
        out = out + block.ls_2(vit.feed_forward(block, block.ln_2(out), channels))
    return out


def wanted(knobs: Knobs, also: Wanted | None = None) -> Wanted:
    """What the early blocks have to leave behind for these knobs."""
    groups = (*knobs.groups, *(knobs.level_groups if knobs.levels else ()))
    tokens = _compared(knobs) | (set() if knobs.smooth_after is None else {knobs.smooth_after.after})
    tokens |= set(range(*knobs.levels)) if knobs.levels else set()
    also = also or Wanted()
    return Wanted(
        frozenset(tokens) | also.tokens,
        tuple(dict.fromkeys([*blocks_of(groups, "captured"), *also.maps])),
        tuple(dict.fromkeys([*blocks_of(groups, "captured_csa"), *also.self_maps])),
        knobs.heads == "mean" and not (also.maps or also.self_maps),
        isinstance(knobs.repair, ClassOverSelf) or also.looks,
    )


def _renumbered(attention: str, move: Mapping[int, int]) -> str:
    """An attention with its block numbers moved."""
    return written(parse(attention), move)
