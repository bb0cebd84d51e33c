"""Measuring a table: one pass for rows that share evidence, nothing twice, and rows that lack something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import write_system

from twostage.builder import Builder
from twostage.cli import main
from twostage.config import Config, ConfigError
from twostage.data import catalog
from twostage.errors import TwostageError
from twostage.evaluation import runner
from twostage.networks import shipped
from twostage.runs import ablation
from twostage.runs.ablation import Options, grouped, measure
from twostage.runs.ablation_results import Results, markdown, row_digest
from twostage.runs.ablation_table import Table, read_table
from twostage.segmenter import Segmenter

TABLE = """
TITLE: Strips
BASE: system.yaml
SET: ['DATASETS.TEST=[shapes_val]', TEST.MAX_IMAGES=3, MODEL.MASK_FORMER.BACKBONE=small]
COLUMNS: [mIoU, mean_best_iou]
ROWS:
- {NAME: three, SYSTEM: CLIP crops, PAPER: {mIoU: 12.5}}
- {NAME: five, SYSTEM: CLIP crops, SET: [PROPOSALS.OPTIONS.COUNT=5]}
- {NAME: five again, SET: [PROPOSALS.OPTIONS.COUNT=5, ENSEMBLE.OPTIONS.EMPTY=drop]}
- {NAME: names, SYSTEM: oracle classes}
"""


def table(folder: Path, text: str = TABLE) -> Table:
    write_system(folder)
    path = folder / "table.yaml"
    path.write_text(text)
    return read_table(path)


def options(folder: Path, **more: Any) -> Options:
    return Options(folder / "results.json", **more)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The systems of each pass over the photos."""
    seen: list[list[str]] = []
    real = runner.evaluate

    def noted(segmenter: Segmenter, dataset: Any, words: Any, systems: Any, *rest: Any, **more: Any) -> Any:
        seen.append(sorted(systems))
        return real(segmenter, dataset, words, systems, *rest, **more)

    monkeypatch.setattr(ablation.runner, "evaluate", noted)
    return seen


def test_rows_that_share_evidence_share_a_pass(tmp_path: Path, passes: list[list[str]]) -> None:
    made = table(tmp_path)
    measured = measure(made, options(tmp_path))
    assert passes == [["oracle classes", "row: three"], ["row: five", "row: five again"]]
    assert not measured.problems
    for row in made.rows:
        builder = Builder(row.config)
        dataset = catalog.get("shapes_val")
        segmenter = builder.segmenter()
        alone = runner.evaluate(
            segmenter,
            dataset,
            builder.words(dataset.vocabulary),
            {row.system if "oracle" in row.system else "it": segmenter.ensemble},
            3,
        )
        [expected] = alone.metrics.values()
        assert measured.found[row.name]["mIoU"] == expected.overall.mIoU
        assert measured.found[row.name]["mean_best_iou"] == alone.recall["all"].mean_best_iou
        assert measured.found[row.name]["images"] == 3


def test_one_oracle_a_pass(tmp_path: Path) -> None:
    """The runner knows an oracle by its name, so two of them on one evidence are two passes."""
    text = TABLE + "- {NAME: names again, SYSTEM: oracle classes, SET: [ENSEMBLE.OPTIONS.WEIGHT=0.3]}\n"
    names = [[row.name for row in rows] for rows in grouped(table(tmp_path, text).rows)]
    assert names == [["three", "names"], ["five", "five again"], ["names again"]]


def test_nothing_is_measured_twice(tmp_path: Path, passes: list[list[str]]) -> None:
    first = measure(table(tmp_path), options(tmp_path))
    passes.clear()
    again = measure(table(tmp_path), options(tmp_path))
    assert passes == []
    assert again.found == json.loads(json.dumps(first.found))
    changed = TABLE.replace("EMPTY=drop", "UNCOVERED=void")
    measure(table(tmp_path, changed), options(tmp_path))
    assert passes == [["row: five again"]], "only the row that is new"
    passes.clear()
    measure(table(tmp_path), options(tmp_path))
    assert passes == [], "the older row is remembered too"
    measure(table(tmp_path), options(tmp_path, fresh=True))
    assert len(passes) == 2


def test_an_interrupted_table_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = runner.evaluate, list[int]()

    def stops(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(ablation.runner, "evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        measure(table(tmp_path), options(tmp_path))
    done = measure(table(tmp_path), options(tmp_path))
    assert len(done.found) == 4
    assert len(calls) == 3, "the first pass was kept"


def test_what_a_number_depends_on(tmp_path: Path) -> None:
    """Content of files counts, options of a training and the output folder do not."""
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    text = TABLE.replace("SET: ['DATASETS", f"SET: [MODEL.WEIGHTS={weights}, 'DATASETS")
    made = table(tmp_path, text)
    before = [row_digest(row) for row in made.rows]
    assert len(set(before)) == 4
    write_system(
        tmp_path, "OUTPUT_DIR: elsewhere\nSOLVER: {MAX_ITER: 7}\nDATASETS: {TRAIN: [shapes_train]}\n"
    )
    assert [row_digest(row) for row in read_table(made.path).rows] == before
    weights.write_bytes(b"two")
    assert not set(before) & {row_digest(row) for row in made.rows}
    assert row_digest(read_table(made.path, ["SEED=1"]).rows[0]) != row_digest(made.rows[0])


LACKING = """
- {NAME: lacking, SET: [MODEL.WEIGHTS=nowhere/stage.safetensors], TRAIN: 'system.yaml OUTPUT_DIR=nowhere'}
- {NAME: no data, SET: ['DATASETS.TEST=["folder:nowhere"]']}
- {NAME: impossible, SYSTEM: dense}
"""


def test_rows_that_lack_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = table(tmp_path, TABLE + LACKING.lstrip()).path
    assert main(["ablation", str(path), "-o", "out/table.md", "--set", "TEST.MAX_IMAGES=1"]) == 1
    text = (tmp_path / "out" / "table.md").read_text()
    assert capsys.readouterr().out == text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| missing: MODEL.WEIGHTS " in lines["lacking"]
    assert "missing: data set folder" in lines["no data"]
    assert "failed: TEST.SYSTEMS: unknown or impossible system 'dense'" in lines["impossible"]
    assert "12.5" in lines["three"]
    assert "missing" not in lines["three"] + lines["five again"]
    assert "- MODEL.WEIGHTS: nowhere/stage.safetensors is not there." in text
    assert "system.yaml OUTPUT_DIR=nowhere`" in text
    assert "shapes_val, 1 photos" in text
    assert (tmp_path / "output" / "ablations").is_dir() or list((tmp_path / "output").iterdir())


def test_what_a_row_lacks_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = table(tmp_path, TABLE + LACKING.lstrip().splitlines()[0])
    trained: list[Config] = []

    def train(config: Config) -> None:
        trained.append(config)
        Path(config.output_dir).mkdir()
        shutil.copy(shipped("package:shapes"), Path(config.output_dir, "stage.safetensors"))
        Path(config.output_dir, "model_final.pth").touch()

    measured = measure(made, options(tmp_path, train=train))
    assert [config.output_dir for config in trained] == ["nowhere"]
    assert "lacking" in measured.found
    measure(made, options(tmp_path, train=train, fresh=True))
    assert len(trained) == 1

    def fails(config: Config) -> None:
        raise TwostageError("no photos to learn from")

    shutil.rmtree("nowhere")
    problem = measure(made, options(tmp_path, train=fails)).problems["lacking"]
    assert (problem.kind, problem.note) == ("missing", "no photos to learn from")


def test_errors_while_measuring_stay_with_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runner.evaluate

    def breaks(segmenter: Any, *rest: Any, **more: Any) -> Any:
        if segmenter.proposals.config.count == 5:
            raise TwostageError("a photo is odd " * 20)
        return real(segmenter, *rest, **more)

    monkeypatch.setattr(ablation.runner, "evaluate", breaks)
    made = table(tmp_path)
    measured = measure(made, options(tmp_path))
    assert set(measured.problems) == {"five", "five again"}
    text = markdown(made, measured.found, measured.problems)
    assert "failed: a photo is odd a photo is odd" in text
    assert len(max((line for line in text.splitlines() if line.startswith("|")), key=len)) < 160
    assert f"- {' '.join(('a photo is odd ' * 20).split())}" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ENSEMBLE.OPTIONS.EMPTY=drp", r"Row 'five again': GeometricEnsemble: unknown empty 'drp'"),
        ("PROPOSALS.OPTIONS.CUONT=4", r"Row 'five again': PROPOSALS: .*unknown option 'cuont'"),
    ],
)
def test_a_wrong_row_is_said_before_anything_is_measured(
    tmp_path: Path, passes: list[list[str]], change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(table(tmp_path, TABLE.replace("ENSEMBLE.OPTIONS.EMPTY=drop", change)), options(tmp_path))
    assert passes == []


def test_markdown() -> None:
    from twostage.runs.ablation_table import Row

    rows = (Row("a | b", Config(), paper={"hIoU": 28.2}), Row("longer name", Config(seed=4)))
    made = Table(Path("x.yaml"), "A title", "About it.", ("seen", "hIoU"), rows)
    found = {"a | b": {"seen": 1.25, "hIoU": None, "dataset": "d", "images": 7}}
    assert markdown(made, found, {}) == (
        "## A title\n\nAbout it.\n\n"
        "|             | seen | hIoU | paper: hIoU |\n"
        "| ----------- | ---: | ---: | ----------: |\n"
        "| a \\| b      |  1.2 |    - |        28.2 |\n"
        "| longer name |    - |    - |           - |\n\n"
        "Percent; d, 7 photos, seed 0.\n"
    )
    assert "Nothing was measured." in markdown(made, {}, {})


def test_a_dry_run_measures_nothing(
    tmp_path: Path, passes: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, TABLE + LACKING.lstrip().splitlines()[0]).path
    assert main(["ablation", str(path), "--dry-run", "--train", "--results", str(tmp_path / "r.json")]) == 0
    assert passes == []
    text = capsys.readouterr().out
    assert "| missing: MODEL.WEIGHTS" in text
    assert text.count("missing:") == 1
    assert not (tmp_path / "r.json").exists()
    path.write_text(path.read_text().replace("EMPTY=drop", "EMPTY=drp"))
    assert main(["ablation", str(path), "--dry-run", "--results", str(tmp_path / "r.json")]) == 1


def test_results_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"rows": 3}')
    with pytest.raises(TwostageError, match=r"results\.json: these are no stored results"):
        Results(tmp_path / "results.json")
