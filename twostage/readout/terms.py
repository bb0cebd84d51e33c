"""The terms of an attention, evaluated: products of queries, keys and values, and biases between places.

Shapes: B images, m heads of width d, h x w grid, N = h * w, L tokens that look at each other: N + 1 with the
class token in row 0, or N where keys are patches only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.ops.procrustes import centred, rotation
from twostage.readout import vit
from twostage.readout.attention import MAPS, AttentionError, Group, Term
from twostage.readout.record import Record


@dataclass
class Scene:
    """Everything a term may look at. q, k, v: (B, m, L, d), None where no term needs it; grid: (h, w);
    with_class: whether row 0 is the class token; record: of the early blocks, repaired where that is asked
    for; given: further logits or maps by name, broadcast to (B, m, L, L).
    """

    q: Tensor | None
    k: Tensor | None
    v: Tensor
    grid: tuple[int, int]
    with_class: bool
    record: Record
    given: Mapping[str, Tensor] = field(default_factory=dict)


def needs(groups: tuple[Group, ...]) -> str:
    """Which of q, k, v these groups look at; v always."""
    letters = {
        "qk": "qk", "qq": "q", "kk": "k", "kk_centred": "qk", "qk_procrustes": "qk",
    }  # fmt: skip
    wanted = set("v").union(*(letters.get(term.name, "") for group in groups for term in group.terms))
    return "".join(one for one in "qkv" if one in wanted)


def attend(groups: tuple[Group, ...], scene: Scene, mean_heads: bool = False) -> Tensor:
    """(B, m, L, d): the values, mixed by the weighted sum of all groups' maps.

    mean_heads: one map for all heads, the mean of theirs.
    """
    total: Tensor | None = None
    for group in groups:
        mixed = _mixed(group, scene, mean_heads)
        mixed = mixed if group.weight == 1 else mixed * group.weight
        total = mixed if total is None else total + mixed
    assert total is not None
    return total


def _mixed(group: Group, scene: Scene, mean_heads: bool) -> Tensor:
    """One group's mixture of values; a softmax of one product runs without its L x L map in memory."""
    first = group.terms[0]
    if first.name == "identity":
        return scene.v
    if len(group.terms) == 1 and first.name in _PAIRS and not mean_heads:
        a, b = (getattr(scene, letter) for letter in _PAIRS[first.name])
        return F.scaled_dot_product_attention(a, b, scene.v, scale=first.weight * a.shape[-1] ** -0.5)
    found = _own_map(group, scene)
    if mean_heads and found.shape[1] > 1:
        found = found.mean(dim=1, keepdim=True)
    found = found.to(scene.v.dtype)
    if found.shape[1] == 1 and scene.v.shape[1] > 1:  # one map for all heads: their values side by side
        heads, width = scene.v.shape[1], scene.v.shape[3]
        side_by_side = scene.v.transpose(1, 2).flatten(2)
        mixed: Tensor = (found[:, 0] @ side_by_side).unflatten(2, (heads, width)).transpose(1, 2)
        return mixed
    return found @ scene.v


def _own_map(group: Group, scene: Scene) -> Tensor:
    """(B or 1, m or 1, L, L) of one group, without its weight; a bias alone has no batch and no heads."""
    first = group.terms[0]
    found = _map(first, scene) if first.name in MAPS else masked_softmax(_logits(group, scene))
    return found[(None,) * (4 - found.ndim)]


def whole_map(groups: tuple[Group, ...], scene: Scene, mean_heads: bool = False) -> Tensor:
    """(B or 1, m or 1, L, L) float32: the map that `attend` mixes values with, all groups together."""
    total: Tensor | None = None
    for group in groups:
        if group.terms[0].name == "identity":
            found = torch.eye(scene.v.shape[2], device=scene.v.device)[None, None]
        else:
            found = _own_map(group, scene)
        found = group.weight * found.float()
        found = found.mean(dim=1, keepdim=True) if mean_heads else found
        total = found if total is None else total + found
    assert total is not None
    return total


def masked_softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis in float32; a row that may look nowhere (all -inf) looks at itself."""
    found = logits.float()
    nowhere = found.isneginf().all(dim=-1)
    if nowhere.any():
        itself = torch.eye(found.shape[-1], device=found.device).log()
        found = torch.where(nowhere[..., None], itself.expand(found.shape), found)
    return found.softmax(dim=-1)


def _map(term: Term, scene: Scene) -> Tensor:
    blocks = tuple(int(number) for number in term.arguments)
    if term.name == "given":
        return _given("map", scene)
    kept = (scene.record.maps if term.name == "captured" else scene.record.self_maps)[blocks]
    kept = kept if scene.with_class else kept[..., 1:, 1:]
    return kept if term.weight == 1 else kept * term.weight


def _logits(group: Group, scene: Scene) -> Tensor:
    """(B, m, L, L) or what broadcasts to it, the weighted sum of a group's terms."""
    total: Tensor | None = None
    for term in group.terms:
        found = _TABLE[term.name](term, scene)
        found = found if term.weight == 1 else found * term.weight
        total = found if total is None else total + found
    assert total is not None
    return total


def _pair(term: Term, scene: Scene) -> Tensor:
    a, b = (getattr(scene, letter) for letter in _PAIRS[term.name])
    return vit.product(a, b)


def _gauss(term: Term, scene: Scene) -> Tensor:
    sigma = term.arguments[0] if term.arguments else 5.0
    return gauss(scene.grid, sigma, scene.with_class).to(scene.v.device)


@lru_cache(maxsize=16)
def gauss(grid: tuple[int, int], sigma: float, with_class: bool) -> Tensor:
    """(L, L) float32: exp(-r^2 / 2 sigma^2) for patches at distance r in the grid, 0 for the class token
    (NACLIP, Hajimiri et al., 2025).
    """
    rows, columns = (torch.arange(size, dtype=torch.float32) for size in grid)
    down = (-((rows[:, None] - rows) ** 2) / (2 * sigma**2)).exp()
    across = (-((columns[:, None] - columns) ** 2) / (2 * sigma**2)).exp()
    found = torch.kron(down, across)
    return F.pad(found, (1, 0, 1, 0)) if with_class else found


def _similarity(term: Term, scene: Scene) -> Tensor:
    """similarity(block, beta, gamma, cut): gamma * (S - beta * mean S) of the cosines S of what leaves a
    block, places below zero closed (SC-CLIP); cosines below `cut` count as 0 beforehand (SFP).
    """
    numbers = dict(zip(("block", "beta", "gamma", "cut"), term.arguments, strict=False))
    likeness = scene.record.likeness(int(numbers["block"]))
    if "cut" in numbers:
        likeness = torch.where(likeness < numbers["cut"], 0.0, likeness)
    return closed_below(likeness, numbers.get("beta", 1.0), numbers.get("gamma", 3.0))[:, None]


def closed_below(likeness: Tensor, beta: float, gamma: float) -> Tensor:
    """(B, N, N) cosines S -> gamma * (S - beta * mean S), -inf where that is negative; the mean is over all
    pairs of an image.
    """
    shifted = (likeness - beta * likeness.mean(dim=(-2, -1), keepdim=True)) * gamma
    return shifted.masked_fill(shifted < 0, -torch.inf)


def _procrustes(term: Term, scene: Scene) -> Tensor:
    """qk_procrustes(steps): queries against keys turned onto them, in float32; steps 0: exactly (PEARL)."""
    q, k = _float(scene.q), _float(scene.k)
    steps = int(term.arguments[0]) if term.arguments else 5
    return vit.product(q, k @ rotation(*centred(q, k, scene.with_class), steps))


def _centred_keys(term: Term, scene: Scene) -> Tensor:
    """Keys less their mean, against each other, in float32 (PEARL)."""
    _, k = centred(_float(scene.q), _float(scene.k), scene.with_class)
    return vit.product(k, k)


def _float(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.float()


def _given_logits(term: Term, scene: Scene) -> Tensor:
    return _given(term.name, scene)


def _given(name: str, scene: Scene) -> Tensor:
    if name not in scene.given:
        raise AttentionError(
            f"Attention: the term {name!r} has to be given from outside (a second model, regions, a first "
            "pass), and was not; choose a preset that makes it, or another attention."
        )
    return scene.given[name]


_PAIRS = {"qk": "qk", "qq": "qq", "kk": "kk", "vv": "vv"}
_TABLE: dict[str, Callable[[Term, Scene], Tensor]] = {
    **dict.fromkeys(_PAIRS, _pair),
    "gauss": _gauss,
    "similarity": _similarity,
    "qk_procrustes": _procrustes,
    "kk_centred": _centred_keys,
    "feedback": _given_logits,
    "guest": _given_logits,
}
