"""The union of sources against loops over single masks, with sources made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import SYSTEM
from torch import Tensor

from twostage.builder import Builder
from twostage.config import load_config
from twostage.proposals.grid import GridConfig, GridProposals
from twostage.proposals.mixed import MixedConfig, MixedProposals
from twostage.proposals.oracle import OracleProposals
from twostage.registry import ComponentError
from twostage.systems import names_masks
from twostage.types import Proposals, RegionScores, TextBank

IMAGE = torch.zeros(3, 12, 16, dtype=torch.uint8)


@dataclass
class Fixed:
    """Gives the same proposals for every image, and remembers what it was made of and asked."""

    found: Proposals
    names_masks: bool = False
    options: Any = None
    text: Any = None

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        self.text = text
        return [self.found for _ in images]


def boxes(source: str, *rows: tuple[float, int, int, int, int]) -> Proposals:
    """Masks from (score, y0, x0, y1, x1)."""
    masks = torch.zeros(len(rows), 12, 16, dtype=torch.bool)
    for mask, (_, y0, x0, y1, x1) in zip(masks, rows, strict=True):
        mask[y0:y1, x0:x1] = True
    return Proposals(masks, torch.tensor([row[0] for row in rows]), source=source)


A = boxes("a", (0.9, 0, 0, 6, 8), (0.4, 6, 8, 12, 16))
B = boxes("b", (0.5, 0, 0, 6, 7), (0.8, 6, 8, 12, 15), (0.3, 0, 10, 3, 16))


def mixed(parts: Mapping[str, Proposals], *sources: Any, speaks: Sequence[str] = (), **options: Any) -> Any:
    made: dict[str, Fixed] = {}

    def make(name: str, given: Mapping[str, Any]) -> Fixed:
        made[name] = Fixed(parts[name], name in speaks, dict(given))
        return made[name]

    config = MixedConfig(sources=tuple(sources or parts), **options)
    source: Any = MixedProposals(config, make)
    source.made = made
    return source


def areas(found: Proposals) -> list[int]:
    return [int(mask.sum()) for mask in found.masks]


def test_the_better_of_two_alike_stays_and_knows_its_maker() -> None:
    (found,) = mixed({"a": A, "b": B}, stride=1).propose([IMAGE])
    assert found.source == "mixed"
    assert found.sources == ("a", "b", "b")
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.3])
    assert areas(found) == [48, 42, 18]
    assert found.masks.dtype == torch.bool
    assert found[[2, 0]].made_by() == ("b", "a")


def test_nothing_falls_above_the_threshold() -> None:
    for iou in (0.9, 1.0):
        (found,) = mixed({"a": A, "b": B}, iou=iou, stride=1).propose([IMAGE])
        assert found.sources == ("a", "b", "b", "a", "b")
        assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.5, 0.4, 0.3])
    (best,) = mixed({"a": A, "b": B}, iou=1.0, max_masks=2).propose([IMAGE])
    assert best.sources == ("a", "b")


def test_weights_and_scales_of_scores() -> None:
    def winners(*sources: Any, **options: Any) -> list[tuple[str, float]]:
        (found,) = mixed({"a": A, "b": B}, *sources, stride=1, **options).propose([IMAGE])
        return list(zip(found.made_by(), [round(score, 4) for score in found.scores.tolist()], strict=True))

    assert winners({"name": "a"}, {"name": "b", "weight": 2.0}) == [("b", 1.6), ("b", 1.0), ("b", 0.6)]
    assert winners(normalise="max") == [("a", 1.0), ("b", 1.0), ("b", 0.375)]
    assert winners(normalise="rank") == [("a", 1.0), ("b", 1.0), ("b", 0.3333)]
    assert winners("b", "a", normalise="rank")[0][0] == "b", "of equal scores the earlier source's stays"
    even = replace(A, scores=torch.ones(2))
    (found,) = mixed({"a": even}, normalise="rank").propose([IMAGE])
    assert found.scores.tolist() == [1, 1]


def test_scores_without_a_best_are_left_alone() -> None:
    for scores in (torch.zeros(2), -torch.ones(2)):
        (found,) = mixed({"a": replace(A, scores=scores)}, normalise="max").propose([IMAGE])
        assert torch.equal(found.scores, scores)


def test_soft_and_bool_masks_become_soft() -> None:
    soft = replace(A, masks=A.masks.float() * 0.7)
    (found,) = mixed({"a": soft, "b": B}, stride=1).propose([IMAGE])
    assert found.masks.dtype == torch.float32
    assert float(found.masks[0].max()) == pytest.approx(0.7)
    assert found.masks[1].unique().tolist() == [0, 1]
    faint = replace(A, masks=A.masks.float() * 0.4)
    (found,) = mixed({"a": faint, "b": B}, stride=1).propose([IMAGE])
    assert len(found) == 5, "a mask below one half is empty when it is compared"


def with_opinions(found: Proposals, classes: int = 3, no_object: bool = True, width: int = 4) -> Proposals:
    draw = torch.Generator().manual_seed(len(found))
    count = len(found)
    logits = RegionScores(
        torch.randn(count, classes, generator=draw),
        torch.ones(count, dtype=torch.bool),
        torch.zeros(count) if no_object else None,
        image=torch.zeros(classes),
    )
    return replace(found, logits=logits, embeddings=torch.randn(count, width, generator=draw))


def test_opinions_stay_where_all_have_them() -> None:
    a, b = with_opinions(A), with_opinions(B)
    source = mixed({"a": a, "b": b}, speaks=("a", "b"), stride=1)
    (found,) = source.propose([IMAGE])
    assert names_masks(source)
    assert found.logits is not None
    assert a.logits is not None
    assert b.logits is not None
    expected = torch.stack([a.logits.logits[0], b.logits.logits[1], b.logits.logits[2]])
    assert torch.equal(found.logits.logits, expected)
    assert found.logits.no_object is not None
    assert found.logits.image is None
    assert found.embeddings is None, "two components' embeddings have nothing in common"


@pytest.mark.parametrize(
    "other", [B, with_opinions(B, no_object=False), with_opinions(B, classes=5)], ids=["none", "sure", "wide"]
)
def test_opinions_that_cannot_be_compared_are_dropped(other: Proposals) -> None:
    (found,) = mixed({"a": with_opinions(A), "b": other}, speaks=("a",)).propose([IMAGE])
    assert found.logits is None
    assert found.embeddings is None
    assert not names_masks(mixed({"a": with_opinions(A), "b": other}, speaks=("a",)))


def test_one_component_keeps_its_embeddings() -> None:
    a = with_opinions(A)
    (found,) = mixed({"a": a}, "a", {"name": "a", "options": {"k": 1}}).propose([IMAGE])
    assert torch.equal(found.embeddings, a.embeddings)
    assert len(found) == 2


def test_masks_are_compared_coarsely_where_the_photo_is_large() -> None:
    masks = torch.zeros(2, 1024, 1024, dtype=torch.bool)
    masks[:, 4:1000, 4:1000] = True
    masks[1, 1::2] = False  # every second row, which a stride of four never sees
    parts = {"a": Proposals(masks, torch.tensor([0.5, 0.9]), source="a")}
    (coarse,) = mixed(parts).propose([torch.zeros(3, 1024, 1024, dtype=torch.uint8)])
    (fine,) = mixed(parts, stride=1).propose([torch.zeros(3, 1024, 1024, dtype=torch.uint8)])
    assert (len(coarse), len(fine)) == (1, 2)


def test_empty_sources_and_no_images() -> None:
    none = A[[]]
    (found,) = mixed({"a": none, "b": none}, normalise="rank").propose([IMAGE])
    assert found.masks.shape == (0, 12, 16)
    assert found.sources == ()
    (found,) = mixed({"a": none, "b": B}, normalise="max").propose([IMAGE])
    assert found.made_by() == ("b", "b", "b")
    assert mixed({"a": A, "b": B}).propose([]) == []


def test_sources_get_their_options_and_the_text() -> None:
    text = TextBank(torch.eye(2), torch.arange(2), 2)
    source = mixed({"a": A, "b": B}, "a", {"name": "b", "options": {"k": 3}})
    source.propose([IMAGE], text)
    assert (source.made["a"].options, source.made["b"].options) == ({}, {"k": 3})
    assert source.made["a"].text is text


def test_mixed_within_mixed_keeps_the_first_makers() -> None:
    inner = mixed({"a": A, "b": B}, stride=1).propose([IMAGE])[0]
    grid = GridProposals(GridConfig(rows=1, columns=1)).propose([IMAGE])[0]
    (found,) = mixed({"mixed": inner, "grid": grid}).propose([IMAGE])
    assert sorted(found.made_by()) == ["a", "b", "b", "grid"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sources": ()}, "sources must be a list of one or more"),
        ({"sources": "sam"}, "sources must be a list"),
        ({"sources": (3,)}, "source 0: expected a name or"),
        ({"sources": ("a", {"options": {}})}, "source 1: expected a name or"),
        ({"sources": ({"name": "a", "wieght": 2},)}, "unknown key 'wieght'.*weight"),
        ({"sources": ({"name": "a", "weight": 0},)}, r"source 0 \(a\): weight must be a number above 0"),
        ({"sources": ({"name": "a", "options": 3},)}, "options must be a mapping"),
        ({"sources": ("a",), "iou": 1.1}, r"iou must lie in \[0, 1\]"),
        ({"sources": ("a",), "normalise": "ranks"}, "unknown normalise 'ranks'.*rank"),
        ({"sources": ("a",), "stride": -1}, "stride must not be negative"),
    ],
)
def test_options_that_do_not_do(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ComponentError, match=says):
        MixedConfig(**options)


def test_ground_truth_cannot_be_mixed() -> None:
    with pytest.raises(ComponentError, match="oracle needs ground truth and cannot be mixed"):
        MixedProposals(MixedConfig(("oracle",)), lambda name, options: OracleProposals.tiny())


def built(tmp_path: Path, *overrides: str) -> Builder:
    (tmp_path / "base.yaml").write_text(SYSTEM)
    return Builder(load_config(tmp_path / "base.yaml", ["PROPOSALS.NAME", "mixed", *overrides]))


SOURCES = "PROPOSALS.OPTIONS.SOURCES=[grid, {NAME: grid, OPTIONS: {ROWS: 2, columns: 3}, weight: 2}]"


def test_built_from_a_configuration(tmp_path: Path) -> None:
    source = built(tmp_path, SOURCES, "PROPOSALS.OPTIONS.IOU=0.5").proposals()
    assert isinstance(source, MixedProposals)
    first, second = source.sources
    assert isinstance(first, GridProposals)
    assert isinstance(second, GridProposals)
    assert (first.config.rows, second.config.rows, second.config.columns) == (8, 2, 3)
    (found,) = source.propose([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    assert found.scores.tolist() == [2.0] * 6 + [1.0] * 64


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ("[gird]", "unknown component 'gird'.*grid"),
        ("[{name: grid, options: {rowz: 3}}]", "GridProposals: unknown option 'rowz'.*rows"),
        ("[maskformer]", r"MODEL\.WEIGHTS is empty"),
    ],
)
def test_what_a_source_lacks_is_said(sources: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        built(tmp_path, f"PROPOSALS.OPTIONS.SOURCES={sources}").proposals()


def test_a_slot_tells_all_its_components(tmp_path: Path) -> None:
    slot = built(
        tmp_path, "PROPOSALS.OPTIONS.SOURCES=[sam, {name: mixed, options: {sources: [maskformer]}}]"
    ).config.proposals
    assert slot.names() == {"mixed", "sam", "maskformer"}
    assert replace(slot, options={}).names() == {"mixed"}
    assert replace(slot, options={"sources": 3}).names() == {"mixed"}
