"""Table files: what they say is read as it stands, what is wrong is said; and the shipped ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from tiny_parts import write_system

from twostage.config import ConfigError
from twostage.runs.ablation import Options, measure
from twostage.runs.ablation_table import Table, read_table

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs" / "ablations").rglob("*.yaml"))


@cache
def shipped(path: Path) -> Table:
    return read_table(path)


TABLE = """
TITLE: Sources
ABOUT: |
  Two lines
  of words.
BASE: system.yaml
SET: ['DATASETS.TEST=[shapes_val]', SEED=3]
SYSTEM: CLIP crops
COLUMNS: [hIoU, recall_50]
ROWS:
- {NAME: four, SET: [PROPOSALS.OPTIONS.COUNT=4, SEED=4], PAPER: {hIoU: 11}}
- {NAME: three, SYSTEM: ensemble, TRAIN: 'system.yaml SEED=5 OUTPUT_DIR=elsewhere'}
"""


def write(folder: Path, text: str = TABLE) -> Path:
    write_system(folder)
    path = folder / "table.yaml"
    path.write_text(text)
    return path


def test_a_table_says_what_each_row_is(tmp_path: Path) -> None:
    table = read_table(write(tmp_path), ["TEST.MAX_IMAGES=2"])
    assert (table.title, table.about, table.columns) == (
        "Sources",
        "Two lines of words.",
        ("hIoU", "recall_50"),
    )
    four, three = table.rows
    assert four.config.proposals.options == {"count": 4}
    assert (four.config.seed, three.config.seed) == (4, 3), "the row's own SET comes after the table's"
    assert (four.system, three.system) == ("CLIP crops", "ensemble")
    assert four.paper == {"hIoU": 11.0}
    assert four.config.test.max_images == three.config.test.max_images == 2
    [recipe] = three.train
    assert (recipe.config.seed, recipe.config.output_dir) == (5, "elsewhere")
    assert recipe.command.endswith("system.yaml SEED=5 OUTPUT_DIR=elsewhere")
    assert read_table(tmp_path / "table.yaml", ["SEED=9"]).rows[0].config.seed == 9, (
        "the command line is last"
    )


def test_a_sweep_is_a_row_a_value(tmp_path: Path) -> None:
    sweep = "SWEEP: {KEY: ENSEMBLE.OPTIONS.WEIGHT, VALUES: [0.2, 0.8], PAPER: {0.8: {hIoU: 37.8}}}\n"
    table = read_table(write(tmp_path, TABLE.split("ROWS:")[0] + sweep))
    assert [row.name for row in table.rows] == ["0.2", "0.8"]
    assert [row.config.ensemble.options for row in table.rows] == [{"weight": 0.2}, {"weight": 0.8}]
    assert [row.paper for row in table.rows] == [{}, {"hIoU": 37.8}]
    both = "SWEEP: {KEY: [ENSEMBLE.OPTIONS.WEIGHT, ENSEMBLE.OPTIONS.SEEN_WEIGHT], VALUES: [0.2]}\n"
    [row] = read_table(write(tmp_path, TABLE.split("ROWS:")[0] + both)).rows
    assert row.config.ensemble.options == {"weight": 0.2, "seen_weight": 0.2}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TITLE", "TITEL", r"unknown key TITEL\. Did you mean 'title'"),
        ("PAPER", "PAPERS", r"row 'four': unknown key PAPERS\. Did you mean 'paper'"),
        ("[hIoU, recall_50]", "[hIOU]", r"COLUMNS: unknown metric 'hIOU'\. Did you mean 'hIoU'"),
        ("{hIoU: 11}", "{hiu: 11}", r"row 'four': PAPER: unknown key HIU"),
        (
            "SYSTEM: ensemble",
            "SYSTEM: ensembel",
            r"SYSTEM: unknown system 'ensembel'\. Did you mean 'ensemble'",
        ),
        ("OPTIONS.COUNT=4", "OPTIOS.COUNT=4", r"row 'four': .*unknown option PROPOSALS\.OPTIOS"),
        ("BASE: system.yaml", "BASE: nowhere.yaml", r"row 'four': Cannot read .*nowhere\.yaml"),
        ("system.yaml SEED=5", "nowhere.yaml", r"row 'three': TRAIN: Cannot read"),
        ("NAME: three", "NAME: four", r"names must differ, but these occur twice: four"),
        ("NAME: three, ", "", r"row '': every row needs a NAME"),
        ("[shapes_val]", "[shapes_val, shapes_test]", r"DATASETS\.TEST has to name one data set"),
        ("ROWS:", "SWEEP: {KEY: SEED, VALUES: [1]}\nROWS:", r"expected either ROWS or SWEEP"),
        ("- {NAME: four", "- four\n- {NAME: five", r"row '': expected keys such as NAME, got 'four'"),
        ("TITLE: Sources", "TITLE: !!python/name:os.system x", r"the tag .* is not allowed"),
    ],
)
def test_what_is_wrong_in_a_table(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TABLE
    with pytest.raises(ConfigError, match=message):
        read_table(write(tmp_path, TABLE.replace(old, new, 1)))


def test_a_sweep_needs_key_and_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SWEEP: expected KEY and VALUES"):
        read_table(write(tmp_path, TABLE.split("ROWS:")[0] + "SWEEP: {KEY: SEED}\n"))


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the table .*none\.yaml: No such file"):
        read_table(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_tables_are_right(path: Path) -> None:
    table = shipped(path)
    assert len(table.rows) > 1
    assert path.read_text().startswith("# twostage ablation configs/ablations/"), "the command stands on top"
    for row in table.rows:
        for recipe in row.train:
            made = recipe.config.output_dir
            used = (row.config.model.weights, row.config.clip.prompt)
            assert any(text.startswith(made) for text in used), f"{row.name}: nothing of {made} is used"
        assert row.config.model.weights != "pretrained/R-103.pkl", f"{row.name}: a backbone is no stage one"


RESOLVED = [
    path for path in SHIPPED if path.parent.name == "shapes" or path.stem in ("architecture", "oracle")
]
"""The other tables change weights, CLIP models and the ensemble of configurations that are tested already."""


@pytest.mark.parametrize("path", RESOLVED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_tables_resolve(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row builds its networks on the meta device; weights and data may be missing, nothing is wrong."""
    monkeypatch.chdir(tmp_path)
    measured = measure(shipped(path), Options(tmp_path / "results.json", dry=True))
    assert {problem.kind for problem in measured.problems.values()} <= {"missing"}
    known = ("MODEL.WEIGHTS", "CLIP.PROMPT", "data set")
    for problem in measured.problems.values():
        assert all(part.startswith(known) for part in problem.note.split(", "))


def test_the_papers_figures() -> None:
    """Xu et al., ECCV 2022, ablation tables, as printed there."""
    expected = {
        "proposals": [10.9, 11.0, 28.2],
        "scoring": [8.7, 28.2, 37.8],
        "clip_models": [15.2, 13.8, 15.3, 18.3],
        "prompts": [18.3, 28.2],
        "architecture": [50.7, 74.2, 77.5],
    }
    for name, figures in expected.items():
        table = shipped(ROOT / "configs" / "ablations" / f"{name}.yaml")
        assert [row.paper["hIoU"] for row in table.rows if row.paper] == figures, name
    oracle = shipped(ROOT / "configs" / "ablations" / "oracle.yaml")
    assert [row.paper for row in oracle.rows] == [{"mIoU": 64.4}, {"mIoU": 62.5}]
