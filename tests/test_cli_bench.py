"""`twostage bench --pareto`: what is compared, what is counted, and the files that it leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import write_system

from twostage.classifiers.crops import CropClassifier
from twostage.classifiers.pooled import PooledClassifier
from twostage.cli import main
from twostage.config import Config, ConfigError, SlotConfig, load_config
from twostage.data import catalog
from twostage.registry import ComponentError
from twostage.runs import pareto, pareto_report
from twostage.runs.pareto_candidates import candidates, defaults
from twostage.types import RegionScores
from twostage.visualize.pareto_plot import Panel, Point, frontier, plot, ticks

Said = pytest.CaptureFixture[str]
CPU = torch.device("cpu")


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, str]:
    """A system over strips and two photos with truth, in a folder of three classes."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "data"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(2):
        pixels = draw.integers(0, 255, (24, 36, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(draw.integers(0, 3, (24, 36)).astype(np.uint8)).save(
            folder / "masks" / f"{number}.png"
        )
    classes = [{"id": n, "name": name, "seen": n < 2} for n, name in enumerate(("cat", "dog", "tree"))]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}), encoding="utf-8")
    more = "CLASSIFIER: {NAME: crops, OPTIONS: {MODE: antialias}}\n"
    system = write_system(tmp_path).read_text(encoding="utf-8")
    lines = [line for line in system.splitlines() if not line.startswith("CLASSIFIER")]
    path = tmp_path / "bench.yaml"
    path.write_text("\n".join(lines) + "\n" + more, encoding="utf-8")
    return path, f"folder:{folder}"


def bench(world: tuple[Path, str], out: Path, *words: str) -> int:
    path, data = world
    return main(["bench", "--pareto", "--config-file", str(path), "--data", data, "-o", str(out), *words])


def test_files_and_table(world: tuple[Path, str], tmp_path: Path, capsys: Said) -> None:
    names = ["pooled:level=logits", "cascade:margin=1,pooled.level=logits", "cascade:margin=0"]
    assert bench(world, tmp_path / "out", "--classifiers", *names, "--rounds", "2") == 0
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "pareto.json").read_text(encoding="utf-8"))
    assert [one["system"] for one in content["systems"]] == ["crops", *names]
    crops, _, every, _ = content["systems"]
    assert crops["options"] == {"mode": "antialias"}
    assert every["options"] == {"crops": {"mode": "antialias"}, "margin": 1, "pooled": {"level": "logits"}}
    assert (content["images"], content["rounds"], content["skipped"]) == (2, 2, {})
    assert [one["crops_per_image"] for one in content["systems"]] == [3.0, 0.0, 3.0, 0.0]
    assert crops["equal_labels"] == every["equal_labels"] == 100.0
    assert every["hIoU"] == crops["hIoU"]
    for one in content["systems"]:
        for prefix in ("", "cpu_"):
            assert 0 < one[f"{prefix}stage_two_s"] <= one[f"{prefix}whole_s"]
        assert one["speedup_stage_two"] == pytest.approx(crops["stage_two_s"] / one["stage_two_s"])
    assert (tmp_path / "out" / "pareto.md").read_text(encoding="utf-8") in said
    assert re.search(r"\| cascade:margin=0( \*)? +\|", said)
    assert cv2.imread(str(tmp_path / "out" / "pareto.png")).shape[2] == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pareto.json", "pareto.md", "pareto.png"}


def test_numbers_are_those_of_an_evaluation(world: tuple[Path, str], tmp_path: Path) -> None:
    """Accuracy of `crops` as train_net.py measures it."""
    from twostage.build import evaluate

    path, data = world
    words = [f"DATASETS.TEST={data}", f"OUTPUT_DIR={tmp_path / 'run'}", "ENSEMBLE.OPTIONS.USE=[regions]"]
    config = load_config(path, words)
    dataset = catalog.get(data)
    found = pareto.measure(config, dataset, candidates(config, ["crops"], CPU))
    [row] = pareto_report.rows(found, dataset)
    [outcome] = evaluate(config).values()
    expected = outcome.metrics["ensemble"].as_dict()
    for name in ("mIoU", "seen", "unseen", "hIoU"):
        assert row[name] == pytest.approx(expected[name])


def test_what_cannot_work_is_left_out_unless_asked_for(
    world: tuple[Path, str], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips have no embeddings."""
    short = ["crops", "query", "pooled:level=values"]
    monkeypatch.setattr("twostage.runs.pareto_candidates.defaults", lambda device: list(short))
    assert bench(world, tmp_path / "out", "--limit", "1") == 0
    assert "Left out: query: QueryClassifier: the masks of image 0" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "pareto.json").read_text(encoding="utf-8"))
    assert [one["system"] for one in content["systems"]] == ["crops", "pooled:level=values"]
    assert set(content["skipped"]) == {"query"}
    assert content["images"] == 1
    assert bench(world, tmp_path / "other", "--classifiers", "query") == 1
    assert "have no embeddings" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_every_classifier_sees_the_same_masks_once_a_round(
    world: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    for kind in (CropClassifier, PooledClassifier):
        own = kind.classify

        def noted(self: Any, images: Any, proposals: Any, text: Any, own: Any = own) -> Any:
            calls.append((type(self).__name__, id(proposals[0].masks)))
            return own(self, images, proposals, text)

        monkeypatch.setattr(kind, "classify", noted)
    config = load_config(world[0])
    chosen = candidates(config, ["pooled"], CPU)
    pareto.measure(config, catalog.get(world[1]), chosen, rounds=3)
    names = [name[0] for name, _ in calls]
    assert "".join(names) == "CP" + "CPPCCP" + "PCCPPC", "a warm-up, then every other round backwards"
    assert len({mask for _, mask in calls}) == 2


def test_equal_labels_are_pixels(world: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three strips of one width are named alike."""

    def says(*classes: int) -> Any:
        logits = 30 * torch.nn.functional.one_hot(torch.tensor(classes), 3).float()
        scores = RegionScores(logits, torch.ones(3, dtype=torch.bool))
        return lambda self, images, proposals, text: [scores for _ in images]

    monkeypatch.setattr(CropClassifier, "classify", says(0, 1, 2))
    monkeypatch.setattr(PooledClassifier, "classify", says(0, 2, 2))
    dataset = catalog.get(world[1])
    config = load_config(world[0])
    found = pareto.measure(config, dataset, candidates(config, ["pooled"], CPU), limit=1)
    crops, pooled = pareto_report.rows(found, dataset)
    assert pooled["equal_labels"] == pytest.approx(200 / 3)
    labels = dataset[0].labels
    assert labels is not None
    strips = torch.arange(36) // 12
    assert crops["pAcc"] == pytest.approx(100 * float((labels == strips).float().mean()))
    other = torch.tensor([0, 2, 2])[strips]
    assert pooled["pAcc"] == pytest.approx(100 * float((labels == other).float().mean()))


def test_candidates_as_people_write_them() -> None:
    config = Config(classifier=SlotConfig("pooled", {"level": "logits", "short_edge": 64}))
    words = ["pooled:short_edge=96", "crops:dtype=bf16", "cascade:first=query,margin=0.2,crops.chunk=4"]
    first, pooled, half, cascade = candidates(config, words, CPU)
    assert (first.name, first.slot.options, first.dtype, first.optional) == ("crops", {}, "fp32", False)
    assert pooled.slot.options == {"level": "logits", "short_edge": 96}
    assert (half.slot.options, half.dtype) == ({}, "bf16")
    assert cascade.slot.options == {"first": "query", "margin": 0.2, "crops": {"chunk": 4}}
    nested = Config(classifier=SlotConfig("cascade", {"pooled": {"level": "values"}, "top": 3}))
    _, pooled, cascade = candidates(nested, ["pooled", "cascade:top=5"], CPU)
    assert pooled.slot.options == {"level": "values"}
    assert cascade.slot.options == {"pooled": {"level": "values"}, "top": 5}


def test_one_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx in (False, True):
        monkeypatch.setattr("twostage.runs.pareto_candidates.has_amx", lambda amx=amx: amx)
        assert ("crops:dtype=bf16" in defaults(CPU)) == amx
        found = candidates(Config(), [], CPU)
        assert {one.slot.name for one in found} == {"crops", "query", "pooled", "masked_attention", "cascade"}
        assert [one.optional for one in found] == [False] + [True] * (len(found) - 1)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["poold"], ComponentError, "Did you mean 'pooled'"),
        (["pooled:levle=values"], ComponentError, "Did you mean 'level'"),
        (["cascade:pooled.levle=values"], ComponentError, "Did you mean 'level'"),
        (["pooled:dtype=fp23"], ConfigError, "Did you mean 'fp32'"),
        (["pooled:level"], ConfigError, "level has no value"),
        (["query", "query"], ConfigError, "named twice: query"),
    ],
)
def test_candidates_that_are_refused(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        candidates(Config(), words, CPU)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench"], "bench --pareto"),
        (["bench", "--pareto", "--limit", "-1"], "--limit must not be negative"),
        (["bench", "--pareto", "--rounds", "0"], "--rounds at least 1"),
        (["bench", "--pareto", "--data", "shapes_vla"], "Did you mean 'shapes_val'"),
        (["bench", "--pareto", "--model", "sam-vit-b16", "--classifiers", "query"], "--data shapes_val"),
        (
            ["bench", "--pareto", "--set", "PROPOSALS.NAME=", "--classifiers", "pooled"],
            "no masks to classify",
        ),
    ],
)
def test_mistakes_end_with_one_sentence(words: list[str], message: str, capsys: Said, tmp_path: Path) -> None:
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert message in said
    assert not (tmp_path / "out").exists()


def test_photos_without_truth(world: tuple[Path, str], tmp_path: Path, capsys: Said) -> None:
    for mask in Path(world[1].removeprefix("folder:"), "masks").iterdir():
        mask.unlink()
    assert bench(world, tmp_path / "out", "--classifiers", "pooled") == 1
    assert not (tmp_path / "out").exists()


def test_the_frontier_against_all_pairs() -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        found = [(float(x), float(y)) for x, y in draw.integers(1, 8, (9, 2))]
        beaten = {
            n
            for n, (x, y) in enumerate(found)
            for m, (other_x, other_y) in enumerate(found)
            if other_x <= x and other_y >= y and ((other_x, other_y) != (x, y) or m < n)
        }
        assert sorted(frontier(found)) == [n for n in range(9) if n not in beaten]
        assert [found[n][0] for n in frontier(found)] == sorted(found[n][0] for n in frontier(found))
    assert frontier([]) == []


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0.15, 0.45), [0.2, 0.3, 0.4]),
        ((0.04, 0.6), [0.05, 0.1, 0.2, 0.5]),
        ((0.0009, 60), [0.001, 0.01, 0.1, 1, 10]),
    ],
)
def test_round_numbers_on_a_logarithmic_axis(span: tuple[float, float], expected: list[float]) -> None:
    assert ticks(*span) == expected


def test_a_plot_of_crowded_points() -> None:
    """Every point has its dot in the colour of its kind; one point, equal points and long names are drawn."""
    points = [
        Point("slow and good", 1.0, 60.0),
        Point("fast and bad", 0.01, 20.0),
        Point("beaten", 1.5, 30.0),
    ]
    picture = plot(
        [
            Panel("t", "s", "%", points),
            Panel("t", "s", "%", points[:1] * 3),
            Panel("t", "s", "%", [Point("x" * 200, 0.0, 5.0)]),
        ]
    )
    assert picture.dtype == np.uint8
    first = picture[:, :760].astype(int)
    red = np.abs(first - [200, 60, 40]).sum(axis=2) < 30
    blue = np.abs(first - [70, 110, 160]).sum(axis=2) < 30
    assert red.sum() > blue.sum() > 20
    rows, columns = np.nonzero(blue)
    assert columns.mean() > 500, "the beaten one is the slowest"
    assert 300 < rows.mean() < 480, "and stands low"
