"""One judge for every source of masks: whatever stands in the folder is found by name and tried here.

Masks that overlap, leave pixels uncovered, are empty, none at all or hundreds are all in order; masks of
another size, scores that are no numbers, answers that change from call to call are not.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_parts import bank, named, photos, propose, same, tiny, width_of
from torch import Tensor

from twostage import registry
from twostage.config import load_config
from twostage.interfaces import ProposalGenerator
from twostage.proposals import _cache_files as files
from twostage.proposals.cached import CachedConfig, CachedProposals
from twostage.proposals.contours import ContoursConfig, ContoursProposals
from twostage.proposals.grid import GridConfig, GridProposals
from twostage.proposals.hf import HfProposals
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.proposals.mixed import MixedConfig, MixedProposals
from twostage.proposals.oracle import OracleProposals
from twostage.proposals.sam import SamProposals
from twostage.proposals.selective_search import SelectiveSearchConfig, SelectiveSearchProposals
from twostage.proposals.superpixels import SuperpixelsConfig, SuperpixelsProposals
from twostage.types import VOID, Proposals

ODD_SIZES = ((1, 1), (1, 17), (23, 1), (2, 3))
LARGE = (75, 100)


def noise(size_hw: tuple[int, int]) -> Tensor:
    draw = torch.Generator().manual_seed(size_hw[0] + 7 * size_hw[1])
    return torch.randint(0, 256, (3, *size_hw), generator=draw).to(torch.uint8)


def judge(name: str, image: Tensor, own: Proposals) -> None:
    """What holds for any answer to any image."""
    assert own.size_hw == tuple(image.shape[1:])
    assert own.masks.dtype in (torch.bool, torch.float32)
    assert own.scores.dtype == torch.float32
    assert own.masks.device == own.scores.device == image.device
    assert torch.isfinite(own.scores).all()
    if own.masks.dtype == torch.float32 and len(own):
        assert 0 <= float(own.masks.min()) <= float(own.masks.max()) <= 1
    assert own.source, f"{name} should sign its proposals (Proposals.source)"
    assert len(own.made_by()) == len(own)
    assert all(own.made_by())
    if own.embeddings is not None:
        torch.testing.assert_close(own.embeddings.norm(dim=1), torch.ones(len(own)), rtol=1e-3, atol=1e-3)


def exactly_same(first: Proposals, second: Proposals) -> None:
    assert torch.equal(first.masks, second.masks)
    assert torch.equal(first.scores, second.scores)
    assert first.made_by() == second.made_by()


@named("proposals")
@pytest.mark.parametrize("with_text", [False, True])
def test_proposals_have_the_size_of_their_photo(name: str, with_text: bool) -> None:
    generator = tiny("proposals", name)
    assert isinstance(generator, ProposalGenerator)
    images = photos()
    before = [image.clone() for image in images]
    text = bank(width_of(generator)) if with_text else None
    found = propose(generator, images, text)
    assert len(found) == len(images)
    for image, own, kept in zip(images, found, before, strict=True):
        assert torch.equal(image, kept), f"{name} changed the photo"
        judge(name, image, own)
        if own.logits is not None:
            assert with_text
            assert own.logits.logits.shape == (len(own), 3)


@named("proposals")
def test_proposals_do_not_depend_on_the_company(name: str) -> None:
    generator, images = tiny("proposals", name), photos()
    together = propose(generator, images)
    for image, own in zip(images, together, strict=True):
        same(own, propose(generator, [image])[0])
    assert propose(generator, []) == []


@named("proposals")
def test_what_names_its_masks_says_so(name: str) -> None:
    """An evaluation measures stage one alone where it speaks of classes (systems.names_masks)."""
    from twostage.systems import names_masks

    generator = tiny("proposals", name)
    found = propose(generator, photos(), bank(width_of(generator)))
    assert names_masks(generator) == any(own.logits is not None for own in found)


@named("proposals")
@pytest.mark.parametrize("with_text", [False, True])
def test_photos_of_odd_sizes(name: str, with_text: bool) -> None:
    generator = tiny("proposals", name)
    images = [noise(size) for size in ODD_SIZES]
    text = bank(width_of(generator)) if with_text else None
    found = propose(generator, images, text)
    assert len(found) == len(images)
    for image, own in zip(images, found, strict=True):
        judge(name, image, own)


@named("proposals")
def test_the_same_answer_every_time_and_in_order(name: str) -> None:
    """Bit for bit, by the same object, by another one, and for the photos in another order."""
    images = [noise((33, 48)), *photos()]
    first = propose(tiny("proposals", name), images)
    component: Any = registry.find("proposals", name)
    for own, again, other in zip(
        first,
        propose(tiny("proposals", name), images),
        reversed(propose(component.tiny(), images[::-1])),
        strict=True,
    ):
        exactly_same(own, again)
        exactly_same(own, other)


def test_the_lines_of_the_documentation_name_options_that_exist() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/proposals.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s*(--set )?proposals\.name=", line)]
    told = set()
    for line in lines:
        slot = load_config(None, [word for word in shlex.split(line) if word != "--set"]).proposals
        component = registry.find("proposals", slot.name)
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in slot.options.items()}
        registry.make_config(component, options)
        told.add(slot.name)
    assert told == set(registry.names("proposals")) - {"maskformer", "cached", "oracle"}


Make = Callable[[Path], Any]


def changed(made: Any, **options: Any) -> Any:
    """The same small source with other options."""
    made.config = dataclasses.replace(made.config, **options)
    return made


def mixed_of(*parts: ProposalGenerator, iou: float = 0.8) -> MixedProposals:
    names = tuple(str(number) for number in range(len(parts)))
    return MixedProposals(MixedConfig(names, iou=iou), lambda name, options: parts[int(name)])


FINDS_NOTHING: dict[str, Make] = {
    "cached": lambda folder: CachedProposals.tiny(),
    "hf": lambda folder: changed(HfProposals.tiny(), min_score=2.0),
    "maskformer": lambda folder: changed(MaskFormerProposals.tiny(), min_score=2.0),
    "mixed": lambda folder: mixed_of(
        CachedProposals.tiny(), changed(MaskFormerProposals.tiny(), min_score=2.0)
    ),
    "sam": lambda folder: changed(SamProposals.tiny(), pred_iou_thresh=1e6),
}
COVERS_ALL = ("contours", "grid", "selective_search", "superpixels")
"""Sources that divide the photo, so that there is a mask at least."""


@pytest.mark.parametrize("name", FINDS_NOTHING)
@pytest.mark.parametrize("size_hw", [(1, 1), (33, 48)])
def test_no_masks_at_all(name: str, size_hw: tuple[int, int], tmp_path: Path) -> None:
    image = noise(size_hw)
    (own,) = FINDS_NOTHING[name](tmp_path).propose([image])
    assert own.masks.shape == (0, *size_hw)
    judge(name, image, own)


@pytest.mark.parametrize("name", COVERS_ALL)
@pytest.mark.parametrize("size_hw", ODD_SIZES)
def test_sources_that_divide_the_photo(name: str, size_hw: tuple[int, int]) -> None:
    (own,) = tiny("proposals", name).propose([noise(size_hw)])
    assert own.masks.any(dim=0).all()


def test_the_oracle_sees_nothing_in_void() -> None:
    own = OracleProposals.tiny().propose_from_labels(torch.full((1, 1), VOID))
    assert own.masks.shape == (0, 1, 1)


def cached(folder: Path) -> CachedProposals:
    """Three hundred stored masks of the large photo."""
    stored = GridProposals(GridConfig(rows=15, columns=20)).propose([noise(LARGE)])[0]
    files.write_npz(folder / "large.npz", stored, files.digest(noise(LARGE)))
    return CachedProposals(CachedConfig(str(folder)))


def maskformer(folder: Path) -> MaskFormerProposals:
    from twostage.maskformer.network import MaskFormer

    small = MaskFormerProposals.tiny()
    config = dataclasses.replace(small.network.config, num_queries=300)
    return MaskFormerProposals(small.config, MaskFormer(config))


def hub(folder: Path) -> HfProposals:
    from small_hub import mask2former

    from twostage.proposals._hf_models import HubModel

    made = HfProposals.tiny()
    made._model = HubModel(mask2former(queries=300).eval(), "mask2former", short=64, long=128)
    return made


FINDS_HUNDREDS: dict[str, Make] = {
    "cached": cached,
    "contours": lambda folder: ContoursProposals(
        ContoursConfig(levels=(0.0, 0.5, 0.7), min_area=0, scales=(0.5,), texture=0.0)
    ),
    "grid": lambda folder: GridProposals(GridConfig(rows=15, columns=20)),
    "hf": hub,
    "maskformer": maskformer,
    "mixed": lambda folder: mixed_of(
        GridProposals(GridConfig(rows=15, columns=20)), MaskFormerProposals.tiny(), iou=1.0
    ),
    "sam": lambda folder: changed(SamProposals.tiny(), points_per_side=12, box_nms_thresh=1.0, max_masks=300),
    "selective_search": lambda folder: SelectiveSearchProposals(
        SelectiveSearchConfig(scale=0.01, sigma=0.0, min_size=0, similarity=1.0)
    ),
    "superpixels": lambda folder: SuperpixelsProposals(
        SuperpixelsConfig(method="felzenszwalb", scale=0.01, sigma=0.0, min_size=0)
    ),
}


@pytest.mark.parametrize("name", FINDS_HUNDREDS)
def test_three_hundred_masks(name: str, tmp_path: Path) -> None:
    (own,) = FINDS_HUNDREDS[name](tmp_path).propose([noise(LARGE)])
    assert len(own) >= 300
    judge(name, noise(LARGE), own)


def test_three_hundred_masks_of_the_oracle() -> None:
    labels = torch.arange(LARGE[0] * LARGE[1]).reshape(LARGE) // 25
    own = OracleProposals.tiny().propose_from_labels(labels)
    assert len(own) == 300
    judge("oracle", noise(LARGE), own)


def test_every_source_has_its_place_in_the_tables() -> None:
    sources = set(registry.names("proposals"))
    assert {*FINDS_NOTHING, *COVERS_ALL, "oracle"} == sources, "can it find nothing, or does it cover all?"
    assert {*FINDS_HUNDREDS, "oracle"} == sources, "how is it made to find three hundred masks?"
