"""Dense readings of CLIP written slowly and literally: one image, one head, one pair of patches at a time.

The early blocks are open_clip's own modules; the last one is spelt out from the papers' formulas with loops.
Nothing here uses `twostage`. The tower has twelve blocks, so that block numbers are the papers'.

Shapes: N patches of an h x w grid, L = N + 1 tokens (row 0 is the class token), D width, m heads of width d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor

Rows = list[list[float]]
"""An attention map or its logits, row by row."""


def literal_tower(seed: int = 0) -> VisionTransformer:
    """Twelve blocks of width 32 with two heads, patches of 8 pixels, 32 pixels wide; weights large enough for
    attention to matter, one loud channel in the MLPs of blocks 7 to 11.
    """
    torch.manual_seed(seed)
    visual: Any = VisionTransformer(32, 8, 32, 12, 2, 2.0, output_dim=16).eval().requires_grad_(False)
    for index, block in enumerate(visual.transformer.resblocks):
        block.attn.in_proj_weight *= 2
        block.attn.in_proj_bias.normal_(std=0.1)
        block.attn.out_proj.bias.normal_(std=0.1)
        block.mlp.c_proj.bias.normal_(std=0.1)
        if index >= 7:
            block.mlp.c_proj.weight[5] *= 6
    return visual


@dataclass
class Seen:
    """What the early blocks did to one image. outputs[i]: (L, D) of block i; maps[i]: (m, L, L) native."""

    visual: Any
    grid: tuple[int, int]
    outputs: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)

    @property
    def last(self) -> Any:
        return self.visual.transformer.resblocks[-1]

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1]


def positions(visual: Any, grid: tuple[int, int], scaled: bool) -> Tensor:
    """(L, D): the table bicubic to the grid; scaled: by a factor with 0.1 of a patch added, and raw wherever
    the number of patches is the table's own.
    """
    table = visual.positional_embedding
    tall, wide = visual.grid_size
    if grid == (tall, wide) or (scaled and grid[0] * grid[1] == tall * wide):
        return table
    maps = table[1:].reshape(1, tall, wide, -1).permute(0, 3, 1, 2)
    if scaled:
        factor = ((grid[0] + 0.1) / tall, (grid[1] + 0.1) / wide)
        maps = F.interpolate(maps, scale_factor=factor, mode="bicubic", align_corners=False)
    else:
        maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], maps[0].permute(1, 2, 0).reshape(-1, table.shape[1])])


def see(visual: Any, pixels: Tensor, scaled: bool = True, suppress: tuple[int, ...] = ()) -> Seen:
    """pixels: (3, H, W). suppress: blocks whose loudest MLP row is brought to the others' mean length."""
    patches = visual.conv1(pixels[None])[0]
    grid = (patches.shape[1], patches.shape[2])
    tokens = torch.cat([visual.class_embedding[None], patches.flatten(1).T])
    tokens = visual.ln_pre(tokens + positions(visual, grid, scaled))
    seen = Seen(visual, grid)
    for index, block in enumerate(visual.transformer.resblocks[:-1]):
        y = block.ln_1(tokens)[None]
        mixed, maps = block.attn(y, y, y, average_attn_weights=False)
        tokens = tokens + mixed[0]
        tokens = tokens + feed_forward(block, block.ln_2(tokens), index in suppress)
        seen.maps.append(maps[0])
        seen.outputs.append(tokens)
    return seen


def feed_forward(block: Any, tokens: Tensor, suppress: bool) -> Tensor:
    weight = block.mlp.c_proj.weight
    if suppress:
        lengths = [math.sqrt(sum(float(x) ** 2 for x in row)) for row in weight]
        j = lengths.index(max(lengths))
        mean = sum(lengths[:j] + lengths[j + 1 :]) / (len(lengths) - 1)
        weight = weight.clone()
        weight[j] *= mean / lengths[j]
    hidden = block.mlp.gelu(block.mlp.c_fc(tokens))
    return hidden @ weight.T + block.mlp.c_proj.bias


def heads_of(seen: Seen, tokens: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(L', D) -> for each head its q, k, v of (L', d) in the last block."""
    attention = seen.last.attn
    width, d = tokens.shape[1], tokens.shape[1] // attention.num_heads
    packed = seen.last.ln_1(tokens) @ attention.in_proj_weight.T + attention.in_proj_bias
    q, k, v = packed[:, :width], packed[:, width : 2 * width], packed[:, 2 * width :]
    cuts = [slice(h * d, (h + 1) * d) for h in range(attention.num_heads)]
    return [(q[:, cut], k[:, cut], v[:, cut]) for cut in cuts]


def products(a: Tensor, b: Tensor) -> Rows:
    scale = a.shape[1] ** -0.5
    return [[scale * float(x @ y) for y in b] for x in a]


def softmax(logits: Rows) -> Tensor:
    """(L', L') rows of sum one; -inf closes a place, and a row that is closed throughout looks at itself."""
    rows = []
    for i, row in enumerate(logits):
        if max(row) == -math.inf:
            row = [0.0 if j == i else -math.inf for j in range(len(row))]
        top = max(row)
        powers = [math.exp(value - top) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return torch.tensor(rows)


def added(*parts: Rows) -> Rows:
    return [[sum(values) for values in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]


def gauss(grid: tuple[int, int], sigma: float = 5.0) -> Rows:
    """ω of NACLIP: zero for the class token."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    rows = [[0.0] * (len(places) + 1)]
    for a in places:
        squares = [(a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 for b in places]
        rows.append([0.0] + [math.exp(-square / (2 * sigma**2)) for square in squares])
    return rows


Weave = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Head number and its q, k, v -> its map."""


def mixed(seen: Seen, tokens: Tensor, weave: Weave) -> Tensor:
    """(L', D): the last block's attention with the maps that `weave` makes, through its output layer."""
    parts = []
    for number, (q, k, v) in enumerate(heads_of(seen, tokens)):
        found = weave(number, q, k, v)
        parts.append(torch.stack([sum(row[j] * v[j] for j in range(len(v))) for row in found]))
    joined = torch.cat(parts, dim=1)
    return joined @ seen.last.attn.out_proj.weight.T + seen.last.attn.out_proj.bias


def features(seen: Seen, tokens: Tensor) -> Tensor:
    """(N, D) patches -> (N, E) joint features."""
    return seen.visual.ln_post(tokens) @ seen.visual.proj


def plain(seen: Seen, weave: Weave, full: bool = False) -> Tensor:
    """(N, E) of one attention over all tokens; full: with residual and MLP."""
    entering = seen.outputs[-1]
    out = mixed(seen, entering, weave)
    if full:
        out = entering + out
        out = out + seen.last.mlp(seen.last.ln_2(out))
    return features(seen, out[1:])


# the methods


def vanilla(seen: Seen) -> Tensor:
    return plain(seen, lambda _, q, k, v: softmax(products(q, k)), full=True)


def maskclip(seen: Seen) -> Tensor:
    return plain(seen, lambda _, q, k, v: torch.eye(len(v)), full=True)


def sclip(seen: Seen) -> Tensor:
    return plain(seen, lambda _, q, k, v: softmax(products(q, q)) + softmax(products(k, k)), full=True)


def clearclip(seen: Seen) -> Tensor:
    return plain(seen, lambda _, q, k, v: softmax(products(q, q)))


def naclip(seen: Seen) -> Tensor:
    return plain(seen, lambda _, q, k, v: softmax(added(products(k, k), gauss(seen.grid))))


def resclip_lite(seen: Seen) -> Tensor:
    def weave(head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        crossed = sum(seen.maps[block][head] for block in (5, 6, 7, 8)) / 4
        return 0.6 * softmax(added(products(k, k), gauss(seen.grid))) + 0.4 * crossed

    return plain(seen, weave)


def pearl(seen: Seen) -> Tensor:
    def weave(head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weight = [0.0] + [float(one.norm()) for one in q[1:]]
        mean_q = sum(w * one for w, one in zip(weight, q, strict=True)) / sum(weight)
        mean_k = sum(w * one for w, one in zip(weight, k, strict=True)) / sum(weight)
        rest_q, rest_k = q - mean_q, k - mean_k
        m = rest_k.T @ rest_q
        one = torch.eye(len(m))
        size = (m.T @ m).square().sum().sqrt()
        y, z = m.T @ m / size + 1e-6 * one, one
        for _ in range(5):
            t = (3 * one - z @ y) / 2
            y, z = y @ t, t @ z
        turned = k @ (m @ z / size.sqrt())
        alike = [[0.08 * value for value in row] for row in products(rest_k, rest_k)]
        return softmax(added(products(q, turned), alike))

    return plain(seen, weave)


def gclip(seen: Seen, mean: bool = True) -> Tensor:
    """`see` has suppressed blocks 7 to 11 (of which the last runs no MLP here)."""
    own = [softmax(products(q, q)) for q, _, _ in heads_of(seen, seen.outputs[-1])]
    maps = [(own[head] + seen.maps[6][head] + seen.maps[7][head]) / 3 for head in range(len(own))]
    shared = sum(maps) / len(maps)
    return plain(seen, lambda head, q, k, v: shared if mean else maps[head])


def cosines(tokens: Tensor) -> Rows:
    unit = [one / max(float(one.norm()), 1e-12) for one in tokens]
    return [[float(a @ b) for b in unit] for a in unit]


def closed(likeness: Rows) -> Rows:
    """3 (S - mean S), places below zero closed."""
    mean = sum(sum(row) for row in likeness) / len(likeness) ** 2
    return [[3 * (s - mean) if s >= mean else -math.inf for s in row] for row in likeness]


def cut(likeness: Rows) -> Rows:
    return [[s if s >= 0.4 else 0.0 for s in row] for row in likeness]


def averaged(tokens: Tensor, likeness: Rows) -> Tensor:
    rows = []
    for row in cut(likeness):
        rows.append(sum(s * one for s, one in zip(row, tokens, strict=True)) / (sum(row) + 1e-6))
    return torch.stack(rows)


def lof_outliers(tokens: Tensor) -> list[int]:
    """The patches above the .95 quantile (linear between ranks) of d_k(i) * mean of 1 / d_k over its k: 30,
    or half of the others where there are no more than 30.
    """
    n = len(tokens)
    k = 30 if n > 31 else (n - 1) // 2
    exact = tokens.double()
    near = [
        sorted((float((exact[i] - exact[j]).square().sum()), j) for j in range(n) if j != i)[:k]
        for i in range(n)
    ]
    reach = [row[-1][0] for row in near]
    scores = [reach[i] * sum(1 / reach[j] for _, j in near[i]) / k for i in range(n)]
    place = 0.95 * (n - 1)
    below, ranked = math.floor(place), sorted(scores)
    above = min(below + 1, n - 1)
    bound = ranked[below] + (place - below) * (ranked[above] - ranked[below])
    return [i for i in range(n) if scores[i] > bound]


def sfp_outliers(seen: Seen) -> list[int]:
    mean = seen.maps[10].mean(dim=0)
    over = [i for i in range(1, len(mean)) if 0.3 * 5 * mean[0, i] > mean[i, i]]
    return [i - 1 for i in sorted(over, key=lambda i: -float(mean[0, i]))[:10]]


def repaired(seen: Seen, tokens: Tensor, outliers: list[int]) -> Tensor:
    """(N, D) with outliers replaced by the mean of the 3 x 3 neighbours that are none, 0 without any."""
    h, w = seen.grid
    out = tokens.clone()
    for place in outliers:
        row, column = divmod(place, w)
        around = [
            y * w + x
            for y in (row - 1, row, row + 1)
            for x in (column - 1, column, column + 1)
            if 0 <= y < h and 0 <= x < w and y * w + x not in outliers
        ]
        out[place] = tokens[around].mean(dim=0) if around else 0
    return out


def calibrated(
    seen: Seen, outliers: list[int], main: Callable[[Rows], Weave], more: Callable[[Rows], Weave]
) -> Tensor:
    """SC-CLIP's frame: repair and average on entering, average on leaving, blocks 3 to 9 a second time."""
    entering, first = seen.outputs[-1][1:], seen.outputs[-1][0]
    alike = cosines(repaired(seen, seen.outputs[8][1:], outliers))
    late = cosines(seen.outputs[3][1:])
    tokens = averaged(repaired(seen, entering, outliers), alike)
    out = averaged(mixed(seen, tokens, main(alike)) + 0.3 * first, late)
    total = sum(seen.outputs[block] for block in range(3, 10))
    second = averaged(mixed(seen, total[1:], more(alike)) + 0.3 * total[0], late)
    return features(seen, out + second)


def scclip(seen: Seen) -> Tensor:
    def main(alike: Rows) -> Weave:
        shared = softmax(closed(alike))
        return lambda _, q, k, v: (shared + softmax(products(k, k))) / 2

    return calibrated(seen, lof_outliers(seen.outputs[-1][1:]), main, main)


def sfp(seen: Seen) -> Tensor:
    def main(alike: Rows) -> Weave:
        shared = softmax(closed(cut(alike)))
        return lambda _, q, k, v: (softmax(products(k, k)) + softmax(products(q, q)) + shared) / 3

    def more(alike: Rows) -> Weave:
        shared = softmax(closed(cut(alike)))
        return lambda _, q, k, v: shared

    return calibrated(seen, sfp_outliers(seen), main, more)
