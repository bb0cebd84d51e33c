"""Caching a data set: complete, resumable after any interruption, and refusing what it cannot store."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from torch import Tensor

from twostage.data.sample import Sample
from twostage.data.transforms import resize_for_test
from twostage.proposals import _cache_files as files
from twostage.proposals._cache_files import CacheError
from twostage.proposals._caching import CacheSummary, CocoWriter, NpzWriter, cache
from twostage.proposals.cached import CachedConfig, CachedProposals
from twostage.proposals.oracle import OracleProposals
from twostage.types import Proposals, TextBank
from twostage.vocabulary import Vocabulary

Format = Literal["npz", "coco"]


class Pictures:
    """Photos of one value each, with labels where asked."""

    name = "pictures"
    vocabulary = Vocabulary((("a",), ("b",)))

    def __init__(self, count: int = 4, labels: bool = True, ids: Sequence[str] | None = None) -> None:
        self.ids = list(ids or [f"p{number}" for number in range(count)])
        self.labels = labels
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        labels = torch.tensor([[0, 0, 1], [-1, 1, 1]], dtype=torch.int32) if self.labels else None
        return Sample(
            torch.full((3, 2, 3), index, dtype=torch.uint8), labels, self.ids[index], f"{index}.jpg"
        )


class TellingPictures(Pictures):
    """Tells its ids without reading."""

    @property
    def image_ids(self) -> list[str]:
        return self.ids


class Columns:
    """One mask for each of the first columns, as many as the picture's value; stops after `budget` images."""

    def __init__(self, budget: int = 1000) -> None:
        self.budget = budget

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> Proposals:
        if self.budget == 0:
            raise RuntimeError("power cut")
        self.budget -= 1
        count = int(image[0, 0, 0]) % 4
        masks = torch.zeros((count, *image.shape[1:]), dtype=torch.bool)
        for column in range(count):
            masks[column, :, column] = True
        return Proposals(masks, torch.arange(count) / 4)


def target(tmp_path: Path, kind: Format) -> Path:
    return tmp_path / ("store.json" if kind == "coco" else "store")


@pytest.mark.parametrize("kind", ["npz", "coco"])
def test_everything_is_stored_and_found_again(tmp_path: Path, kind: Format) -> None:
    steps: list[tuple[int, int]] = []
    out = target(tmp_path, kind)
    done = cache(Pictures(), Columns(), out, kind, progress=lambda *step: steps.append(step))
    assert done == CacheSummary(written=4, skipped=0, masks=0 + 1 + 2 + 3)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    store = CachedProposals(CachedConfig(str(out)))
    images = [sample.image for sample in (Pictures()[index] for index in range(4))]
    for found, expected in zip(store.propose(images), Columns().propose(images), strict=True):
        assert torch.equal(found.masks, expected.masks)
        assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("kind", ["npz", "coco"])
@pytest.mark.parametrize("dataset", [Pictures, TellingPictures])
def test_an_interrupted_run_goes_on(tmp_path: Path, kind: Format, dataset: type[Pictures]) -> None:
    out = target(tmp_path, kind)
    with pytest.raises(RuntimeError, match="power cut"):
        cache(dataset(), Columns(budget=3), out, kind)
    again = dataset()
    assert cache(again, Columns(budget=1), out, kind) == CacheSummary(written=1, skipped=3, masks=3)
    assert sorted(again.read) == ([3] if dataset is TellingPictures else [0, 1, 2, 3])
    assert cache(dataset(), Columns(budget=0), out, kind) == CacheSummary(written=0, skipped=4, masks=0)
    whole = target(tmp_path / "whole", kind)
    cache(dataset(), Columns(), whole, kind)
    ids, sizes = dataset().ids, [(2, 3)] * 4
    resumed = CachedProposals(CachedConfig(str(out))).propose_for(ids, sizes)
    for ours, theirs in zip(
        resumed, CachedProposals(CachedConfig(str(whole))).propose_for(ids, sizes), strict=True
    ):
        assert torch.equal(ours.masks, theirs.masks)
    assert not list(tmp_path.glob("*.part"))


def test_a_line_cut_off_by_the_interruption_is_dropped(tmp_path: Path) -> None:
    writer = CocoWriter(tmp_path / "x.json")
    for number in (1, 2):
        writer.add(f"p{number}", Columns().propose([Pictures()[number].image])[0])
    part = tmp_path / "x.json.part"
    part.write_text(part.read_text()[:-5])
    assert CocoWriter(tmp_path / "x.json").done == {"p1"}
    assert cache(Pictures(), Columns(), tmp_path / "x.json", "coco").skipped == 1
    found = json.loads((tmp_path / "x.json").read_text())
    assert [entry["image_id"] for entry in found] == ["p1", "p0", "p2", "p2", "p3", "p3", "p3"]


def test_test_size_is_part_of_the_identity(tmp_path: Path) -> None:
    def resize(image: Tensor) -> Tensor:
        return resize_for_test(image, 4, 100)

    cache(Pictures(), Columns(), tmp_path / "store", resize=resize)
    store = CachedProposals(CachedConfig(str(tmp_path / "store")))
    image = Pictures()[2].image
    assert store.propose([resize(image)])[0].size_hw == (4, 6)
    with pytest.raises(CacheError, match="cached size"):
        store.propose([image])
    assert store.propose_for(["p2"], [(2, 3)])[0].size_hw == (2, 3)


def test_the_oracle_is_given_labels(tmp_path: Path) -> None:
    cache(Pictures(1), OracleProposals.tiny(), tmp_path / "store")
    found = files.read_npz(tmp_path / "store" / "p0.npz")
    assert found.masks.tolist() == [
        [[True, True, False], [False, False, False]],
        [[False, False, True], [False, True, True]],
    ]
    with pytest.raises(CacheError, match=r"0\.jpg: this generator needs labels"):
        cache(Pictures(1, labels=False), OracleProposals.tiny(), tmp_path / "other")


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"unknown format 'npy'.*Did you mean 'npz'"):
        cache(Pictures(), Columns(), tmp_path / "x", "npy")  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="two images have the id 'same'"):
        cache(Pictures(ids=["same", "same"]), Columns(), tmp_path / "twice")
    for odd in ("a/b", "..", "", "a\\b"):
        with pytest.raises(CacheError, match="cannot be a file name"):
            NpzWriter(tmp_path / "odd").add(odd, Columns().propose([Pictures()[1].image])[0])
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="needs a folder"):
        NpzWriter(tmp_path / "file")
    with pytest.raises(CacheError, match=r"ends in \.json"):
        CocoWriter(tmp_path / "file")


@pytest.fixture
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "cache_proposals.py"
    spec = importlib.util.spec_from_file_location("cache_proposals_tool", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line(tool: ModuleType) -> None:
    given = tool.parse_arguments(
        [
            "--config-file",
            "c.yaml",
            "--dataset",
            "shapes_val",
            "--out",
            "x",
            "SEED",
            "3",
            "TEST.OVERLAYS",
            "0",
        ]
    )
    assert (given.config_file, given.dataset, given.out, given.format) == ("c.yaml", "shapes_val", "x", "npz")
    assert given.overrides == ["SEED", "3", "TEST.OVERLAYS", "0"]
