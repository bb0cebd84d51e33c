"""An evaluation that is stopped and goes on counts what one without a stop counts; broken photos are left
out only where that is asked for.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import SYSTEM, Colours, Strips, bank

from twostage import build
from twostage.config import Config, load_config
from twostage.data import catalog
from twostage.data.errors import ImageReadError
from twostage.data.sample import Sample
from twostage.data.shapes.dataset import ShapesDataset
from twostage.engine.signals import TrainingInterrupted
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.errors import TwostageError
from twostage.evaluation.runner import evaluate
from twostage.segmenter import Segmenter, Words
from twostage.views import TestSize

PHOTOS = 6


class Killed(BaseException):
    """What no handler sees coming."""


class Scenes(ShapesDataset):
    """Some of which may be broken."""

    broken: tuple[int, ...] = ()
    chosen: tuple[int, ...] = tuple(range(PHOTOS))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise ImageReadError(f"scene {index}: broken")
        return super().__getitem__(self.chosen[index])


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scenes]:
    """Registers a data set of a name."""

    def make(name: str, broken: tuple[int, ...] = (), chosen: tuple[int, ...] = Scenes.chosen) -> Scenes:
        made = Scenes("val", length=PHOTOS)
        made.name, made.broken, made.chosen = name, broken, chosen
        monkeypatch.setitem(catalog._registered, name, lambda root: made)
        return made

    return make


def config(folder: Path, run: str, *overrides: str) -> Config:
    (folder / "own.yaml").write_text(SYSTEM)
    return load_config(
        folder / "own.yaml",
        [f"OUTPUT_DIR={folder / run}", "TEST.SAVE_SECONDS=0", "TEST.OVERLAYS=0", *overrides],
    )


def results(folder: Path, run: str, *more: str) -> dict[str, Any]:
    """Everything that the counts say."""
    path = Path(folder, run, "inference", *more, "results.json")
    stored: dict[str, Any] = json.loads(path.read_text())
    return {key: value for key, value in stored.items() if key not in ("provenance", "seconds")}


def at_photo(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> list[int]:
    """Acts when this photo is looked at, counted from one; what is returned grows with every photo."""
    seen: list[int] = []
    real = Segmenter.gather

    def gather(self: Segmenter, *rest: Any, **more: Any) -> Any:
        seen.append(1)
        if len(seen) == number:
            act()
        return real(self, *rest, **more)

    monkeypatch.setattr(Segmenter, "gather", gather)
    return seen


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


SYSTEMS = "TEST.SYSTEMS=[CLIP crops, oracle classes]"


def test_killed_and_resumed(
    tmp_path: Path, scenes: Callable[..., Scenes], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes("few")
    words = ["DATASETS.TEST=[few]", SYSTEMS, "TEST.OVERLAYS=3"]
    build.evaluate(config(tmp_path, "whole", *words))
    for photo in (1, 3):
        with monkeypatch.context() as patch:
            at_photo(patch, photo, kill)
            with pytest.raises(Killed):
                build.evaluate(config(tmp_path, f"cut{photo}", *words))
        with monkeypatch.context() as patch:
            seen = at_photo(patch, 0, kill)
            build.evaluate(config(tmp_path, f"cut{photo}", *words, "TEST.RESUME=True"))
        assert len(seen) == PHOTOS - (photo - 1)
        out = tmp_path / f"cut{photo}" / "inference"
        assert results(tmp_path, f"cut{photo}") == results(tmp_path, "whole")
        assert sorted(path.name for path in (out / "overlays").iterdir()) == [
            f"val_00000{number}.png" for number in range(3)
        ]
        assert sorted(path.name for path in out.iterdir()) == ["overlays", "results.json"]
    assert set(results(tmp_path, "whole")) == {"systems", "proposals", "images", "expected"}


def test_a_signal_saves_the_counts_and_says_how_to_go_on(
    tmp_path: Path,
    scenes: Callable[..., Scenes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scenes("few")
    words = ["DATASETS.TEST=[few]", SYSTEMS, "TEST.SAVE_SECONDS=9999"]
    build.evaluate(config(tmp_path, "whole", *words))
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_photo(patch, 2, terminate)
        with pytest.raises(TrainingInterrupted, match=r"counts of 2 of 6 photos .* TEST\.RESUME True") as cut:
            build.evaluate(config(tmp_path, "cut", *words))
    assert cut.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    with monkeypatch.context() as patch:
        seen = at_photo(patch, 0, kill)
        build.evaluate(config(tmp_path, "cut", *words, "TEST.RESUME=True"))
    assert len(seen) == 4
    assert results(tmp_path, "cut") == results(tmp_path, "whole")
    # without TEST.RESUME it begins anew, and the earlier counts are only put aside
    with monkeypatch.context() as patch:
        at_photo(patch, 2, terminate)
        for _ in range(2):
            with pytest.raises(TrainingInterrupted):
                build.evaluate(config(tmp_path, "anew", *words))
            patch.undo()
            at_photo(patch, 1, terminate)
    assert "its counts are now in" in caplog.text
    folder = tmp_path / "anew" / "inference"
    assert sorted(path.name for path in folder.glob("unfinished*")) == [
        "unfinished_0_of_1.before",
        "unfinished_0_of_1.npz",
    ]
    build.evaluate(config(tmp_path, "anew", *words, "TEST.RESUME=True"))
    assert results(tmp_path, "anew") == results(tmp_path, "whole")
    assert not list(folder.glob("unfinished*"))


def test_counts_of_other_options_are_not_taken_up(
    tmp_path: Path,
    scenes: Callable[..., Scenes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scenes("few")
    words, other = ["DATASETS.TEST=[few]", SYSTEMS], "PROPOSALS.OPTIONS.COUNT=5"
    build.evaluate(config(tmp_path, "whole", *words, other))
    with monkeypatch.context() as patch:
        at_photo(patch, 4, kill)
        with pytest.raises(Killed):
            build.evaluate(config(tmp_path, "cut", *words))
    build.evaluate(config(tmp_path, "cut", *words, other, "TEST.RESUME=True"))
    assert "is of an evaluation with other options; this one begins anew" in caplog.text
    assert results(tmp_path, "cut") == results(tmp_path, "whole")


def test_data_sets_that_were_finished_are_not_looked_at_again(
    tmp_path: Path, scenes: Callable[..., Scenes], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes("one")
    scenes("two", chosen=(5, 3, 1))
    words = ["DATASETS.TEST=[one, two]", SYSTEMS]
    build.evaluate(config(tmp_path, "whole", *words))
    with monkeypatch.context() as patch:
        at_photo(patch, PHOTOS + 2, kill)
        with pytest.raises(Killed):
            build.evaluate(config(tmp_path, "cut", *words))
    with monkeypatch.context() as patch:
        seen = at_photo(patch, 0, kill)
        build.evaluate(config(tmp_path, "cut", *words, "TEST.RESUME=True"))
    assert len(seen) == 2
    for name in ("one", "two"):
        assert results(tmp_path, "cut", name) == results(tmp_path, "whole", name)
    assert not list((tmp_path / "cut").rglob("unfinished*"))


def test_broken_photos(
    tmp_path: Path,
    scenes: Callable[..., Scenes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scenes("few", broken=(1, 4))
    words = ["DATASETS.TEST=[few]", SYSTEMS]
    with pytest.raises(ImageReadError, match="scene 1"):
        build.evaluate(config(tmp_path, "run", *words))
    # the count of photo 0 is kept, whatever is decided about the broken ones
    with monkeypatch.context() as patch:
        seen = at_photo(patch, 0, kill)
        outcome = build.evaluate(config(tmp_path, "run", *words, "TEST.RESUME=True", "TEST.ON_ERROR=skip"))[
            "few"
        ]
    assert len(seen) == 3
    found = results(tmp_path, "run")
    assert (found["partial"], found["images"]) == (True, 4)
    assert found["left_out"] == ["scene 1: broken", "scene 4: broken"] == list(outcome.failed)
    assert "2 of 6 photos were left out" in caplog.text
    scenes("few", chosen=(0, 2, 3, 5))
    build.evaluate(config(tmp_path, "rest", *words))
    rest = results(tmp_path, "rest")
    assert found["systems"] == rest["systems"]
    assert found["proposals"] == rest["proposals"]
    scenes("none", broken=Scenes.chosen)
    with pytest.raises(
        TwostageError, match="not one of 6 photos could be evaluated; the first: scene 0: broken"
    ):
        build.evaluate(config(tmp_path, "none", "DATASETS.TEST=[none]", "TEST.ON_ERROR=skip"))


PLAIN = GeometricEnsemble(GeometricEnsemble.Config(use=("regions",)))
TINY = Segmenter(PLAIN, Strips(Strips.Config()), Colours(Colours.Config()), size=TestSize(0))


def test_a_photo_that_fails_halfway_is_not_counted_at_all() -> None:
    """The first system has its labels when the second runs out of memory."""

    class Hungry(GeometricEnsemble):
        def merge(self, evidence: Any, vocabulary: Any) -> Any:
            if evidence.size_hw == tuple(dataset[1].image.shape[1:]):
                torch.empty(1 << 55)
            return super().merge(evidence, vocabulary)

    dataset = Scenes("val", length=PHOTOS)
    words = Words(dataset.vocabulary, bank(20))
    systems = {"plain": PLAIN, "hungry": Hungry(PLAIN.config)}
    outcome = evaluate(TINY, dataset, words, systems, skip_broken=True)
    assert outcome.failed
    assert outcome.images == PHOTOS - len(outcome.failed)
    assert outcome.metrics["plain"].as_dict() == outcome.metrics["hungry"].as_dict()
    with pytest.raises(RuntimeError, match="allocate"):
        evaluate(TINY, dataset, words, systems)
    with pytest.raises(ZeroDivisionError):  # a mistake of the program is nobody's photo
        evaluate(TINY, dataset, words, {"x": PLAIN}, on_image=lambda *_: 1 / 0, skip_broken=True)  # type: ignore[arg-type, return-value]
